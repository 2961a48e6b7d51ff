//! Under which settings named statements were made. What constants in a text mean is decided when it is parsed:
//! made again under another DateStyle, TimeZone or `standard_conforming_strings`, a statement would say something
//! else. The server tells their values (ParameterStatus), but not those of the past.

use super::snapshot::Snapshot;
use std::collections::HashMap;
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
    others: HashMap<Box<str>, Values>,
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
    }

    /// Nothing has to be remembered.
    pub(super) fn is_simple(&self) -> bool {
        self.first.is_none()
    }

    /// A statement of this name is made.
    pub(super) fn makes(&mut self, name: &str) {
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

    /// All statements are gone.
    pub(super) fn clear(&mut self) {
        self.others.clear();
        self.full = false;
        self.first.clone_from(&self.now);
    }

    /// Names and values under which this statement was made, if it matters.
    pub(super) fn under(&self, name: &str) -> Option<impl Iterator<Item = (&'static str, &str)>> {
        let then = self.others.get(name).or(self.first.as_ref())?;
        (Some(then) != self.now.as_ref()).then(|| pairs(then))
    }

    /// The present ones.
    pub(super) fn present(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.now.iter().flat_map(pairs)
    }

    /// Why these statements can't be made again.
    pub fn not_restorable(&self, snapshot: &Snapshot) -> Option<&'static str> {
        (self.full && !snapshot.state().prepared.is_empty()).then_some(
            "more prepared statements were made under changed settings than are remembered",
        )
    }
}

fn pairs(values: &Values) -> impl Iterator<Item = (&'static str, &str)> {
    SETTINGS
        .into_iter()
        .zip(values.iter().map(|value| &**value))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        made.changed(b"DateStyle", b"ISO, DMY", at_first);
        made.makes("b");
        assert_eq!(style(&made, "a").as_deref(), Some("ISO, MDY"));
        assert_eq!(style(&made, "b"), None);
        let since = |name: &[u8]| (name == b"DateStyle").then_some(&b"ISO, DMY"[..]);
        made.changed(b"DateStyle", b"ISO, MDY", since);
        assert_eq!(style(&made, "a"), None);
        assert_eq!(style(&made, "b").as_deref(), Some("ISO, DMY"));
        made.makes("b");
        assert_eq!(style(&made, "b"), None, "made anew");
        made.changed(b"DateStyle", b"ISO, DMY", at_first);
        made.clear();
        assert_eq!(style(&made, "a"), None, "all are gone");
    }
}
