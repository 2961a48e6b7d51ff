//! Who may ask: the token, and what keeps a web page that the operator has open from asking for them.

use axum::http::{HeaderMap, Method, StatusCode, header};
use zeroize::Zeroizing;

/// Decides from a request's head whether it may be answered.
pub(super) struct Guard {
    token: Option<Zeroizing<String>>,
}

/// A refusal: status, code, message.
pub(super) type Refusal = (StatusCode, &'static str, String);

impl Guard {
    pub(super) fn new(token: Option<Zeroizing<String>>) -> Self {
        Self { token }
    }

    /// Checks one request. `open`: the path tells nothing and needs no token.
    pub(super) fn check(
        &self,
        method: &Method,
        open: bool,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        match &self.token {
            Some(token) if !open => check_token(token, headers)?,
            Some(_) => {}
            // A name of the attacker's that resolves to 127.0.0.1 would make any web page same-origin.
            None if !host_is_loopback(headers) => {
                return Err((
                    StatusCode::FORBIDDEN,
                    "foreign_host",
                    "without admin.token_file, requests must name localhost, 127.0.0.1 or [::1] in Host"
                        .to_owned(),
                ));
            }
            None => {}
        }
        if *method != Method::GET && *method != Method::HEAD {
            check_origin(headers)?;
            check_content_type(headers)?;
        }
        Ok(())
    }
}

fn check_token(token: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token);
    match given {
        Some(given)
            if aws_lc_rs::constant_time::verify_slices_are_equal(given, token.as_bytes())
                .is_ok() =>
        {
            Ok(())
        }
        Some(_) => Err((
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the token is not the one in admin.token_file".to_owned(),
        )),
        None => Err((
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send the content of admin.token_file as \"Authorization: Bearer ...\"".to_owned(),
        )),
    }
}

fn host_is_loopback(headers: &HeaderMap) -> bool {
    headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .is_some_and(is_loopback_authority)
}

/// `localhost`, an address in 127.0.0.0/8 or `[::1]`, with or without a port.
fn is_loopback_authority(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Browsers send Origin with requests that change something; other clients don't.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let own = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let same = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .is_some_and(|(_, authority)| Some(authority) == own);
    if same {
        return Ok(());
    }
    Err((
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "this request comes from a web page of another origin".to_owned(),
    ))
}

/// A form or a simple cross-site request can't carry this type.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let empty = !headers.contains_key(header::TRANSFER_ENCODING)
        && headers
            .get(header::CONTENT_LENGTH)
            .is_none_or(|n| n.as_bytes() == b"0");
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .eq_ignore_ascii_case("application/json")
        });
    if json || (empty && !headers.contains_key(header::CONTENT_TYPE)) {
        return Ok(());
    }
    Err((
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send the body as content-type: application/json".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for host in [
            "localhost",
            "LOCALHOST:7432",
            "127.0.0.1:7432",
            "127.9.9.9",
            "[::1]:7432",
            "[::1]",
        ] {
            assert!(is_loopback_authority(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:7432",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "::1",
        ] {
            assert!(!is_loopback_authority(host), "{host}");
        }
    }
}
