//! What is wrong with a configuration, each thing with its line and its key.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, counted from 1; zero where no line can be named.
    pub line: usize,
    /// The full key, such as `clusters.shop.scaling.max_hold`; empty where no key is at fault.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A configuration that can't be used. Prints one line per problem, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as it was named.
    pub file: PathBuf,
    /// All that is wrong; never empty.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn whole_file(file: &Path, message: String) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                line: 0,
                key: String::new(),
                message,
            }],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:", self.file.display())?;
            if problem.line > 0 {
                write!(f, "{}:", problem.line)?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
