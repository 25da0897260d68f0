//! Translates a worker's HTTP/1.1 response to HTTP/2.

use http::{HeaderName, HeaderValue, Response, StatusCode};

/// Maximum bytes of a response head: more than handlers can add.
pub const MAX_HEAD: usize = 64 * 1024;
/// Maximum headers of a response.
const MAX_HEADERS: usize = 128;
/// Headers that concern a connection (RFC 9113 section 8.2.2), or the HTTP/1.1 handshake (RFC 8441 section 5); omitted.
const OMITTED: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "sec-websocket-accept", "transfer-encoding", "upgrade"];

/// A worker's response.
pub struct Answer {
    /// The head for the client.
    pub response: Response<()>,
    /// Whether it opens the WebSocket (101).
    pub is_switching: bool,
    /// Whether another response follows (1xx, except 101).
    pub is_interim: bool,
    /// Its Content-Length.
    pub length: Option<u64>,
    /// Whether its content is chunked; HTTP/2 has frames instead (RFC 9113 section 8.1).
    pub is_chunked: bool,
    /// Bytes of the head in the input.
    pub consumed: usize,
}

/// The response is malformed, or opens a WebSocket that was not requested.
#[derive(Debug)]
pub struct BadAnswer;

/// Parses the head at the beginning of `input`, everything received so far; `None`: incomplete. `accept` is the value
/// of Sec-WebSocket-Accept that a 101 must have; `None`: 101 is not valid.
pub fn parse(input: &[u8], accept: Option<&[u8]>) -> Result<Option<Answer>, BadAnswer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let consumed = match parsed.parse(input) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        _ => return Err(BadAnswer),
    };
    let status = parsed.code.ok_or(BadAnswer)?;
    let is_switching = status == 101;
    let is_interim = (100..200).contains(&status) && !is_switching;
    let find = |name: &str| {
        parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    if is_switching && (accept.is_none() || find("sec-websocket-accept") != accept) {
        return Err(BadAnswer);
    }
    let length = find("content-length").and_then(|value| str::from_utf8(value).ok()?.trim().parse().ok());
    let is_chunked = match find("transfer-encoding") {
        None => false,
        Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => true,
        Some(_) => return Err(BadAnswer),
    };
    let mut response = Response::new(());
    // RFC 8441 section 5: 200 opens the WebSocket.
    let status = if is_switching { 200 } else { status };
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| BadAnswer)?;
    for header in parsed.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        if OMITTED.contains(&name.as_str()) {
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BadAnswer)?;
        response.headers_mut().append(name, HeaderValue::from_bytes(header.value).map_err(|_| BadAnswer)?);
    }
    Ok(Some(Answer { response, is_switching, is_interim, length, is_chunked, consumed }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_101_becomes_a_200_if_its_key_is_right() {
        let input = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: right\r\nSec-WebSocket-Protocol: chat\r\n\r\n\x81\x00";
        let answer = parse(input, Some(b"right")).unwrap().unwrap();
        assert!(answer.is_switching && answer.response.status() == 200);
        let headers: Vec<_> = answer.response.headers().iter().collect();
        assert_eq!(headers.len(), 1);
        assert_eq!(answer.response.headers()["sec-websocket-protocol"], "chat");
        assert_eq!(&input[answer.consumed..], b"\x81\x00");
        assert!(parse(input, Some(b"wrong")).is_err());
        assert!(parse(input, None).is_err());
    }

    #[test]
    fn other_responses_keep_status_and_headers() {
        let input = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\nX: y\r\n\r\nno\n";
        let answer = parse(input, Some(b"right")).unwrap().unwrap();
        assert!(!answer.is_switching && answer.response.status() == 404);
        assert_eq!((answer.length, answer.response.headers().len()), (Some(3), 2));
        for cut in 0..answer.consumed {
            assert!(parse(&input[..cut], None).unwrap().is_none(), "{cut}");
        }
        let interim = parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", None).unwrap().unwrap();
        assert!(interim.is_interim && interim.consumed == 25);
        let chunked = |coding| {
            let input = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
            parse(input.as_bytes(), None).map(|answer| answer.unwrap().is_chunked)
        };
        assert!(chunked("chunked").unwrap() && chunked("gzip, chunked").is_err());
        assert!(parse(b"nonsense\r\n\r\n", None).is_err());
        assert!(parse(&vec![b'H'; MAX_HEAD], None).is_err());
    }
}
