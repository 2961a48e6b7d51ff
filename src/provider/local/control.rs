//! What `pg_controldata` tells of a data directory whose server does not run.

use super::super::ProviderError;
use super::super::lsn::Lsn;
use super::data_dir::DataDir;
use super::files::Home;
use super::install::Install;
use super::process::run;
use std::time::Duration;

/// `pg_controldata` reads one small file.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the server of a data directory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// A primary, cleanly: its shutdown checkpoint is the last record of its log.
    Clean,
    /// A standby, or one that was not promoted to the end: it never accepted a write.
    InRecovery,
    /// A primary that runs or crashed.
    Other,
}

/// The control file's fields that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) system_identifier: u64,
    pub(super) ending: Ending,
    /// Where the record of the last checkpoint begins.
    pub(super) checkpoint: Lsn,
    pub(super) timeline: u32,
}

impl Control {
    pub(super) async fn read(
        install: &Install,
        data_dir: &DataDir,
        home: Home,
    ) -> Result<Self, ProviderError> {
        let mut command = install.command("pg_controldata", data_dir.account());
        command.arg("-D").arg(data_dir.data_of(home));
        let text = run(&mut command, "pg_controldata", PATIENCE).await?;
        Self::parse(&text).ok_or_else(|| ProviderError::Program {
            program: "pg_controldata",
            output: "its answer could not be read".to_owned(),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        Some(Self {
            system_identifier: field("Database system identifier")?.parse().ok()?,
            ending: match field("Database cluster state")? {
                "shut down" => Ending::Clean,
                "shut down in recovery" | "in archive recovery" => Ending::InRecovery,
                _ => Ending::Other,
            },
            checkpoint: field("Latest checkpoint location")?.parse().ok()?,
            timeline: field("Latest checkpoint's TimeLineID")?.parse().ok()?,
        })
    }
}

/// A system identifier as SQL tells it: signed.
pub(super) fn system_identifier(text: &str) -> Option<u64> {
    text.parse::<i64>().ok().map(i64::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pg_control version number:            1300\n\
        Database system identifier:           7445033405402910721\n\
        Database cluster state:               shut down\n\
        Latest checkpoint location:           1/A0000028\n\
        Latest checkpoint's REDO location:    1/A0000028\n\
        Latest checkpoint's TimeLineID:       12\n\
        Latest checkpoint's PrevTimeLineID:   11\n";

    #[test]
    fn control_file_is_read_or_refused_whole() {
        let read = Control::parse(TEXT).unwrap();
        assert_eq!(read.checkpoint, Lsn(0x1_A000_0028));
        assert_eq!(read.checkpoint.to_string(), "1/A0000028");
        assert_eq!((read.timeline, read.ending), (12, Ending::Clean));
        for (state, ending) in [
            ("in production", Ending::Other),
            ("shutting down", Ending::Other),
            ("in crash recovery", Ending::Other),
            ("in archive recovery", Ending::InRecovery),
            ("shut down in recovery", Ending::InRecovery),
        ] {
            let text = TEXT.replace("shut down", state);
            assert_eq!(Control::parse(&text).unwrap().ending, ending, "{state}");
        }
        for line in TEXT
            .lines()
            .skip(1)
            .filter(|l| !l.contains("REDO") && !l.contains("Prev"))
        {
            assert_eq!(Control::parse(&TEXT.replace(line, "")), None, "{line}");
        }
    }

    #[test]
    fn identifiers_of_sql_are_signed() {
        assert_eq!(system_identifier("-1"), Some(u64::MAX));
        assert_eq!(system_identifier("x"), None);
    }
}
