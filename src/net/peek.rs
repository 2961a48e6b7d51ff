//! What the relay looks at in a server's frame before it passes.

use super::relay::ProcessNames;
use crate::wire::pg::backend::ErrorFields;
use crate::wire::pg::frame::{HEADER_LEN, Header, Reader};
use bytes::BytesMut;

/// A server's last words.
#[derive(Debug)]
pub struct Fatal {
    /// Its fields.
    pub fields: ErrorFields,
    /// The whole frame as it came.
    pub frame: BytesMut,
}

/// The head of a NotificationResponse with the told process number; `None` when it stays as it is.
pub(super) fn renamed(frame: &[u8], header: Header, names: &dyn ProcessNames) -> Option<Vec<u8>> {
    let real = Reader::new(frame.get(HEADER_LEN..)?).i32().ok()?;
    let told = names.told(real);
    if told == real || header.body < 4 {
        return None;
    }
    let mut head = frame.get(..HEADER_LEN)?.to_vec();
    head.extend_from_slice(&told.to_be_bytes());
    Some(head)
}

/// A FATAL or PANIC that is there as a whole.
pub(super) fn fatal(frame: &[u8], header: Header, head: &[u8]) -> Option<Fatal> {
    let whole = frame.get(..header.frame_len())?;
    let fields = ErrorFields::parse(head);
    fields.is_fatal().then(|| Fatal {
        fields,
        frame: BytesMut::from(whole),
    })
}
