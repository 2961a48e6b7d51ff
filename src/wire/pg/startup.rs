//! The packets before authentication: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.

/// Longest start-up packet that is read, in bytes (`MAX_STARTUP_PACKET_LENGTH` in PostgreSQL).
pub const MAX_STARTUP: usize = 10_000;

/// Protocol version 3.0, the one that both legs speak.
pub const PROTOCOL_3_0: i32 = 3 << 16;

/// The parameters of a StartupMessage in the order that the client sent them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupParams(pub Vec<(Box<[u8]>, Box<[u8]>)>);

impl StartupParams {
    /// The last value given for `name`, as PostgreSQL takes it.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .rev()
            .find(|(n, _)| &**n == name.as_bytes())
            .map(|(_, v)| &**v)
    }
}
