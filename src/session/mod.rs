//! The brain of one client connection: no IO, no clock, no logging.

pub mod blocker;
pub mod mysql;
pub mod pg;
pub mod recent;

use std::fmt;

/// A snapshot: a session's portable state, as values.
pub trait Portable: fmt::Debug + Send + Sync + Sized + 'static {
    /// Hash (SHA-256) of identity and state: equal snapshots have equal ones, in any process.
    fn fingerprint(&self) -> [u8; 32];

    /// The same without the values: what of it may need a right that a login has or has not.
    #[must_use]
    fn outline(&self) -> Self;

    /// A fresh login of the same user has all of it by itself.
    fn is_plain(&self) -> bool;

    /// Why no connection can be made to continue this session, as far as that shows without trying.
    fn not_restorable(&self) -> Option<String>;
}
