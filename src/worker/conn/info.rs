//! What handlers may ask about a connection, wherever the answer lies: in the
//! handshake, in the record of an open connection, or with a blocking thread.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ::ws_handler::raw::*;
use socket2::{SockAddr, Socket};

use crate::ffi::host::{ABSENT, Address, ConnectionInfo, End, Fact, Number, followed_by_nul, terminated};
use crate::ffi::place::{Callback, place};
use crate::fleet::sockets::facts::GatewayFacts;
use crate::proto::ws::deflate::negotiate::Params;
use crate::worker::conn::channel::{Agreed, PeerClose};
use crate::worker::conn::record::{Record, Strings};
use crate::worker::conn::request::Request;

/// How far the life of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Handshake,
    Open,
    /// on_close is pending, or running.
    Over,
}

/// The facts of one connection, borrowed from where they lie.
pub struct Info<'a> {
    pub stage: Stage,
    pub record: &'a Record,
    /// The request, in the handshake or if it is kept.
    pub request: Option<&'a Request>,
    /// Our end, which the socket may have to be asked for.
    pub local: &'a dyn Fn() -> Option<SockAddr>,
    /// Copies a path to where it lives as long as the connection.
    pub keep_path: &'a mut dyn FnMut(&[u8]) -> ws_bytes,
    /// Code and reason of the peer's Close frame.
    pub peer_close: Option<(u16, ws_bytes)>,
    pub last_opcode: u32,
}

impl ConnectionInfo for Info<'_> {
    fn fact(&mut self, fact: Fact) -> ws_bytes {
        let (record, request) = (self.record, self.request);
        let Strings { resource, origin, user, protocol } = record.terminated_strings();
        let query = resource.iter().position(|&byte| byte == b'?');
        let found = match fact {
            Fact::Resource => Some(resource),
            Fact::Path => match query {
                None => Some(resource),
                Some(end) => return (self.keep_path)(resource.get(..end).unwrap_or_default()),
            },
            Fact::Query => query.and_then(|at| resource.get(at + 1..)),
            Fact::Origin => origin,
            Fact::RemoteUser => user,
            Fact::Protocol => protocol,
            Fact::Authority => request.and_then(|request| request.terminated().authority()),
            Fact::Method => request.map(|request| request.terminated().method()),
            Fact::RequestedProtocols => request.and_then(Request::protocols),
            Fact::RequestedExtensions => request.and_then(Request::extensions),
            Fact::Extensions => record.params().map(extension_text),
            Fact::State => record.terminated_state(),
            Fact::CloseReason => return self.peer_close.map_or(ABSENT, |(_, reason)| reason),
            Fact::Tls(which) => {
                let facts = record.facts().and_then(GatewayFacts::from_bytes);
                return facts.and_then(|facts| facts.tls(which)).map_or(ABSENT, followed_by_nul);
            }
        };
        found.map_or(ABSENT, terminated)
    }

    fn number(&self, number: Number) -> u32 {
        match number {
            // A function that outlived its connection finds it gone.
            Number::Version if place().0 == Callback::Task && self.stage != Stage::Open => 0,
            Number::Version => 13,
            Number::IsResumed => self.record.is_resumed().into(),
            Number::Deflate => self.record.params().is_some().into(),
            Number::LastOpcode => self.last_opcode,
            Number::CloseCode => match self.peer_close {
                Some((code, _)) => code.into(),
                None if self.stage == Stage::Over => WS_CLOSE_ABNORMAL,
                None => 0,
            },
        }
    }

    fn header(&self, name: &[u8]) -> ws_bytes {
        let value = self.request.zip(str::from_utf8(name).ok());
        value.and_then(|(request, name)| request.terminated().header(name)).map_or(ABSENT, terminated)
    }

    fn header_at(&self, index: usize) -> Option<(ws_bytes, ws_bytes)> {
        let (name, value) = self.request?.terminated().header_at(index)?;
        Some((terminated(name), terminated(value)))
    }

    fn address(&self, end: End) -> Option<Address> {
        match end {
            End::Remote => Some(address(self.record.peer.address())),
            End::Local => self.local_end(),
        }
    }
}

impl Info<'_> {
    /// The address of our end: the gateway's, where the connection comes from one.
    fn local_end(&self) -> Option<Address> {
        let unix = |path: String| Address { family: WS_UNIX, port: 0, text: path };
        let facts = self.record.facts().and_then(GatewayFacts::from_bytes);
        if let Some(known) = facts.and_then(|facts| facts.local) {
            let text = String::from_utf8_lossy(known).into_owned();
            return Some(text.parse().map_or_else(|_| unix(text), |socket| address(Some(socket))));
        }
        let local = (self.local)()?;
        let path = local.as_pathname().map(|path| unix(path.display().to_string()));
        Some(path.unwrap_or_else(|| address(local.as_socket())))
    }
}

/// The facts of a blocking connection in memory of its thread's own. Handlers hold on to the strings: they stay where
/// they are.
pub struct OwnedInfo {
    pub stage: Stage,
    /// A copy.
    pub record: Box<Record>,
    request: Option<Arc<Request>>,
    local: Option<SockAddr>,
    path: Path,
    pub peer_close: Option<PeerClose>,
    pub last_opcode: u32,
}

impl OwnedInfo {
    /// Of the connection with this sealed record, and this socket, in the handshake or opened before.
    pub fn new(stage: Stage, record: &Record, socket: &Socket, request: Option<Arc<Request>>) -> Self {
        OwnedInfo {
            stage,
            record: record.duplicate(),
            request,
            local: socket.local_addr().ok(),
            path: Path::default(),
            peer_close: None,
            last_opcode: 0,
        }
    }

    /// The handshake is done.
    pub fn open(&mut self, agreed: Agreed, keeps_request: bool) {
        self.stage = Stage::Open;
        self.record.set_protocol(agreed.protocol.as_deref());
        self.record.deflate = agreed.deflate;
        self.request.take_if(|_| !keeps_request);
    }

    /// Runs with these facts.
    pub fn look<R>(&mut self, f: impl FnOnce(&mut Info<'_>) -> R) -> R {
        f(&mut Info {
            stage: self.stage,
            record: &self.record,
            request: self.request.as_deref(),
            local: &|| self.local.clone(),
            keep_path: &mut |text| self.path.keep(text),
            peer_close: self.peer_close.as_ref().map(PeerClose::lend),
            last_opcode: self.last_opcode,
        })
    }
}

/// The path of a resource with a query, which handlers may keep for the connection's life: a copy with a NUL.
#[derive(Default)]
pub struct Path(Option<Box<[u8]>>);

impl Path {
    /// Whether a handler may hold a pointer to it.
    pub fn is_made(&self) -> bool {
        self.0.is_some()
    }

    /// Copies the path, which is always the same, unless it was before.
    pub fn keep(&mut self, text: &[u8]) -> ws_bytes {
        terminated(self.0.get_or_insert_with(|| [text, b"\0"].concat().into()))
    }
}

/// The value of the extensions header for these parameters, which handlers may
/// keep for the connection's life: there are a few hundred different ones at most,
/// so each is made once and stays.
fn extension_text(params: Params) -> &'static [u8] {
    static MADE: Mutex<BTreeMap<u32, &'static [u8]>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(params.to_bits())
        .or_insert_with(|| Box::leak((params.header_value() + "\0").into_bytes().into_boxed_slice()))
}

/// An IP address as handlers see it; without one the peer is on a Unix socket.
pub fn address(ip: Option<SocketAddr>) -> Address {
    match ip {
        Some(SocketAddr::V4(ip)) => Address { family: WS_IPV4, port: ip.port(), text: ip.ip().to_string() },
        Some(SocketAddr::V6(ip)) => match ip.ip().to_ipv4_mapped() {
            Some(v4) => Address { family: WS_IPV4, port: ip.port(), text: v4.to_string() },
            None => Address { family: WS_IPV6, port: ip.port(), text: ip.ip().to_string() },
        },
        None => Address { family: WS_UNIX, port: 0, text: String::new() },
    }
}
