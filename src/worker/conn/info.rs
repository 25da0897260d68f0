//! What handlers may ask about a connection, wherever the answer lies: in the
//! handshake, in the record of an open connection, or with a blocking thread.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use ::ws_handler::raw::*;
use socket2::SockAddr;

use crate::ffi::host::{ABSENT, Address, Fact, followed_by_nul, terminated};
use crate::fleet::facts::Facts;
use crate::proto::ws::deflate::negotiate::Params;
use crate::worker::conn::record::Strings;
use crate::worker::conn::request::Request;

/// The facts of one connection, borrowed from where they lie.
#[derive(Clone, Copy)]
pub struct Info<'a> {
    /// Each with the NUL behind it.
    pub strings: Strings<&'a [u8]>,
    pub deflate: Option<Params>,
    /// The request, in the handshake or if it is kept.
    pub request: Option<&'a Request>,
    /// What a gateway knows of the connection, as bytes.
    pub facts: Option<&'a [u8]>,
}

impl Info<'_> {
    /// The answer to a fact about request and agreement; absent for the others.
    pub fn get(&self, fact: Fact) -> ws_bytes {
        let request = self.request;
        let found = match fact {
            Fact::Resource => Some(self.strings.resource),
            Fact::Query => {
                let resource = self.strings.resource;
                resource.iter().position(|&byte| byte == b'?').and_then(|at| resource.get(at + 1..))
            }
            Fact::Origin => self.strings.origin,
            Fact::RemoteUser => self.strings.user,
            Fact::Protocol => self.strings.protocol,
            Fact::Authority => request.and_then(|request| request.terminated().authority()),
            Fact::Method => request.map(|request| request.terminated().method()),
            Fact::RequestedProtocols => request.and_then(Request::protocols),
            Fact::RequestedExtensions => request.and_then(Request::extensions),
            Fact::Extensions => self.deflate.map(extension_text),
            Fact::Tls(which) => {
                let facts = self.facts.and_then(Facts::from_bytes);
                return facts.and_then(|facts| facts.tls(which)).map_or(ABSENT, followed_by_nul);
            }
            Fact::Path | Fact::CloseReason | Fact::State => None,
        };
        found.map_or(ABSENT, terminated)
    }

    pub fn header(&self, name: &[u8]) -> ws_bytes {
        let value = self.request.zip(str::from_utf8(name).ok());
        value.and_then(|(request, name)| request.terminated().header(name)).map_or(ABSENT, terminated)
    }

    pub fn header_at(&self, index: usize) -> Option<(ws_bytes, ws_bytes)> {
        let (name, value) = self.request?.terminated().header_at(index)?;
        Some((terminated(name), terminated(value)))
    }
}

/// The path of a resource, which handlers may keep for the connection's life: a copy with a NUL, where a query follows.
#[derive(Default)]
pub struct Path(Option<Box<[u8]>>);

impl Path {
    /// Whether a handler may hold a pointer to it.
    pub fn is_made(&self) -> bool {
        self.0.is_some()
    }

    /// That of this resource, which has a NUL behind it; always the same.
    pub fn of(&mut self, resource: &[u8]) -> ws_bytes {
        match resource.iter().position(|&byte| byte == b'?') {
            None => terminated(resource),
            Some(end) => {
                let copy = || [resource.get(..end).unwrap_or_default(), b"\0"].concat().into();
                terminated(self.0.get_or_insert_with(copy))
            }
        }
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

/// The address of our end of a connection: the gateway's end, where it comes from one.
pub fn local_end(local: Option<&SockAddr>, facts: Option<&[u8]>) -> Option<Address> {
    let unix = |path: String| Address { family: WS_UNIX, port: 0, text: path };
    if let Some(known) = facts.and_then(Facts::from_bytes).and_then(|facts| facts.local) {
        let text = String::from_utf8_lossy(known).into_owned();
        return Some(text.parse().map_or_else(|_| unix(text), |socket| address(Some(socket))));
    }
    let local = local?;
    let path = local.as_pathname().map(|path| unix(path.display().to_string()));
    Some(path.unwrap_or_else(|| address(local.as_socket())))
}
