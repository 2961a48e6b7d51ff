//! ParameterStatus values in one piece of memory: every session keeps some fifteen of them, and they
//! change next to never.

use super::frame::{Reader, put_cstr};
use bytes::BytesMut;

/// Names and values, each once, as the wire spells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Pairs of strings with a NUL behind each.
    text: Box<[u8]>,
}

impl Parameters {
    /// The value of a name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Sets one, so that it is there once. A NUL would end name or value early; the wire has none in them.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        if self.get(name) == Some(value) {
            return;
        }
        let mut text = BytesMut::with_capacity(self.text.len() + name.len() + value.len() + 2);
        for (n, v) in self.iter().filter(|(n, _)| *n != name) {
            put_cstr(&mut text, n);
            put_cstr(&mut text, v);
        }
        put_cstr(&mut text, name);
        put_cstr(&mut text, value);
        self.text = text[..].into();
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut reader = Reader::new(&self.text);
        std::iter::from_fn(move || Some((reader.cstr().ok()?, reader.cstr().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_is_kept_once() {
        let mut parameters = Parameters::default();
        assert_eq!(parameters.get(b"TimeZone"), None);
        parameters.set(b"TimeZone", b"UTC");
        parameters.set(b"application_name", b"");
        parameters.set(b"TimeZone", b"Europe/Berlin");
        assert_eq!(parameters.get(b"TimeZone"), Some(&b"Europe/Berlin"[..]));
        assert_eq!(parameters.get(b"application_name"), Some(&b""[..]));
        assert_eq!(parameters.get(b"Time"), None);
        assert_eq!(parameters.iter().count(), 2);
    }

    #[test]
    fn a_value_is_no_name() {
        let mut parameters = Parameters::default();
        parameters.set(b"a", b"b");
        assert_eq!(parameters.get(b"b"), None);
    }
}
