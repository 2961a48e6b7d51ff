//! Reads a TOML document key by key, remembering where each stands and which were never asked for.
//!
//! Problems are collected, not thrown: a person who corrects a file wants to see all of them at once.
//! A reader that finds a problem reports it and answers `None`; the caller goes on with the default.

use super::error::Problem;
use super::value;
use crate::transport::Address;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// A document that is being read.
pub(super) struct Document<'i> {
    source: &'i str,
    base: PathBuf,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl<'i> Document<'i> {
    /// `base` is the directory that relative paths start from.
    pub(super) fn new(source: &'i str, base: PathBuf) -> Self {
        Self {
            source,
            base,
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// The top of the document, or `None` (and a problem) where it isn't TOML.
    pub(super) fn root(&self) -> Option<Section<'_, 'i>> {
        match DeTable::parse(self.source) {
            Ok(table) => Some(Section::new(self, String::new(), None, table.into_inner())),
            Err(error) => {
                self.problem(error.span().map(|s| s.start), "", error.message());
                None
            }
        }
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn problem(&self, at: Option<usize>, key: &str, message: impl fmt::Display) {
        let line = at.map_or(0, |at| {
            let before = self
                .source
                .as_bytes()
                .get(..at)
                .unwrap_or(self.source.as_bytes());
            memchr::memchr_iter(b'\n', before).count() + 1
        });
        self.problems.borrow_mut().push(Problem {
            line,
            key: key.to_owned(),
            message: message.to_string(),
        });
    }

    /// Something that works but is probably not meant.
    pub(super) fn warn(&self, key: &str, message: impl fmt::Display) {
        self.warnings.borrow_mut().push(format!("{key}: {message}"));
    }

    /// Problems in the order of the file, and warnings.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<String>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| p.line);
        (problems, self.warnings.into_inner())
    }
}

/// One table. What was not taken when it is finished is an unknown key.
pub(super) struct Section<'d, 'i> {
    pub(super) doc: &'d Document<'i>,
    /// Full key of the table; empty for the top.
    pub(super) path: String,
    at: Option<usize>,
    left: BTreeMap<String, (usize, Item<'d, 'i>)>,
    known: Vec<&'static str>,
}

impl<'d, 'i> Section<'d, 'i> {
    fn new(doc: &'d Document<'i>, path: String, at: Option<usize>, table: DeTable<'i>) -> Self {
        let left = table
            .into_iter()
            .map(|(key, value)| {
                let key_at = key.span().start;
                let name = key.into_inner().into_owned();
                let item = Item {
                    doc,
                    key: join(&path, &name),
                    at: value.span().start,
                    value: value.into_inner(),
                };
                (name, (key_at, item))
            })
            .collect();
        Self {
            doc,
            path,
            at,
            left,
            known: Vec::new(),
        }
    }

    /// The value of `key`, once.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'d, 'i>> {
        self.known.push(key);
        self.left.remove(key).map(|(_, item)| item)
    }

    /// Whether `key` is there and was not taken.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// Keys that have no place here, although they are keys elsewhere: `why` is told of each that is there.
    pub(super) fn refuse(&mut self, keys: &[&str], why: &str) {
        for &key in keys {
            if let Some((_, item)) = self.left.remove(key) {
                item.problem(why);
            }
        }
    }

    /// The value of `key`; its absence is a problem that ends with `why`.
    pub(super) fn require(&mut self, key: &'static str, why: &str) -> Option<Item<'d, 'i>> {
        let item = self.take(key);
        if item.is_none() {
            self.problem_at(key, format!("is missing; {why}"));
        }
        item
    }

    /// The table `key`; an empty one where it is left out.
    pub(super) fn table(&mut self, key: &'static str) -> Self {
        let (doc, path, at) = (self.doc, join(&self.path, key), self.at);
        self.take(key)
            .and_then(Item::table)
            .unwrap_or_else(|| Section::new(doc, path, at, DeTable::new()))
    }

    /// Every entry under the name that the user gave it, with the offset of the name.
    pub(super) fn entries(self) -> Vec<(String, usize, Item<'d, 'i>)> {
        self.left
            .into_iter()
            .map(|(name, (at, item))| (name, at, item))
            .collect()
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
        zero: Option<&str>,
    ) -> Duration {
        self.take(key)
            .and_then(|item| item.duration(range, zero))
            .unwrap_or(default)
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
        self.take(key)
            .and_then(|item| item.integer(range))
            .unwrap_or(default)
    }

    /// Reports a problem of the key `key` that stands in no place of its own.
    pub(super) fn problem_at(&self, key: &str, message: impl fmt::Display) {
        self.doc.problem(self.at, &join(&self.path, key), message);
    }

    /// Something about this table that works but is probably not meant.
    pub(super) fn warn(&self, message: impl fmt::Display) {
        self.doc.warn(&self.path, message);
    }

    /// Ends the reading of this table.
    pub(super) fn finish(self) {
        self.reject_unknown();
    }

    /// Everything left over is an unknown key.
    pub(super) fn reject_unknown(&self) {
        for (name, (at, _)) in &self.left {
            self.doc.problem(
                Some(*at),
                &join(&self.path, name),
                format!("unknown key; known here: {}", self.known.join(", ")),
            );
        }
    }
}

/// One value and where it stands.
pub(super) struct Item<'d, 'i> {
    doc: &'d Document<'i>,
    /// Full key.
    pub(super) key: String,
    /// Offset of the value.
    pub(super) at: usize,
    value: DeValue<'i>,
}

impl<'d, 'i> Item<'d, 'i> {
    /// Reports a problem of this value.
    pub(super) fn problem(&self, message: impl fmt::Display) {
        self.doc.problem(Some(self.at), &self.key, message);
    }

    /// Refuses a value whose feature this release does not have; `instead` is what it does have.
    pub(super) fn later(&self, value: &str, instead: &str) {
        self.problem(format!("{value} is not in this release; {instead}"));
    }

    fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let found = match &self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(format!("expected {expected}, found {found}"));
        None
    }

    pub(super) fn string(&self) -> Option<&str> {
        match &self.value {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type("a string in quotes"),
        }
    }

    pub(super) fn non_empty(&self) -> Option<String> {
        let text = self.string()?;
        if text.is_empty() || text.contains('\0') {
            self.problem("must not be empty or contain a NUL");
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match &self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type("true or false"),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let DeValue::Integer(number) = &self.value else {
            return self.wrong_type("a whole number");
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if range.contains(&n) => Some(n),
            _ => {
                self.problem(format!(
                    "{} is out of range; {} to {} are possible",
                    number.as_str(),
                    range.start(),
                    range.end()
                ));
                None
            }
        }
    }

    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let number: f64 = match &self.value {
            DeValue::Float(text) => text.as_str().parse().unwrap_or(f64::NAN),
            DeValue::Integer(text) => text.as_str().parse().unwrap_or(f64::NAN),
            _ => return self.wrong_type("a number"),
        };
        if !range.contains(&number) {
            self.problem(format!(
                "{number} is out of range; {} to {} are possible",
                range.start(),
                range.end()
            ));
            return None;
        }
        Some(number)
    }

    /// A duration within `range`; with `zero` also `"0"`, which then means what `zero` says.
    pub(super) fn duration(
        &self,
        range: RangeInclusive<Duration>,
        zero: Option<&str>,
    ) -> Option<Duration> {
        let DeValue::String(text) = &self.value else {
            return self.wrong_type("a duration in quotes, such as \"300s\"");
        };
        let duration = value::parse_duration(text)
            .map_err(|message| self.problem(message))
            .ok()?;
        if range.contains(&duration) || (zero.is_some() && duration.is_zero()) {
            return Some(duration);
        }
        let (min, max) = (
            value::show_duration(*range.start()),
            value::show_duration(*range.end()),
        );
        let or_zero = zero.map_or_else(String::new, |means| format!(", or \"0\" ({means})"));
        self.problem(format!(
            "{text:?} is out of range; \"{min}\" to \"{max}\" are possible{or_zero}"
        ));
        None
    }

    pub(super) fn bytes(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let DeValue::String(text) = &self.value else {
            return self.wrong_type("a size in quotes, such as \"256MiB\"");
        };
        let bytes = value::parse_bytes(text)
            .map_err(|message| self.problem(message))
            .ok()?;
        if !range.contains(&bytes) {
            self.problem(format!(
                "{text:?} is out of range; {} to {} bytes are possible",
                range.start(),
                range.end()
            ));
            return None;
        }
        Some(bytes)
    }

    pub(super) fn address(&self) -> Option<Address> {
        let text = self.string()?;
        value::parse_address(text, self.doc.base())
            .map_err(|message| self.problem(message))
            .ok()
    }

    /// A path, made absolute.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.non_empty().map(|text| self.doc.base().join(text))
    }

    /// The path of a file that is there and can be read.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        let readable = std::fs::File::open(&path).and_then(|file| file.metadata());
        match readable {
            Ok(meta) if meta.is_file() => Some(path),
            Ok(_) => {
                self.problem(format!("{} is not a file", path.display()));
                None
            }
            Err(error) => {
                self.problem(format!("{} can't be read: {error}", path.display()));
                None
            }
        }
    }

    /// One of the words; the others that are possible are named.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let possible: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.problem(format!(
                "{text:?} is not possible; {} are",
                possible.join(", ")
            ));
        }
        found
    }

    pub(super) fn list(self) -> Option<Vec<Self>> {
        if !matches!(self.value, DeValue::Array(_)) {
            return self.wrong_type("a list in brackets");
        }
        let DeValue::Array(array) = self.value else {
            return None;
        };
        let items = array.into_iter().enumerate().map(|(i, value)| Item {
            doc: self.doc,
            key: format!("{}[{i}]", self.key),
            at: value.span().start,
            value: value.into_inner(),
        });
        Some(items.collect())
    }

    /// A list with at least one entry.
    pub(super) fn non_empty_list(self) -> Option<Vec<Self>> {
        let (doc, key, at) = (self.doc, self.key.clone(), self.at);
        let items = self.list()?;
        if items.is_empty() {
            doc.problem(Some(at), &key, "the list is empty");
            return None;
        }
        Some(items)
    }

    pub(super) fn table(self) -> Option<Section<'d, 'i>> {
        if !matches!(self.value, DeValue::Table(_)) {
            return self.wrong_type("a table");
        }
        let DeValue::Table(table) = self.value else {
            return None;
        };
        Some(Section::new(self.doc, self.key, Some(self.at), table))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_owned();
    }
    if key.is_empty() {
        return path.to_owned();
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if key.chars().all(bare) {
        format!("{path}.{key}")
    } else {
        format!("{path}.{key:?}")
    }
}
