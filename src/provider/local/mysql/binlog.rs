//! The end of a stopped server's binary log, read from its files. It proves that the server ended cleanly, and that it
//! wrote nothing after the position that it told while it ran.
//!
//! Format: "Binary Log Event" in the source documentation of MySQL, "Event Header" and "STOP_EVENT" in the Knowledge Base
//! of MariaDB; what is looked at here is the same in both.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

const MAGIC: [u8; 4] = [0xFE, b'b', b'i', b'n'];
/// Time (4), kind, server (4), length (4), next position (4), flags (2).
const HEADER: usize = 19;
const FORMAT_DESCRIPTION: u8 = 15;
const STOP: u8 = 3;
/// Of the first event: the server has the file open, or did not close it.
const IN_USE: u16 = 1;
/// Length of a checksum at an event's end, where there is one.
const CHECKSUM: u64 = 4;

/// What is looked at of an event.
struct Event {
    kind: u8,
    length: u32,
    flags: u16,
}

/// `Err` says why it is not proven that the log in `directory` ends with the closing of `file` at `position`.
pub(super) fn ends_at(
    directory: &Path,
    index: &str,
    file: &str,
    position: u64,
) -> Result<(), String> {
    let unreadable = |path: &Path, e: io::Error| {
        format!("the binary log's end: can't read {}: {e}", path.display())
    };
    let list = directory.join(index);
    let names = std::fs::read_to_string(&list).map_err(|e| unreadable(&list, e))?;
    let last = names.lines().rfind(|line| !line.is_empty());
    let last = last.and_then(|path| path.rsplit('/').next());
    if last != Some(file) {
        return Err(format!(
            "the old server has begun another file of its binary log ({}) since {file}",
            last.unwrap_or_default()
        ));
    }
    let path = directory.join(file);
    let mut log = File::open(&path).map_err(|e| unreadable(&path, e))?;
    let length = log.metadata().map_err(|e| unreadable(&path, e))?.len();
    closes_at(&mut log, length, position).map_err(|e| unreadable(&path, e))?
}

fn closes_at(
    log: &mut (impl Read + Seek),
    length: u64,
    position: u64,
) -> io::Result<Result<(), String>> {
    let mut magic = [0; MAGIC.len()];
    log.read_exact(&mut magic)?;
    let first = read_event(log)?;
    if magic != MAGIC || first.kind != FORMAT_DESCRIPTION {
        return Ok(Err(
            "its binary log can't be read: is it encrypted?".to_owned()
        ));
    }
    if first.flags & IN_USE != 0 {
        return Ok(Err("the old server did not stop cleanly".to_owned()));
    }
    let stop = HEADER as u64;
    if ![stop, stop + CHECKSUM].contains(&length.saturating_sub(position)) {
        return Ok(Err(format!(
            "the old server's binary log is {length} bytes long and should have ended at {position}: somebody wrote \
             until its stop"
        )));
    }
    log.seek(SeekFrom::Start(position))?;
    let last = read_event(log)?;
    if last.kind != STOP || u64::from(last.length) != length - position {
        return Ok(Err(
            "the old server's binary log ends without its stop".to_owned()
        ));
    }
    Ok(Ok(()))
}

fn read_event(log: &mut impl Read) -> io::Result<Event> {
    let mut time = [0; 4];
    let mut kind = [0; 1];
    let mut server = [0; 4];
    let mut length = [0; 4];
    let mut next = [0; 4];
    let mut flags = [0; 2];
    log.read_exact(&mut time)?;
    log.read_exact(&mut kind)?;
    log.read_exact(&mut server)?;
    log.read_exact(&mut length)?;
    log.read_exact(&mut next)?;
    log.read_exact(&mut flags)?;
    Ok(Event {
        kind: u8::from_le_bytes(kind),
        length: u32::from_le_bytes(length),
        flags: u16::from_le_bytes(flags),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn event(kind: u8, flags: u16, body: usize) -> Vec<u8> {
        let length = HEADER + body;
        let mut out = vec![0; 4];
        out.push(kind);
        out.extend([1, 0, 0, 0]);
        out.extend(u32::try_from(length).unwrap().to_le_bytes());
        out.extend([0; 4]);
        out.extend(flags.to_le_bytes());
        out.resize(length, 7);
        out
    }

    fn log(flags: u16, last: Vec<u8>) -> (Vec<u8>, u64) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(event(FORMAT_DESCRIPTION, flags, 100));
        bytes.extend(event(2, 0, 30));
        let position = bytes.len() as u64;
        bytes.extend(last);
        (bytes, position)
    }

    fn why(bytes: &[u8], position: u64) -> Option<String> {
        let ended = closes_at(&mut Cursor::new(bytes), bytes.len() as u64, position);
        ended.unwrap_or_else(|e| Err(e.to_string())).err()
    }

    #[test]
    fn only_a_closed_log_that_ends_where_it_was_is_a_proof() {
        for checksum in [0, 4] {
            let (bytes, position) = log(0, event(STOP, 0, checksum));
            assert_eq!(why(&bytes, position), None);
            let earlier = why(&bytes, position - 1).unwrap();
            assert!(earlier.contains("somebody wrote"), "{earlier}");
        }
        for (flags, last, said) in [
            (1, event(STOP, 0, 4), "did not stop cleanly"),
            (0, event(2, 0, 4), "without its stop"),
            (0, Vec::new(), "somebody wrote"),
            (
                0,
                [event(2, 0, 0), event(STOP, 0, 4)].concat(),
                "somebody wrote",
            ),
        ] {
            let (bytes, position) = log(flags, last);
            let told = why(&bytes, position).unwrap();
            assert!(told.contains(said), "{told}");
        }
        let (mut encrypted, position) = log(0, event(STOP, 0, 4));
        encrypted[0] = 0xFD;
        assert!(why(&encrypted, position).unwrap().contains("encrypted"));
        assert!(why(b"\xFEbin", 4).is_some(), "cut off");
    }

    #[test]
    fn the_index_names_the_last_file() {
        let place = tempfile::tempdir().unwrap();
        let (bytes, position) = log(0, event(STOP, 0, 4));
        std::fs::write(place.path().join("binlog.000002"), &bytes).unwrap();
        let index = place.path().join("binlog.index");
        std::fs::write(&index, "./binlog.000001\n./binlog.000002\n").unwrap();
        let ends = |file: &str| ends_at(place.path(), "binlog.index", file, position);
        assert_eq!(ends("binlog.000002"), Ok(()));
        assert!(ends("binlog.000001").unwrap_err().contains("another file"));
        std::fs::remove_file(&index).unwrap();
        assert!(ends("binlog.000002").unwrap_err().contains("can't read"));
    }
}
