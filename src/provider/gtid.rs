//! Which transactions a server has, by their global transaction ids.

use std::collections::BTreeMap;

/// As a server writes them: MySQL a set (`uuid:1-5,...`), MariaDB the last one of each domain (`domain-server-number,...`).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(super) struct Gtids(String);

impl Gtids {
    /// `None` for what is no such text. (MySQL breaks long ones into lines.)
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | ',' | '_');
        text.chars().all(known).then_some(Self(text))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Of MariaDB: whether a server that is here has been there. `None` where one of both can't be read.
    pub(super) fn reaches(&self, there: &Self) -> Option<bool> {
        let (here, there) = (self.domains()?, there.domains()?);
        Some(there.iter().all(|(domain, (server, number))| {
            here.get(domain)
                .is_some_and(|(s, n)| n > number || (n == number && s == server))
        }))
    }

    fn domains(&self) -> Option<BTreeMap<u32, (u32, u64)>> {
        let ids = self.0.split(',').filter(|id| !id.is_empty());
        ids.map(|id| {
            let mut parts = id.split('-');
            let domain = parts.next()?.parse().ok()?;
            let server = parts.next()?.parse().ok()?;
            let number = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some((domain, (server, number)))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Gtids {
        Gtids::parse(text).unwrap()
    }

    #[test]
    fn a_position_is_reached_in_every_domain() {
        for (here, there, reached) in [
            ("", "", true),
            ("0-1-5", "", true),
            ("0-1-5", "0-1-5", true),
            ("0-2-6", "0-1-5", true),
            ("0-1-4", "0-1-5", false),
            ("0-2-5", "0-1-5", false),
            ("0-1-5", "0-1-5,1-1-1", false),
            ("0-1-5,1-1-2", "0-1-5,1-1-1", true),
            ("", "0-1-1", false),
        ] {
            assert_eq!(
                at(here).reaches(&at(there)),
                Some(reached),
                "{here} {there}"
            );
        }
        assert_eq!(at("0-1").reaches(&at("")), None);
        assert_eq!(at("").reaches(&at("0-1-2-3")), None);
        assert_eq!(at("x-1-1").reaches(&at("")), None);
    }

    #[test]
    fn only_such_text_gets_into_a_statement() {
        let long = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:11,\n4e11fa47-71ca-11e1-9e33-c80aa9429562:blue_tag:1";
        assert!(at(long).as_str().contains("562:1-5:11,4e11"));
        assert_eq!(Gtids::parse("'; DROP TABLE t"), None);
    }
}
