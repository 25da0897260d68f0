//! One end of a conversation: a client on the server's Unix socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::Response;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Error, Message, WebSocket};

use super::script::Content;

/// A peer of the handler.
pub struct Peer {
    /// None when its request was refused, or it has vanished.
    connection: Option<WebSocket<UnixStream>>,
    /// The reply to its request; none: there was none.
    reply: Option<Box<tungstenite::http::Response<Option<Vec<u8>>>>>,
    patience: Duration,
}

impl Peer {
    /// Connects and shakes hands. A refusal is an answer like another.
    pub fn open(
        socket: &Path,
        target: &str,
        headers: &[(HeaderName, HeaderValue)],
        patience: Duration,
    ) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("connect: {error}"))?;
        let timeouts =
            stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)));
        timeouts.map_err(|error| error.to_string())?;
        let mut request = format!("ws://localhost{target}")
            .into_client_request()
            .map_err(|error| format!("open {target}: {error}"))?;
        for (name, _) in headers {
            request.headers_mut().remove(name);
        }
        for (name, value) in headers {
            request.headers_mut().append(name.clone(), value.clone());
        }
        let (connection, reply): (_, Option<Response>) = match client_with_config(request, stream, None) {
            Ok((connection, reply)) => (Some(connection), Some(reply)),
            Err(HandshakeError::Failure(Error::Http(reply))) => (None, Some(*reply)),
            Err(HandshakeError::Failure(Error::Io(_) | Error::ConnectionClosed)) => (None, None),
            Err(HandshakeError::Failure(Error::Protocol(
                tungstenite::error::ProtocolError::HandshakeIncomplete,
            ))) => (None, None),
            Err(HandshakeError::Interrupted(_)) => {
                return Err(format!("open {target}: no reply within {patience:?}"));
            }
            Err(HandshakeError::Failure(error)) => return Err(format!("open {target}: {error}")),
        };
        Ok(Peer { connection, reply: reply.map(Box::new), patience })
    }

    /// Of the reply to its request; 0 if there was none.
    pub fn status(&self) -> u16 {
        self.reply.as_ref().map_or(0, |reply| reply.status().as_u16())
    }

    /// The values of a header of the reply.
    pub fn headers(&self, name: &HeaderName) -> Vec<String> {
        let values = self.reply.iter().flat_map(|reply| reply.headers().get_all(name));
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    /// Sends, and waits until the socket has taken it.
    pub fn send(&mut self, content: &Content) -> Result<(), String> {
        let status = self.status();
        let Some(connection) = &mut self.connection else {
            return Err(format!("send: the connection is not open (status {status})"));
        };
        let message = match content {
            Content::Text(text) => Message::text(text.as_str()),
            Content::Binary(bytes) => Message::binary(bytes.clone()),
            Content::Fragment(text, is_first, is_last) => {
                let data = if *is_first { Data::Text } else { Data::Continue };
                let frame = Frame::message(text.as_bytes().to_vec(), OpCode::Data(data), *is_last);
                Message::Frame(frame)
            }
            Content::Ping(bytes) => Message::Ping(bytes.clone().into()),
            Content::Pong(bytes) => Message::Pong(bytes.clone().into()),
            Content::Close(1005, _) => Message::Close(None),
            Content::Close(code, reason) => {
                Message::Close(Some(CloseFrame { code: (*code).into(), reason: reason.as_str().into() }))
            }
            Content::End => return Ok(()),
        };
        connection.send(message).map_err(|error| format!("send: {error}"))
    }

    /// Is gone at once.
    pub fn vanish(&mut self) {
        self.connection = None;
    }

    /// What comes next. Pings and pongs are passed over unless one is expected.
    pub fn next(&mut self, expected: &Content) -> Result<Content, String> {
        let wants_control = matches!(expected, Content::Ping(_) | Content::Pong(_));
        loop {
            match self.read(self.patience)? {
                None => return Err(format!("nothing within {:?}", self.patience)),
                Some(Content::Ping(_) | Content::Pong(_)) if !wants_control => {}
                Some(content) => return Ok(content),
            }
        }
    }

    /// What comes within this time, if anything does.
    pub fn silent_for(&mut self, duration: Duration) -> Option<Content> {
        self.read(duration).unwrap_or(Some(Content::End))
    }

    /// What comes within this time.
    fn read(&mut self, patience: Duration) -> Result<Option<Content>, String> {
        let status = self.status();
        let Some(connection) = &mut self.connection else {
            return match status {
                101 | 0 => Ok(Some(Content::End)),
                status => Err(format!("a refusal with status {status}")),
            };
        };
        connection.get_ref().set_read_timeout(Some(patience)).map_err(|error| error.to_string())?;
        loop {
            return Ok(Some(match connection.read() {
                Ok(Message::Text(text)) => Content::Text(text.as_str().to_owned()),
                Ok(Message::Binary(bytes)) => Content::Binary(bytes.to_vec()),
                Ok(Message::Ping(bytes)) => Content::Ping(bytes.to_vec()),
                Ok(Message::Pong(bytes)) => Content::Pong(bytes.to_vec()),
                Ok(Message::Close(None)) => Content::Close(1005, String::new()),
                Ok(Message::Close(Some(frame))) => {
                    let _ = connection.flush(); // the answer; who has closed may be gone
                    Content::Close(frame.code.into(), frame.reason.as_str().to_owned())
                }
                Ok(Message::Frame(_)) => continue,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => Content::End,
            }));
        }
    }
}
