//! permessage-deflate (RFC 7692) between tungstenite, which does not support it, and the socket: inflates the frames
//! that are read and compresses those that are written.

use std::io::{self, Cursor, Read, Write};

use bytes::{Buf, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::client::MAX_MESSAGE;
use crate::proto::ws::deflate::codec::{Codecs, Deflate};
use crate::proto::ws::deflate::negotiate::Params;
use crate::proto::ws::mask::Mask;

/// Size of a read from the socket; bytes.
const BLOCK: usize = 16 << 10;
/// The default of zlib and of most clients.
const LEVEL: u8 = 6;

/// A layer between tungstenite and the socket.
pub struct Filter {
    state: State,
    /// Received bytes of an incomplete frame or response head.
    received: BytesMut,
    /// Inflated frames to be read.
    ready: BytesMut,
    /// Written bytes of an incomplete frame.
    written: BytesMut,
    /// Compressed bytes that the socket has not accepted; they are sent before anything else.
    unsent: BytesMut,
}

enum State {
    /// During the handshake. Only the head of a 101 response is passed on: the bytes after it may be compressed.
    Handshake,
    /// The server has declined.
    Plain,
    Compressed(Box<Codec>),
}

struct Codec {
    deflate: Deflate,
    codecs: Codecs,
    /// The message that is being received is compressed.
    is_inflating: bool,
    /// Inflated bytes of it; at most [`MAX_MESSAGE`].
    inflated: usize,
}

impl Filter {
    /// For a connection whose request offers compression.
    pub fn new() -> Self {
        let (received, ready, written, unsent) = Default::default();
        Filter { state: State::Handshake, received, ready, written, unsent }
    }

    /// The handshake is over, with these parameters negotiated.
    pub fn agree(&mut self, params: Option<Params>) -> io::Result<()> {
        self.state = match params {
            None => State::Plain,
            Some(params) => State::Compressed(Box::new(Codec {
                deflate: Deflate::new(params, 0, LEVEL),
                codecs: Codecs::new(),
                is_inflating: false,
                inflated: 0,
            })),
        };
        self.pass_received()
    }

    /// As [`Read::read`].
    pub fn read(&mut self, socket: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            let mut block = [0; BLOCK];
            let count = socket.read(&mut block)?;
            if count == 0 {
                return Ok(0);
            }
            self.received.extend_from_slice(block.get(..count).unwrap_or_default());
            self.pass_received()?;
        }
        let count = buffer.len().min(self.ready.len());
        self.ready.split_to(count).copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }

    fn pass_received(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Handshake if self.received.starts_with(b"HTTP/1.1 101") => {
                let end = memchr::memmem::find(&self.received, b"\r\n\r\n").map_or(0, |end| end + 4);
                self.ready.unsplit(self.received.split_to(end));
            }
            State::Handshake | State::Plain => self.ready.unsplit(self.received.split()),
            State::Compressed(codec) => {
                while let Some((header, payload)) = next_frame(&mut self.received)? {
                    codec.inflate(header, &payload, &mut self.ready)?;
                }
            }
        }
        Ok(())
    }

    /// As [`Write::write`].
    pub fn write(&mut self, socket: &mut (impl Write + ?Sized), bytes: &[u8]) -> io::Result<usize> {
        let State::Compressed(codec) = &mut self.state else { return socket.write(bytes) };
        send(&mut self.unsent, socket)?;
        self.written.extend_from_slice(bytes);
        while let Some((header, payload)) = next_frame(&mut self.written)? {
            codec.compress(header, payload, &mut self.unsent)?;
        }
        match send(&mut self.unsent, socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }

    /// As [`Write::flush`].
    pub fn flush(&mut self, socket: &mut (impl Write + ?Sized)) -> io::Result<()> {
        send(&mut self.unsent, socket)?;
        socket.flush()
    }
}

impl Codec {
    /// Appends a frame of the server, inflated.
    fn inflate(&mut self, mut header: FrameHeader, payload: &[u8], out: &mut BytesMut) -> io::Result<()> {
        let OpCode::Data(data) = header.opcode else { return append(&header, payload, out) };
        if data != Data::Continue {
            (self.is_inflating, self.inflated) = (header.rsv1, 0);
            header.rsv1 = false; // in a continuation it is an error, which tungstenite reports
        }
        if !self.is_inflating {
            return append(&header, payload, out);
        }
        let (mut plain, left) = (Vec::new(), MAX_MESSAGE - self.inflated);
        let inflated = self.deflate.inflate(&mut self.codecs, payload, header.is_final, left, &mut plain);
        inflated.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.inflated += plain.len();
        append(&header, &plain, out)
    }

    /// Appends a frame of the client, compressed. `payload` is unmasked.
    fn compress(&mut self, mut header: FrameHeader, payload: BytesMut, out: &mut BytesMut) -> io::Result<()> {
        let OpCode::Data(data) = header.opcode else { return append(&header, &payload, out) };
        header.rsv1 = data != Data::Continue;
        let mut compressed = Vec::new();
        self.deflate.compress(&mut self.codecs, &payload, header.is_final, &mut compressed);
        append(&header, &compressed, out)
    }
}

/// Takes the first frame, if it is complete, and unmasks it.
fn next_frame(bytes: &mut BytesMut) -> io::Result<Option<(FrameHeader, BytesMut)>> {
    let mut cursor = Cursor::new(&bytes[..]);
    let Some((header, size)) = FrameHeader::parse(&mut cursor).map_err(io::Error::other)? else {
        return Ok(None);
    };
    if size > MAX_MESSAGE as u64 {
        return Err(io::Error::other(format!("a frame of {size} bytes is too long")));
    }
    let (start, size) = (cursor.position() as usize, size as usize);
    if bytes.len() - start < size {
        return Ok(None);
    }
    bytes.advance(start);
    let mut payload = bytes.split_to(size);
    if let Some(key) = header.mask {
        Mask::new(key).apply(&mut payload);
    }
    Ok(Some((header, payload)))
}

/// Appends a frame, masked if its header says so.
fn append(header: &FrameHeader, payload: &[u8], out: &mut BytesMut) -> io::Result<()> {
    let mut head = Vec::new();
    header.format(payload.len() as u64, &mut head).map_err(io::Error::other)?;
    out.extend_from_slice(&head);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some((key, payload)) = header.mask.zip(out.get_mut(start..)) {
        Mask::new(key).apply(payload);
    }
    Ok(())
}

fn send(bytes: &mut BytesMut, socket: &mut (impl Write + ?Sized)) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes.advance(count),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::ws::deflate::negotiate::answered;
    use crate::proto::ws::extension;

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    fn filter() -> Filter {
        let mut filter = Filter::new();
        let agreed = extension::parse([b"permessage-deflate".as_slice()].into_iter()).unwrap();
        filter.agree(answered(&agreed)).unwrap();
        filter
    }

    /// The bytes read if the socket returns these pieces.
    fn read(filter: &mut Filter, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for piece in pieces {
            let (mut socket, mut buffer) = (*piece, [0; 7]);
            loop {
                match filter.read(&mut socket, &mut buffer)? {
                    0 => break,
                    count => all.extend(&buffer[..count]),
                }
            }
        }
        Ok(all)
    }

    #[test]
    fn compressed_messages_become_plain_wherever_they_are_cut() {
        // RFC 7692 7.2.3: one fragment, two with a Ping between, the last message again (7.2.3.2), and one
        // uncompressed.
        let frames = [
            b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00".as_slice(),
            b"\x41\x03\xf2\x00\x11\x89\x01p\x80\x03\x00\x00\x00",
            b"\x81\x02hi",
        ];
        let input = [frames[0], frames[0], frames[2]].concat();
        let expected = b"\x81\x05Hello\x81\x05Hello\x81\x02hi";
        for cut in 0..input.len() {
            let (first, second) = input.split_at(cut);
            assert_eq!(read(&mut filter(), &[first, second]).unwrap(), expected, "cut at {cut}");
        }
        let pieces = [b"\x41\x03\xf2\x48\xcd\x89\x01p".as_slice(), b"\x80\x04\xc9\xc9\x07\x00"];
        let fragments = read(&mut filter(), &pieces).unwrap();
        assert!(fragments.starts_with(b"\x01") && fragments.ends_with(b"lo"), "{fragments:x?}");
        assert_eq!(fragments.iter().filter(|byte| **byte == b'l').count(), 2);
        // Invalid deflate data is an error; RSV1 in a control frame is passed on.
        assert!(read(&mut filter(), &[frames[1]]).is_err());
        assert_eq!(read(&mut filter(), &[b"\xc0\x01x"]).unwrap(), b"\xc0\x01x");
    }

    #[test]
    fn bytes_after_the_response_are_kept() {
        let mut filter = Filter::new();
        let input = [HEAD, b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"].concat();
        assert_eq!(read(&mut filter, &[&input]).unwrap(), HEAD);
        filter.agree(None).unwrap();
        assert_eq!(read(&mut filter, &[b""]).unwrap_or_default(), input[HEAD.len()..]);
        let refusal = b"HTTP/1.1 403 Forbidden\r\n\r\nnot today";
        assert_eq!(read(&mut Filter::new(), &[refusal]).unwrap(), refusal);
    }

    #[test]
    fn messages_are_compressed_and_masked_and_wait_for_the_socket() {
        let (mut filter, mut socket) = (filter(), Vec::new());
        let frame = [b"\x82\xff\0\0\0\0\0\x01\0\0\x01\x02\x03\x04".as_slice(), &[7; 65536]].concat();
        let control = b"\x89\x81\x01\x02\x03\x04\x05";
        for byte in frame.iter().chain(control) {
            assert_eq!(filter.write(&mut socket, &[*byte]).unwrap(), 1);
        }
        assert!(socket.starts_with(b"\xc2") && socket.ends_with(control), "{socket:x?}");
        assert!(socket.len() < 1000, "{} bytes", socket.len());

        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::WouldBlock.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(filter.write(&mut Full, control).unwrap(), control.len());
        assert!(filter.write(&mut Full, control).is_err() && filter.flush(&mut Full).is_err());
        socket.clear();
        filter.flush(&mut socket).unwrap();
        assert_eq!(socket, control);
    }
}
