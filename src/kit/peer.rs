//! A peer of a handler: a client on a host's Unix socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::handshake::client::{ClientHandshake, Response};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Error, Message, WebSocket};

use super::client;

/// A message, a frame, or the end of a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A fragment of a message.
    Fragment {
        /// Its payload.
        bytes: Vec<u8>,
        /// Whether the message is a text. Only the first fragment tells the peer.
        is_text: bool,
        /// Whether it is the first.
        is_first: bool,
        /// Whether it is the last.
        is_last: bool,
    },
    /// A Ping.
    Ping(Vec<u8>),
    /// A Pong.
    Pong(Vec<u8>),
    /// A Close frame; 1005 is one without a code.
    Close(u16, String),
    /// The end of the connection without a Close frame.
    End,
}

type Connection = WebSocket<UnixStream>;
type NotYet = HandshakeError<ClientHandshake<UnixStream>>;
type Reply = tungstenite::http::Response<Option<Vec<u8>>>;

enum State {
    /// It waits for the reply to its request.
    Requested(MidHandshake<ClientHandshake<UnixStream>>),
    /// It has a WebSocket.
    Open(Connection),
    /// Its request was refused, or its connection has ended.
    Ended,
}

/// A peer of the handler.
pub struct Peer {
    state: State,
    /// The reply to its request, once it has come.
    reply: Option<Box<Reply>>,
    /// Received before it was expected; at most [`MAX_QUEUE`].
    queue: VecDeque<Content>,
    /// It has stopped reading.
    is_stalled: bool,
    timeout: Duration,
}

/// Messages in the queue of a peer; more are left in the socket.
const MAX_QUEUE: usize = 10_000;

/// Connects. `timeout` also bounds each write.
pub fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let stream = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    stream.set_write_timeout(Some(timeout))?;
    stream.connect(&socket2::SockAddr::unix(socket)?)?;
    Ok(OwnedFd::from(stream).into())
}

impl Peer {
    /// Connects and sends its request.
    pub fn request(
        socket: &Path,
        target: &str,
        headers: &[(HeaderName, HeaderValue)],
        timeout: Duration,
    ) -> Result<Self, String> {
        let failed = |error: io::Error| format!("connect: {error}");
        let stream = connect(socket, timeout).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let mut request = format!("ws://localhost{target}")
            .into_client_request()
            .map_err(|error| format!("open {target}: {error}"))?;
        client::set(request.headers_mut(), headers);
        let mut peer =
            Peer { state: State::Ended, reply: None, queue: VecDeque::new(), is_stalled: false, timeout };
        peer.handle_reply(client_with_config(request, stream, Some(client::limits())))
            .map_err(|why| format!("open {target}: {why}"))?;
        Ok(peer)
    }

    /// Waits for the reply to its request, unless it has come. A refusal is not an error.
    pub fn settle(&mut self) -> Result<(), String> {
        let pending = match std::mem::replace(&mut self.state, State::Ended) {
            State::Requested(pending) => pending,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        let stream = pending.get_ref().get_ref();
        let blocks = stream.set_nonblocking(false);
        blocks.and_then(|()| stream.set_read_timeout(Some(self.timeout))).map_err(|why| why.to_string())?;
        self.handle_reply(pending.handshake())?;
        match self.state {
            State::Requested(_) => Err(format!("no reply to the request within {:?}", self.timeout)),
            _ => Ok(()),
        }
    }

    fn handle_reply(&mut self, result: Result<(Connection, Response), NotYet>) -> Result<(), String> {
        let incomplete = tungstenite::error::ProtocolError::HandshakeIncomplete;
        match result {
            Ok((connection, reply)) => {
                self.state = State::Open(connection);
                self.reply = Some(Box::new(reply));
            }
            Err(HandshakeError::Interrupted(pending)) => self.state = State::Requested(pending),
            Err(HandshakeError::Failure(Error::Http(reply))) => self.reply = Some(reply),
            Err(HandshakeError::Failure(Error::Io(_) | Error::ConnectionClosed)) => {}
            Err(HandshakeError::Failure(Error::Protocol(error))) if error == incomplete => {}
            Err(HandshakeError::Failure(error)) => return Err(error.to_string()),
        }
        Ok(())
    }

    /// The descriptor of its socket.
    pub fn fd(&self) -> Option<RawFd> {
        match &self.state {
            State::Requested(pending) => Some(pending.get_ref().get_ref().as_raw_fd()),
            State::Open(connection) => Some(connection.get_ref().as_raw_fd()),
            State::Ended => None,
        }
    }

    /// The status of the reply to its request; 0 if there was none.
    pub fn status(&self) -> u16 {
        self.reply.as_ref().map_or(0, |reply| reply.status().as_u16())
    }

    /// The values of a header of the reply.
    pub fn headers(&self, name: &HeaderName) -> Vec<String> {
        let values = self.reply.iter().flat_map(|reply| reply.headers().get_all(name));
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    /// Sends, and waits until the socket has accepted it.
    pub fn send(&mut self, content: &Content) -> Result<(), String> {
        self.settle()?;
        let status = self.status();
        let State::Open(connection) = &mut self.state else {
            return Err(format!("send: the connection is not open (status {status})"));
        };
        let message = match content {
            Content::Text(text) => Message::text(text.as_str()),
            Content::Binary(bytes) => Message::binary(bytes.clone()),
            Content::Fragment { bytes, is_text, is_first, is_last } => {
                let data = match (is_first, is_text) {
                    (true, true) => Data::Text,
                    (true, false) => Data::Binary,
                    (false, _) => Data::Continue,
                };
                Message::Frame(Frame::message(bytes.clone(), OpCode::Data(data), *is_last))
            }
            Content::Ping(bytes) => Message::Ping(bytes.clone().into()),
            Content::Pong(bytes) => Message::Pong(bytes.clone().into()),
            Content::Close(1005, _) => Message::Close(None),
            Content::Close(code, reason) => {
                Message::Close(Some(CloseFrame { code: (*code).into(), reason: reason.as_str().into() }))
            }
            Content::End => return Ok(()),
        };
        connection.get_ref().set_nonblocking(false).map_err(|error| error.to_string())?;
        connection.send(message).map_err(|error| format!("send: {error}"))
    }

    /// Sends without waiting; false if the socket is full.
    pub fn send_at_once(&mut self, content: &Content) -> bool {
        let State::Open(connection) = &mut self.state else { return false };
        let (Content::Binary(bytes), Ok(())) = (content, connection.get_ref().set_nonblocking(true)) else {
            return false;
        };
        connection.send(Message::binary(bytes.clone())).is_ok()
    }

    /// Drops the connection.
    pub fn vanish(&mut self) {
        self.state = State::Ended;
        self.queue.clear();
    }

    /// Stops reading, or resumes.
    pub fn stall(&mut self, is_stalled: bool) {
        self.is_stalled = is_stalled;
    }

    /// Receives without waiting, and answers Pings. Messages are queued, or discarded.
    pub fn read_available(&mut self, discard: bool) {
        while !self.is_stalled && self.queue.len() < MAX_QUEUE {
            match self.receive(None) {
                // The next read reports the end again.
                Ok(None | Some(Content::End)) | Err(_) => return,
                Ok(Some(_)) if discard => {}
                Ok(Some(content)) => self.queue.push_back(content),
            }
        }
    }

    /// The next message or frame. Pings and Pongs are ignored unless one is expected.
    pub fn next(&mut self, expected: &Content) -> Result<Content, String> {
        let wants_control = matches!(expected, Content::Ping(_) | Content::Pong(_));
        let next = self.read(self.timeout, wants_control)?;
        next.ok_or_else(|| format!("nothing within {:?}", self.timeout))
    }

    /// The first message or frame within this time, if any; Pings and Pongs are ignored.
    pub fn silent_for(&mut self, duration: Duration) -> Result<Option<Content>, String> {
        if matches!(self.state, State::Requested(_)) {
            sleep(duration);
            if let State::Requested(pending) = std::mem::replace(&mut self.state, State::Ended) {
                self.handle_reply(pending.handshake())?;
            }
            let is_silent = matches!(self.state, State::Requested(_));
            return if is_silent { Ok(None) } else { Err(format!("status {}", self.status())) };
        }
        self.read(duration, false)
    }

    /// The next message or frame, from the queue or received within this time; Pings and Pongs only if they are wanted.
    fn read(&mut self, timeout: Duration, wants_control: bool) -> Result<Option<Content>, String> {
        if self.is_stalled {
            return Err("nothing: the peer has stopped reading".to_owned());
        }
        let is_wanted =
            |content: &Content| wants_control || !matches!(content, Content::Ping(_) | Content::Pong(_));
        while let Some(content) = self.queue.pop_front() {
            if is_wanted(&content) {
                return Ok(Some(content));
            }
        }
        self.settle()?;
        let begun = Instant::now();
        while let Some(left) = timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            match self.receive(Some(left))? {
                Some(content) if !is_wanted(&content) => {}
                content => return Ok(content),
            }
        }
        Ok(None)
    }

    /// The same without the queue; does not wait if there is no time.
    fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Content>, String> {
        let status = self.status();
        let connection = match &mut self.state {
            State::Open(connection) => connection,
            State::Requested(_) => return Ok(None),
            State::Ended => {
                return match status {
                    101 | 0 => Ok(Some(Content::End)),
                    status => Err(format!("a refusal with status {status}")),
                };
            }
        };
        let stream = connection.get_ref();
        let is_set =
            stream.set_nonblocking(timeout.is_none()).and_then(|()| stream.set_read_timeout(timeout));
        is_set.map_err(|error| error.to_string())?;
        loop {
            return Ok(Some(match connection.read() {
                Ok(Message::Text(text)) => Content::Text(text.as_str().to_owned()),
                Ok(Message::Binary(bytes)) => Content::Binary(bytes.to_vec()),
                Ok(Message::Ping(bytes)) => Content::Ping(bytes.to_vec()),
                Ok(Message::Pong(bytes)) => Content::Pong(bytes.to_vec()),
                Ok(Message::Close(None)) => Content::Close(1005, String::new()),
                Ok(Message::Close(Some(frame))) => {
                    let _ = connection.flush(); // the answer; the peer may have disconnected
                    Content::Close(frame.code.into(), frame.reason.as_str().to_owned())
                }
                Ok(Message::Frame(_)) => continue,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => {
                    // After a protocol error the connection must not be read again.
                    self.state = State::Ended;
                    Content::End
                }
            }));
        }
    }
}
