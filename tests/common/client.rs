//! Clients for tests: tungstenite for valid behaviour, and a raw one, which writes
//! any bytes, for invalid behaviour.
#![allow(dead_code)] // each test program uses a part

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

/// For one step of the server; longer than a busy machine may keep one of its threads waiting.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The headers that make a request an opening handshake; the key of RFC 6455 section 1.3.
pub const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

pub type Client = WebSocket<TcpStream>;

/// A tungstenite client.
#[track_caller]
pub fn connect(address: &str, resource: &str) -> Client {
    connect_with(address, resource, &[]).0
}

/// The same with more headers; also returns the headers of the answer.
#[track_caller]
pub fn connect_with(
    address: &str,
    resource: &str,
    headers: &[(&'static str, &str)],
) -> (Client, tungstenite::http::HeaderMap) {
    let mut request = format!("ws://{address}{resource}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let (client, response) =
        tungstenite::client::client_with_config(request, tcp(address), Some(config)).unwrap();
    (client, response.headers().clone())
}

pub fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects to a Unix stream socket.
#[track_caller]
pub fn unix(path: impl AsRef<Path>) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Sends a text and returns the text that comes next.
#[track_caller]
pub fn ask(client: &mut Client, text: &str) -> String {
    client.send(Message::text(text)).unwrap();
    next_text(client)
}

/// The next message, which must be text.
#[track_caller]
pub fn next_text(client: &mut Client) -> String {
    loop {
        match client.read().unwrap() {
            Message::Text(text) => return text.as_str().to_owned(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("expected a text, got {other:?}"),
        }
    }
}

/// Reads to the end of the connection; returns code and reason of the Close frame, 1005 if it has no code,
/// 1006 if there was no Close frame.
#[track_caller]
pub fn close_of(client: &mut Client) -> (u16, String) {
    let mut close = (1006, String::new());
    loop {
        match client.read() {
            Ok(Message::Close(frame)) => {
                let frame = frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()));
                close = frame.unwrap_or((1005, String::new()));
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the server does not end the connection")
            }
            Err(_) => return close,
        }
    }
}

/// A close frame to send.
pub fn close_frame(code: u16, reason: &str) -> Option<tungstenite::protocol::CloseFrame> {
    Some(tungstenite::protocol::CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() })
}

/// A raw client over any stream.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    /// Bytes read and not consumed.
    input: Vec<u8>,
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

/// An HTTP response that ends with the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// The first header of this name in a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A masked frame with that first byte.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        size @ 0..=125 => bytes.push(0x80 | size as u8),
        size @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The payload of a Close frame.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

impl Raw {
    pub fn connect(address: &str) -> Raw {
        Raw::over(tcp(address))
    }

    /// An open WebSocket without extensions.
    #[track_caller]
    pub fn open(address: &str, resource: &str) -> Raw {
        let mut raw = Raw::connect(address);
        raw.upgrade(resource, "");
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn over(stream: S) -> Self {
        Raw { stream, input: Vec::new() }
    }

    /// The stream; all received bytes must have been consumed.
    pub fn into_stream(self) -> S {
        assert!(self.input.is_empty());
        self.stream
    }

    /// Sends an opening handshake, which must succeed; returns the head of the response.
    #[track_caller]
    pub fn upgrade(&mut self, resource: &str, headers: &str) -> String {
        self.send(format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}{headers}\r\n").as_bytes());
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        head
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&frame(first, payload));
    }

    pub fn text(&mut self, text: &str) {
        self.frame(TEXT, text.as_bytes());
    }

    /// Reads up to the first empty line.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let end = loop {
            match self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => assert!(self.fill(), "the connection ended within a head: {:?}", self.input),
            }
        };
        String::from_utf8(self.input.drain(..end).collect()).unwrap()
    }

    /// Reads a response to the end of the connection.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let head = self.head();
        Answer { status: head[9..12].parse().unwrap(), head, body: self.rest() }
    }

    /// All bytes to the end of the connection.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.input)
    }

    /// The next frame; None at the end of the connection.
    #[track_caller]
    pub fn next(&mut self) -> Option<Frame> {
        let first = self.byte(0)?;
        let second = self.byte(1)?;
        assert_eq!(second & 0x80, 0, "a server does not mask (RFC 6455 section 5.1)");
        let (header, size) = match second {
            126 => (4, usize::from(u16::from_be_bytes([self.byte(2)?, self.byte(3)?]))),
            127 => {
                let mut size = [0; 8];
                for (at, byte) in size.iter_mut().enumerate() {
                    *byte = self.byte(2 + at)?;
                }
                (10, u64::from_be_bytes(size) as usize)
            }
            size => (2, usize::from(size)),
        };
        while self.input.len() < header + size {
            if !self.fill() {
                return None;
            }
        }
        let payload = self.input[header..header + size].to_vec();
        self.input.drain(..header + size);
        Some(Frame { first, payload })
    }

    /// The next frame must be a whole text. Pings before it, which come after half a minute, are answered.
    #[track_caller]
    pub fn next_text(&mut self) -> String {
        loop {
            let frame = self.next().expect("a text, not the end");
            if frame.first == PING {
                self.frame(PONG, &frame.payload);
                continue;
            }
            assert_eq!(frame.first, TEXT, "{frame:?}");
            return String::from_utf8(frame.payload).unwrap();
        }
    }

    /// Sends a text and returns the text that comes next.
    #[track_caller]
    pub fn ask(&mut self, text: &str) -> String {
        self.text(text);
        self.next_text()
    }

    /// Skips to the Close frame and asserts its code; returns its reason. 1005: an empty one.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("expected a Close with {code}, not the end"));
            if frame.first != CLOSE {
                continue;
            }
            let got = match frame.payload[..] {
                [high, low, ..] => u16::from_be_bytes([high, low]),
                _ => 1005,
            };
            assert_eq!(got, code, "{frame:?}");
            return String::from_utf8(frame.payload.get(2..).unwrap_or_default().to_vec()).unwrap();
        }
    }

    /// Asserts that the connection ends without further data.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let frame = self.next();
        assert!(frame.is_none(), "expected the end, got {frame:?}");
    }

    /// Reads once; false at the end of the connection or on an error.
    #[track_caller]
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => false,
            Err(error) => panic!("nothing comes: {error}; so far {} bytes", self.input.len()),
        }
    }

    #[track_caller]
    fn byte(&mut self, at: usize) -> Option<u8> {
        while self.input.len() <= at {
            if !self.fill() {
                return None;
            }
        }
        self.input.get(at).copied()
    }
}
