//! Under which settings named statements were made. What constants in a text mean is decided when it is parsed:
//! made again under another DateStyle, TimeZone or `standard_conforming_strings`, a statement would say something
//! else. The server tells their values (ParameterStatus), but not those of the past.

use super::absent::NAME_MAX;
use super::snapshot::{Prepared, Snapshot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The settings that are meant, of those that the server tells.
const SETTINGS: [&str; 4] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "standard_conforming_strings",
];

/// Most statements that are remembered of one session.
const MAX: usize = 1000;

/// A value for each of [`SETTINGS`].
type Values = Arc<[Box<str>; SETTINGS.len()]>;

/// What one session's statements were made under. Nothing as long as the settings stay what they were at first.
#[derive(Debug, Default, Clone)]
pub struct Made {
    now: Option<Values>,
    /// Under which all others were made.
    first: Option<Values>,
    others: BTreeMap<Box<str>, Values>,
    /// Of these nobody knows it: they were made, or refused, while a setting changed.
    unsure: BTreeSet<Box<str>>,
    /// Sent since nothing was under way.
    sent: Vec<Box<str>>,
    /// Parse messages without an answer, in order.
    parsing: VecDeque<Box<str>>,
    /// There were more than can be remembered.
    full: bool,
}

impl Made {
    /// A setting has this value now, and had another; `before` tells what the server had told.
    pub fn changed<'a>(
        &mut self,
        name: &[u8],
        value: &[u8],
        before: impl Fn(&[u8]) -> Option<&'a [u8]>,
    ) {
        let Some(at) = SETTINGS.iter().position(|s| s.as_bytes() == name) else {
            return;
        };
        let text = |value: &[u8]| Box::from(String::from_utf8_lossy(value));
        let old = SETTINGS.map(|name| text(before(name.as_bytes()).unwrap_or_default()));
        let mut new = old.clone();
        if let Some(new) = new.get_mut(at) {
            *new = text(value);
        }
        self.first.get_or_insert_with(|| Arc::new(old));
        self.now = Some(Arc::new(new));
        // The server may have seen them before the change, or behind it.
        self.unsure.extend(self.sent.drain(..));
    }

    /// Nothing has to be remembered.
    pub(super) fn is_simple(&self) -> bool {
        self.first.is_none()
    }

    /// A statement of this name is sent.
    pub(super) fn makes(&mut self, name: &str) {
        let name = cut(name);
        if self.sent.len() >= MAX {
            self.full = true;
            return;
        }
        self.sent.push(name.into());
        self.unsure.remove(name);
        let (Some(now), Some(first)) = (&self.now, &self.first) else {
            return;
        };
        if now == first {
            self.others.remove(name);
        } else if self.others.len() < MAX || self.others.contains_key(name) {
            self.others.insert(name.into(), Arc::clone(now));
        } else {
            self.full = true;
        }
    }

    /// A Parse of this statement is sent.
    pub(super) fn parses(&mut self, name: &str) {
        self.makes(name);
        self.parsing.push_back(cut(name).into());
    }

    /// The oldest Parse was answered.
    pub(super) fn parsed(&mut self) {
        self.parsing.pop_front();
    }

    /// The oldest Parse was refused or skipped: an older statement may have its name.
    pub(super) fn not_parsed(&mut self) {
        if let Some(name) = self.parsing.pop_front()
            && !self.is_simple()
        {
            self.unsure.insert(name);
        }
    }

    /// No answer comes any more.
    pub(super) fn lost(&mut self) {
        self.parsing.clear();
        self.sent.clear();
    }

    /// Nothing is under way.
    pub(super) fn quiet(&mut self) {
        self.sent.clear();
    }

    /// A statement of the client's was completed.
    pub(super) fn completed(&mut self, tag: &[u8]) {
        if matches!(tag, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") {
            self.others.clear();
            self.unsure.clear();
            self.full = false;
            self.first.clone_from(&self.now);
            if self.first.is_some() {
                // Sent behind it, some of them.
                self.unsure.extend(self.sent.drain(..));
            }
        }
    }

    /// These are all that there are.
    pub fn keep(&mut self, snapshot: &Snapshot) {
        if self.is_simple() {
            return;
        }
        let prepared = &snapshot.state().prepared;
        let is_there = |name: &str| prepared.iter().any(|p| &*p.name == name);
        self.others.retain(|name, _| is_there(name));
        self.unsure.retain(|name| is_there(name));
        self.full &= !prepared.is_empty();
    }

    /// Names and values under which this statement was made, if it matters.
    pub fn under(&self, name: &str) -> Option<impl Iterator<Item = (&'static str, &str)>> {
        let then = self.others.get(name).or(self.first.as_ref())?;
        (Some(then) != self.now.as_ref()).then(|| pairs(then))
    }

    /// The present ones.
    pub(super) fn present(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.now.iter().flat_map(pairs)
    }

    /// Why these statements can't be made again.
    pub fn not_restorable(&self, snapshot: &Snapshot) -> Option<&'static str> {
        let prepared = &snapshot.state().prepared;
        let is_unknown = |p: &Prepared| {
            self.unsure.contains(&p.name) || self.full && !self.others.contains_key(&p.name)
        };
        prepared.iter().any(is_unknown).then_some(
            "a prepared statement was made while DateStyle, IntervalStyle, TimeZone or standard_conforming_strings changed, \
             or many were: prepare it again",
        )
    }
}

/// A name as far as it counts.
fn cut(name: &str) -> &str {
    name.get(..name.floor_char_boundary(NAME_MAX))
        .unwrap_or(name)
}

fn pairs(values: &Values) -> impl Iterator<Item = (&'static str, &str)> {
    SETTINGS
        .into_iter()
        .zip(values.iter().map(|value| &**value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::pg::snapshot::State;

    fn at_first(name: &[u8]) -> Option<&'static [u8]> {
        (name == b"DateStyle").then_some(b"ISO, MDY")
    }

    fn style(made: &Made, name: &str) -> Option<String> {
        let mut under = made.under(name)?;
        under
            .find(|(n, _)| *n == "DateStyle")
            .map(|(_, v)| v.to_owned())
    }

    #[test]
    fn only_what_was_made_under_other_settings_is_told() {
        let mut made = Made::default();
        made.makes("a");
        made.changed(b"application_name", b"x", at_first);
        assert!(made.is_simple() && made.under("a").is_none());
        made.quiet();
        made.changed(b"DateStyle", b"ISO, DMY", at_first);
        made.makes("b");
        made.quiet();
        assert_eq!(style(&made, "a").as_deref(), Some("ISO, MDY"));
        assert_eq!(style(&made, "b"), None);
        let since = |name: &[u8]| (name == b"DateStyle").then_some(&b"ISO, DMY"[..]);
        made.changed(b"DateStyle", b"ISO, MDY", since);
        assert_eq!(style(&made, "a"), None);
        assert_eq!(style(&made, "b").as_deref(), Some("ISO, DMY"));
        made.makes("b");
        made.quiet();
        assert_eq!(style(&made, "b"), None, "made anew");
        made.changed(b"DateStyle", b"ISO, DMY", at_first);
        made.completed(b"DISCARD ALL\0");
        assert_eq!(style(&made, "a"), None, "all are gone");
    }

    #[test]
    fn what_was_sent_beside_a_change_is_not_known() {
        let with = |names: &[&str]| {
            let prepared = names.iter().map(|name| Prepared {
                name: (*name).into(),
                text: "select 1".into(),
                types: Box::default(),
                from_sql: false,
            });
            Snapshot::new(State {
                login_user: "u".into(),
                session_user: "u".into(),
                current_user: "u".into(),
                role: "none".into(),
                settings: Box::default(),
                custom: Box::default(),
                prepared: prepared.collect(),
            })
        };
        let mut made = Made::default();
        made.makes("before");
        made.quiet();
        made.makes("beside");
        made.changed(b"DateStyle", b"ISO, DMY", at_first);
        made.quiet();
        assert!(made.not_restorable(&with(&["before"])).is_none());
        assert!(made.not_restorable(&with(&["before", "beside"])).is_some());
        made.makes("beside");
        made.quiet();
        assert!(made.not_restorable(&with(&["beside"])).is_none());
        // Refused, perhaps because it was there.
        made.parses("before");
        made.not_parsed();
        assert!(made.not_restorable(&with(&["before"])).is_some());
        // More than are remembered, until they are gone.
        for number in 0..=MAX {
            made.makes(&format!("s{number}"));
            made.quiet();
        }
        assert!(made.not_restorable(&with(&["s1"])).is_none());
        assert!(made.not_restorable(&with(&["s1000"])).is_some());
        made.keep(&with(&["s1"]));
        made.makes("new");
        made.quiet();
        assert!(made.not_restorable(&with(&["new"])).is_none());
        made.keep(&with(&[]));
        assert!(made.not_restorable(&with(&["other"])).is_none());
    }
}
