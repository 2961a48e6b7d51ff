//! What the fuzz targets do, each a function of its input's bytes, so that a corpus can be run again without
//! the fuzzer. A finding is a panic.

pub mod machine;
pub mod model;
pub mod mysql;
pub mod mysql_login;
pub mod readers;
pub mod relay;
pub mod secrets;
pub mod texts;
pub mod wire;
