//! Framing, messages of the server, start-up packets and their options.

use bytes::{BufMut, BytesMut};
use slackwater::wire::pg::backend::{ErrorFields, ErrorMessage, data_row, put_error};
use slackwater::wire::pg::frame::{HEADER_LEN, Header, MAX_BODY, Reader, put, put_cstr};
use slackwater::wire::pg::options;
use slackwater::wire::pg::parameters::Parameters;
use slackwater::wire::pg::startup::{
    self, CLUSTER_SETTING, FirstPacket, MAX_CANCEL_SECRET, MAX_STARTUP, put_cancel_request,
    put_negotiate_version, put_startup,
};

/// A stream is cut into frames, each is read as what its first byte may make of it.
pub fn framing(data: &[u8]) {
    let mut rest = data;
    loop {
        match Header::parse(rest) {
            Ok(None) => {
                assert!(rest.len() < HEADER_LEN);
                break;
            }
            Err(_) => break,
            Ok(Some(header)) => {
                assert!(header.body <= MAX_BODY);
                assert_eq!(header.frame_len(), HEADER_LEN + header.body);
                let Some(frame) = rest.get(..header.frame_len()) else {
                    break;
                };
                let body = &frame[HEADER_LEN..];
                let mut again = BytesMut::new();
                put(&mut again, header.tag, |out| out.put_slice(body));
                assert_eq!(&again[..], frame);
                message(body);
                rest = &rest[header.frame_len()..];
            }
        }
    }
    message(data);
}

fn message(body: &[u8]) {
    let fields = ErrorFields::parse(body);
    if !fields.severity.contains('\0') && !fields.code.is_empty() {
        let mut out = BytesMut::new();
        let error = ErrorMessage {
            severity: &fields.severity,
            code: &fields.code,
            message: &fields.message,
            detail: "",
            hint: "",
        };
        put_error(&mut out, &error);
        let again = ErrorFields::parse(&out[HEADER_LEN..]);
        assert_eq!(
            (&again.severity, &again.code, &again.message),
            (&fields.severity, &fields.code, &fields.message)
        );
    }
    if let Ok(columns) = data_row(body) {
        let held: usize = columns.iter().map(|c| 4 + c.map_or(0, <[u8]>::len)).sum();
        assert!(held + 2 <= body.len(), "columns are part of the message");
    }
    let mut reader = Reader::new(body);
    let mut parameters = Parameters::default();
    while let (Ok(name), Ok(value)) = (reader.cstr(), reader.cstr()) {
        parameters.set(name, value);
        assert_eq!(parameters.get(name), Some(value));
    }
}

/// The first packet of a client, and what `options` of it say.
pub fn startup(data: &[u8]) {
    for packet in [data.to_vec(), sized(data)] {
        if let Ok(Some((first, used))) = startup::parse(&packet) {
            assert!((8..=MAX_STARTUP).contains(&used) && used <= packet.len());
            first_packet(first, &packet[..used]);
        }
    }
    options(data);
}

/// The input behind its right length, so that not every change of length makes it another error.
fn sized(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

fn first_packet(first: FirstPacket, packet: &[u8]) {
    let mut out = BytesMut::new();
    match first {
        FirstPacket::Ssl | FirstPacket::GssEnc => {}
        FirstPacket::Cancel { process, secret } => {
            assert!(secret.len() <= MAX_CANCEL_SECRET);
            put_cancel_request(&mut out, process, &secret);
            assert_eq!(&out[..], packet);
        }
        FirstPacket::Startup(start) => {
            assert!(start.params.get("user").is_some_and(|u| !u.is_empty()));
            put_startup(&mut out, start.minor, &start.params);
            let Ok(Some((FirstPacket::Startup(again), _))) = startup::parse(&out) else {
                panic!("what was written is not read");
            };
            assert_eq!((again.minor, &again.params), (start.minor, &start.params));
            startup::replication(&start.params);
            put_negotiate_version(&mut out, start.minor, &start.unsupported);
            let mut params = start.params;
            let had = params.take_cluster();
            let left = params.get("options").map(options::settings);
            let names = left.iter().flatten().filter(|s| is_cluster(&s.name));
            assert_eq!(names.count(), 0, "a trace of {had:?}");
            assert_eq!(params.take_cluster(), None);
        }
    }
}

fn is_cluster(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(CLUSTER_SETTING.as_bytes())
}

fn options(data: &[u8]) {
    let settings = options::settings(data);
    let mut end = 0;
    for setting in &settings {
        assert!(setting.span.start >= end, "in order, none in another");
        assert!(setting.span.start < setting.span.end && setting.span.end <= data.len());
        end = setting.span.end;
    }
    let read = |options: &[u8]| -> Vec<_> {
        let settings = options::settings(options).into_iter();
        settings.map(|s| (s.name, s.value)).collect()
    };
    // One-letter names, so that they are found.
    for name in ["a", "b"] {
        let Some((rest, value)) = options::take(data, name) else {
            continue;
        };
        let mut wanted = read(data);
        let last = wanted
            .iter()
            .rfind(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
        assert_eq!(last.map(|(_, v)| v), Some(&value));
        wanted.retain(|(n, _)| !n.eq_ignore_ascii_case(name.as_bytes()));
        assert_eq!(read(&rest), wanted, "{:?}", String::from_utf8_lossy(data));
    }
    let mut out = BytesMut::new();
    put_cstr(&mut out, data);
    assert_eq!(out.iter().filter(|b| **b == 0).count(), 1);
}
