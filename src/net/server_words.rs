//! What the relay changes in, or keeps back of, a server's frames.

use super::relay::{ProcessNames, Relay};
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

impl Relay {
    /// Whole messages of the server that came while Slackwater spoke with it.
    pub fn pass_on(&mut self, mut frames: &[u8]) {
        while let Ok(Some(header)) = Header::parse(frames) {
            let (frame, rest) = frames.split_at(header.frame_len().min(frames.len()));
            frames = rest;
            let kept = match header.tag {
                b'A' => renamed(frame, header, &*self.names).unwrap_or_default(),
                _ => Vec::new(),
            };
            let mut reader = Reader::new(frame.get(HEADER_LEN..).unwrap_or_default());
            if header.tag == b'S'
                && let (Ok(name), Ok(value)) = (reader.cstr(), reader.cstr())
            {
                self.params.set(name, value);
            }
            self.client.out.extend_from_slice(&kept);
            let rest = frame.get(kept.len()..).unwrap_or_default();
            self.client.out.extend_from_slice(rest);
        }
    }
}
