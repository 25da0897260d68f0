//! Translates the output of a program (RFC 3875 section 6), a header and content, to an HTTP response. No process and
//! no socket: bytes in, bytes out.

use std::time::SystemTime;

use memchr::memchr;

use crate::http::{HSTS, Response};
use crate::proto::http1::field::{is_token, is_value};

/// Maximum bytes of a program's header.
pub const MAX_HEADER: usize = 16 * 1024;
/// Fields that the server sets, or that concern the connection; omitted.
const OMITTED: [&str; 6] = ["connection", "keep-alive", "trailer", "transfer-encoding", "upgrade", "date"];

/// The header of a program's output.
#[derive(Debug, PartialEq, Eq)]
pub struct OutputHeader {
    status: u16,
    fields: Vec<(String, String)>,
    /// Its Content-Length.
    length: Option<u64>,
}

/// How the content is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No content is sent, whatever the program prints.
    None,
    /// Remaining bytes of the Content-Length.
    Length(u64),
    /// RFC 9112 section 7.1.
    Chunked,
    /// The end of the connection.
    Close,
}

impl OutputHeader {
    /// Parses the header at the beginning of the output; returns it and its size. `Ok(None)`: incomplete. The error
    /// says what is wrong.
    pub fn parse(output: &[u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let mut header = Self { status: 0, fields: Vec::new(), length: None };
        let mut at = 0;
        while let Some(end) = output.get(at..).and_then(|rest| memchr(b'\n', rest)) {
            let line = output.get(at..at + end).unwrap_or_default();
            at += end + 1;
            if at > MAX_HEADER {
                break;
            }
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                return header.finish().map(|header| Some((header, at)));
            }
            header.add(line)?;
        }
        if output.len() >= MAX_HEADER { Err("header longer than 16 KiB") } else { Ok(None) }
    }

    fn add(&mut self, line: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "malformed header line; expected NAME: VALUE";
        let line = std::str::from_utf8(line).map_err(|_| "header line is not UTF-8")?;
        let (name, value) = line.split_once(':').ok_or(MALFORMED)?;
        let value = value.trim_matches([' ', '\t']);
        if !is_token(name.as_bytes()) || !is_value(value.as_bytes()) {
            return Err(MALFORMED);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("status") {
            let code = value.split(' ').next().unwrap_or_default();
            let status = code.parse().ok().filter(|status| code.len() == 3 && (200..=599).contains(status));
            if std::mem::replace(&mut self.status, status.ok_or("malformed Status; expected 200 to 599")?)
                != 0
            {
                return Err("more than one Status");
            }
            return Ok(());
        }
        if is("content-length") {
            let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let length = value.parse().ok().filter(|_| is_number).ok_or("malformed Content-Length")?;
            return match self.length.replace(length) {
                None => Ok(()),
                Some(_) => Err("more than one Content-Length"),
            };
        }
        // RFC 3875 section 6.3: at most one of each.
        let once = ["content-type", "location"].into_iter().find(|once| is(once));
        if once.is_some_and(|once| self.fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(once))) {
            return Err("more than one Content-Type or Location");
        }
        if !OMITTED.iter().any(|omitted| is(omitted)) {
            self.fields.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// RFC 3875 section 6.2: a header has Content-Type, Location or Status. Without Status, a Location is a redirect.
    fn finish(mut self) -> Result<Self, &'static str> {
        let has = |name: &str| self.fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        if self.status == 0 {
            self.status = match (has("location"), has("content-type")) {
                (true, _) => 302,
                (false, true) => 200,
                (false, false) => return Err("no Content-Type, Location or Status in the header"),
            };
        }
        Ok(self)
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// How the content is delimited in the response to this request.
    pub fn framing(&self, is_head: bool, minor_version: u8) -> Framing {
        match self.length {
            _ if is_head || matches!(self.status, 204 | 304) => Framing::None,
            Some(length) => Framing::Length(length),
            None if minor_version == 0 => Framing::Close,
            None => Framing::Chunked,
        }
    }

    /// The head of the response. `hsts` is a Strict-Transport-Security, unless the program has one of its own.
    pub fn response(&self, now: SystemTime, framing: Framing, hsts: Option<&str>) -> Vec<u8> {
        let length = self.length.map(|length| length.to_string());
        let mut fields: Vec<(&str, &str)> =
            self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Some(length) = length.as_deref().filter(|_| !matches!(self.status, 204 | 304)) {
            fields.push(("Content-Length", length));
        }
        if framing == Framing::Chunked {
            fields.push(("Transfer-Encoding", "chunked"));
        }
        let has_own = fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(HSTS));
        Response::streamed(now, self.status, &fields).with_hsts(hsts.filter(|_| !has_own)).into_bytes()
    }
}

impl Framing {
    /// Appends a piece of content to `out`, without what exceeds the length. Returns how many bytes of it were
    /// appended.
    pub fn frame(&mut self, piece: &[u8], out: &mut Vec<u8>) -> usize {
        let mut sent = piece.len();
        match self {
            Framing::None => sent = 0,
            Framing::Close => out.extend_from_slice(piece),
            Framing::Length(left) => {
                let taken = piece.get(..(*left).min(piece.len() as u64) as usize).unwrap_or_default();
                *left -= taken.len() as u64;
                out.extend_from_slice(taken);
                sent = taken.len();
            }
            Framing::Chunked if piece.is_empty() => {} // an empty chunk would be the end
            Framing::Chunked => {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
        }
        sent
    }

    /// The bytes to send at the end of the output; `None`: content is missing, and the connection must be reset.
    pub fn end(self) -> Option<&'static [u8]> {
        match self {
            Framing::Length(left) if left > 0 => None,
            Framing::Chunked => Some(b"0\r\n\r\n"),
            _ => Some(b""),
        }
    }

    /// Whether the content is complete before the end of the output.
    pub fn is_complete(self) -> bool {
        matches!(self, Framing::None | Framing::Length(0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn head(output: &str, is_head: bool, minor_version: u8) -> String {
        let (header, _) = OutputHeader::parse(output.as_bytes()).unwrap().unwrap();
        let framing = header.framing(is_head, minor_version);
        let text = String::from_utf8(header.response(UNIX_EPOCH, framing, None)).unwrap();
        text.replace(
            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n",
            "",
        )
    }

    #[test]
    fn a_header_comes_in_pieces_of_any_size_with_either_line_end() {
        for output in ["Content-Type: a/b\nX-Y:  z \n\nbody", "Content-Type: a/b\r\nX-Y:z\r\n\r\nbody"] {
            let end = output.len() - 4;
            for cut in 0..end {
                assert_eq!(OutputHeader::parse(&output.as_bytes()[..cut]), Ok(None), "{cut}");
            }
            let (header, taken) = OutputHeader::parse(output.as_bytes()).unwrap().unwrap();
            assert_eq!((taken, header.status), (end, 200));
            let expected =
                "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nX-Y: z\r\nTransfer-Encoding: chunked\r\n\r\n";
            assert_eq!(head(output, false, 1), expected);
        }
    }

    #[test]
    fn status_location_and_length() {
        for (output, is_head, minor, expected) in [
            ("Status: 404 Nothing\n\n", false, 1, "404 Not Found\r\nTransfer-Encoding: chunked\r\n"),
            ("Location: /a\n\n", true, 1, "302 Found\r\nLocation: /a\r\n"),
            (
                "Status: 301\nLocation: http://a/\n\n",
                true,
                1,
                "301 Moved Permanently\r\nLocation: http://a/\r\n",
            ),
            ("Content-Type: a/b\n\n", false, 0, "200 OK\r\nContent-Type: a/b\r\n"),
            (
                "Content-Type: a/b\nContent-Length: 3\n\n",
                true,
                1,
                "200 OK\r\nContent-Type: a/b\r\nContent-Length: 3\r\n",
            ),
            ("Status: 204\nContent-Length: 3\n\n", false, 1, "204 No Content\r\n"),
            (
                "Content-Type: a/b\nSet-Cookie: a\nSet-Cookie: b\nConnection: keep-alive\nTransfer-Encoding: gzip\n\n",
                true,
                1,
                "200 OK\r\nContent-Type: a/b\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n",
            ),
        ] {
            assert_eq!(head(output, is_head, minor), format!("HTTP/1.1 {expected}\r\n"), "{output}");
        }
    }

    #[test]
    fn a_program_may_have_its_own_hsts() {
        for (output, expected) in [
            ("Content-Type: a/b\n\n", "Strict-Transport-Security: max-age=7\r\n"),
            ("Content-Type: a/b\nstrict-transport-security: x\n\n", "strict-transport-security: x\r\n"),
        ] {
            let (header, _) = OutputHeader::parse(output.as_bytes()).unwrap().unwrap();
            let head = header.response(UNIX_EPOCH, Framing::None, Some("max-age=7"));
            let head = String::from_utf8(head).unwrap();
            assert!(head.contains(expected) && head.to_lowercase().matches("strict").count() == 1, "{head}");
        }
    }

    #[test]
    fn malformed_headers() {
        for output in [
            "\n",
            "X: y\n\n",
            "hello\n\n",
            "HTTP/1.1 200 OK\nContent-Type: a/b\n\n",
            "Content-Type: a/b\n folded: c\n\n",
            "Content-Type: a/b\nX: y\rSet-Cookie: evil\n\n",
            "Content-Type: a/b\nX: y\0\n\n",
            "Content-Type: a/b\nContent-Type: c/d\n\n",
            "Status: 101\n\n",
            "Status: 99\n\n",
            "Status: 0200\n\n",
            "Status: 200\nStatus: 200\n\n",
            "Content-Type: a/b\nContent-Length: +1\n\n",
            "Content-Type: a/b\nContent-Length: 1\nContent-Length: 1\n\n",
            "Content-Type: \u{1}\n\n",
        ] {
            assert!(OutputHeader::parse(output.as_bytes()).is_err(), "{output:?}");
        }
        assert!(OutputHeader::parse(&[b'a'; MAX_HEADER]).is_err());
        let long = format!("Content-Type: a/b\n{}\n", "A: b\n".repeat(MAX_HEADER));
        assert!(OutputHeader::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn content_is_framed() {
        let framed = |mut framing: Framing| {
            let mut out = Vec::new();
            for piece in ["", "abc", "0123456789abcdef"] {
                framing.frame(piece.as_bytes(), &mut out);
            }
            (String::from_utf8(out).unwrap(), framing.end().map(<[u8]>::len), framing.is_complete())
        };
        let all = "abc0123456789abcdef".to_owned();
        assert_eq!(framed(Framing::Close), (all.clone(), Some(0), false));
        assert_eq!(framed(Framing::Length(19)), (all.clone(), Some(0), true));
        assert_eq!(framed(Framing::Length(20)), (all, None, false));
        assert_eq!(framed(Framing::Length(2)), ("ab".to_owned(), Some(0), true));
        assert_eq!(framed(Framing::None), (String::new(), Some(0), true));
        let chunks = "3\r\nabc\r\n10\r\n0123456789abcdef\r\n".to_owned();
        assert_eq!(framed(Framing::Chunked), (chunks, Some(5), false));
    }
}
