//! An HTTP/2 client that writes raw frames, so that it can violate the protocol. It sends headers as literals and
//! decodes only the status of responses.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::tls::{Client, Tls};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const WINDOW: u16 = 4;
/// SETTINGS_ENABLE_CONNECT_PROTOCOL.
pub const CONNECT_PROTOCOL: u16 = 8;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a response: from the static table, or digits in Huffman's code (RFC 7541 appendices A and B).
    pub fn status(&self) -> u16 {
        match self.payload[0] {
            first @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
            0x48 | 0x08 => {
                let mut bits = u32::from_be_bytes([
                    self.payload[2],
                    self.payload[3],
                    self.payload.get(4).copied().unwrap_or(0),
                    0,
                ]);
                let mut status = 0;
                for _ in 0..3 {
                    let (digit, size) = match bits >> 27 {
                        small @ 0..3 => (small, 5),
                        _ => ((bits >> 26) - 0b011001 + 3, 6),
                    };
                    status = status * 10 + digit as u16;
                    bits <<= size;
                }
                status
            }
            _ => 0,
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![size[1], size[2], size[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of literals (RFC 7541 section 6.2.2).
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    fn string(text: &str, to: &mut Vec<u8>) {
        let mut size = text.len();
        if size < 127 {
            to.push(size as u8);
        } else {
            to.push(127);
            size -= 127;
            while size >= 128 {
                to.push((size % 128 + 128) as u8);
                size /= 128;
            }
            to.push(size as u8);
        }
        to.extend(text.as_bytes());
    }
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        string(name, &mut block);
        string(value, &mut block);
    }
    block
}

pub fn get(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path)])
}

pub fn connect(path: &str) -> Vec<u8> {
    block(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("sec-websocket-version", "13"),
    ])
}

/// A WebSocket frame as a client sends it.
pub fn ws(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        size @ 0..126 => bytes.push(0x80 | size as u8),
        size @ 126..65536 => bytes.extend([&[0xfe][..], &(size as u16).to_be_bytes()].concat()),
        size => bytes.extend([&[0xff][..], &(size as u64).to_be_bytes()].concat()),
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

pub struct H2<S = Tls> {
    stream: S,
    /// From the server's first SETTINGS.
    pub settings: HashMap<u16, u32>,
    next: u32,
    /// The send window of each stream; 0: of the connection.
    windows: HashMap<u32, i64>,
    /// Received frames of other streams.
    waiting: Vec<Frame>,
    /// The server has sent GOAWAY.
    pub is_going_away: bool,
}

impl H2 {
    pub fn open(client: &Client, port: u16) -> Self {
        Self::open_with(client, port, &[])
    }

    pub fn open_with(client: &Client, port: u16, settings: &[(u16, u32)]) -> Self {
        let stream = client.connect(port).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
        Self::on(stream, settings)
    }
}

impl<S: Read + Write> H2<S> {
    pub fn on(stream: S, settings: &[(u16, u32)]) -> Self {
        let (settings_, windows, waiting) = Default::default();
        let mut h2 = Self { stream, settings: settings_, next: 1, windows, waiting, is_going_away: false };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        h2.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat());
        let first = h2.read().unwrap();
        assert_eq!((first.kind, first.flags), (SETTINGS, 0));
        for entry in first.payload.chunks(6) {
            let key = u16::from_be_bytes([entry[0], entry[1]]);
            h2.settings.insert(key, u32::from_be_bytes(entry[2..6].try_into().unwrap()));
        }
        h2.send(&frame(SETTINGS, ACK, 0, &[]));
        h2
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; size];
        self.stream.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        if head[3] == WINDOW_UPDATE {
            let more = u32::from_be_bytes(payload[..4].try_into().unwrap());
            *self.window(stream) += i64::from(more);
        }
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of this stream, or GOAWAY with an error.
    pub fn next(&mut self, stream: u32) -> io::Result<Frame> {
        if let Some(at) = self.waiting.iter().position(|frame| frame.stream == stream) {
            return Ok(self.waiting.remove(at));
        }
        loop {
            let frame = self.read()?;
            match frame.kind {
                PING if frame.flags & ACK == 0 => self.send(&self::frame(PING, ACK, 0, &frame.payload)),
                SETTINGS | WINDOW_UPDATE | PING => {}
                GOAWAY if frame.code() == 0 => self.is_going_away = true,
                GOAWAY => return Ok(frame),
                _ if frame.stream == stream => return Ok(frame),
                _ => self.waiting.push(frame),
            }
        }
    }

    fn window(&mut self, stream: u32) -> &mut i64 {
        self.windows.entry(stream).or_insert(65_535)
    }

    /// Sends data, waiting for the windows to open.
    pub fn send_data(&mut self, stream: u32, mut data: &[u8]) {
        while !data.is_empty() {
            let room = (*self.window(0)).min(*self.window(stream)).min(16_384);
            if room <= 0 {
                let frame = self.read().unwrap();
                self.waiting.extend((frame.kind != WINDOW_UPDATE).then_some(frame));
                continue;
            }
            let (now, later) = data.split_at(data.len().min(room as usize));
            *self.window(0) -= now.len() as i64;
            *self.window(stream) -= now.len() as i64;
            self.send(&frame(DATA, 0, stream, now));
            data = later;
        }
    }

    /// A new stream with these headers.
    pub fn begin(&mut self, block: &[u8], flags: u8) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.send(&frame(HEADERS, END_HEADERS | flags, stream, block));
        stream
    }

    /// A WebSocket.
    #[track_caller]
    pub fn websocket(&mut self, path: &str) -> u32 {
        let stream = self.begin(&connect(path), 0);
        let answer = self.next(stream).unwrap();
        assert_eq!((answer.kind, answer.status(), answer.flags & END_STREAM), (HEADERS, 200, 0));
        stream
    }

    /// Reads this many bytes of data, and opens the windows again.
    pub fn data(&mut self, stream: u32, size: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < size {
            let got = self.next(stream).unwrap();
            assert_eq!(got.kind, DATA, "{got:?}");
            data.extend(&got.payload);
            let more = (got.payload.len() as u32).to_be_bytes();
            if !got.payload.is_empty() {
                self.send(&frame(WINDOW_UPDATE, 0, 0, &more));
                self.send(&frame(WINDOW_UPDATE, 0, stream, &more));
            }
        }
        assert_eq!(data.len(), size);
        data
    }

    /// Sends a message and waits for its echo.
    #[track_caller]
    pub fn echo(&mut self, stream: u32, text: &str) {
        self.send(&frame(DATA, 0, stream, &ws(1, text.as_bytes())));
        let data = self.data(stream, 2 + text.len());
        assert_eq!(&data[2..], text.as_bytes());
    }

    /// Reads to the end of the connection: the code of GOAWAY, if one came.
    pub fn goaway(&mut self) -> Option<u32> {
        loop {
            match self.read() {
                Ok(frame) if frame.kind == GOAWAY => return Some(frame.code()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}
