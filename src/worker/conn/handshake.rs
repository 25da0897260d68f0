//! An opening handshake in progress: the request, and the reply as the handler
//! wants it. Shared by the event loop and, for blocking handlers and deferred
//! answers, by another thread. Touches no socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::ws_handler::raw::*;
use socket2::SockAddr;

use crate::ffi::host::{Address, End, Reply};
use crate::proto::ws::close;
use crate::proto::ws::deflate::negotiate::{self, Params};
use crate::proto::ws::handshake::{self};
use crate::worker::conn::info::{self, Info};
use crate::worker::conn::request::Request;

/// Headers that a handler may add to a reply.
const MAX_HEADERS: usize = 64;
/// Bytes of those headers.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Bytes of the body of a rejection.
const MAX_BODY: usize = 64 * 1024;

/// How a handshake ends.
#[derive(Debug)]
pub enum Verdict {
    /// 101.
    Accept,
    /// 101, then a Close frame.
    AcceptAndClose(Option<u16>, Vec<u8>),
    /// An error reply.
    Reject { status: u16, content_type: Option<String>, body: Vec<u8> },
    /// No reply.
    Abort,
}

/// What the handler has said so far.
struct Draft {
    protocol: Option<String>,
    deflate: negotiate::Config,
    headers: Vec<(String, String)>,
    header_bytes: usize,
    verdict: Option<Verdict>,
    /// The verdict was carried out, or the peer has left: nothing counts any more.
    finished: bool,
}

/// A handshake in progress.
pub struct Handshake {
    /// The connection's id, which is also the handle that handlers hold.
    pub conn: u64,
    /// The request.
    pub request: Arc<Request>,
    /// Index of the handler in the routes.
    pub handler: u16,
    /// The peer, if it has an IP address.
    pub peer: Option<SocketAddr>,
    /// Our end, for a blocking handler.
    pub local: Option<SockAddr>,
    /// What a gateway knows of the connection, for a blocking handler.
    pub facts: Option<Arc<[u8]>>,
    draft: Mutex<Draft>,
}

/// Handshakes that other threads may finish, by the handle that they hold. One for each connection in that phase at most.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<u64, Arc<Handshake>>>);

impl Registry {
    /// Makes a handshake known, before the handler hears of it.
    pub fn add(&self, handshake: &Arc<Handshake>) {
        self.lock().insert(handshake.conn, Arc::clone(handshake));
    }

    /// Forgets a handshake.
    pub fn remove(&self, conn: u64) {
        self.lock().remove(&conn);
    }

    /// A handler's wish about a handshake, from a thread that is not in it; also whether the loop is to carry out a
    /// verdict now.
    pub fn reply(&self, handshake: u64, reply: Reply<'_>) -> (i32, bool) {
        match self.lock().get(&handshake).cloned() {
            Some(known) => (known.reply_later(reply), known.has_verdict()),
            None => (WS_E_GONE, false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handshake>>> {
        // A panic elsewhere leaves a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake that came to its end, ready to be written.
pub struct Finished {
    /// What to do.
    pub verdict: Verdict,
    /// The chosen subprotocol.
    pub protocol: Option<String>,
    /// What was agreed about compression, with threshold and level.
    pub deflate: Option<(Params, u32, u8)>,
    /// Headers of the handler's own.
    pub headers: Vec<(String, String)>,
}

impl Handshake {
    /// Begins one. `protocols` are the handler's own, in its order of preference:
    /// the first that was offered is chosen. `config` is the server's; without it no extension is used.
    pub fn new(
        conn: u64,
        handler: u16,
        request: Arc<Request>,
        ends: (Option<SocketAddr>, Option<SockAddr>, Option<Arc<[u8]>>),
        protocols: &[String],
        config: Option<&negotiate::Config>,
    ) -> Self {
        let protocol = protocols.iter().find(|known| request.opening.protocols.contains(known)).cloned();
        let deflate = match config {
            Some(config) => config.clone(),
            None => negotiate::Config { enabled: false, ..Default::default() },
        };
        let draft =
            Draft { protocol, deflate, headers: Vec::new(), header_bytes: 0, verdict: None, finished: false };
        Handshake {
            conn,
            request,
            handler,
            peer: ends.0,
            local: ends.1,
            facts: ends.2,
            draft: Mutex::new(draft),
        }
    }

    /// What handlers may ask about the connection.
    pub fn info(&self) -> Info<'_> {
        let facts = self.facts.as_deref();
        Info { strings: self.request.strings(), deflate: None, request: Some(&self.request), facts }
    }

    /// One of the connection's ends.
    pub fn address(&self, end: End) -> Option<Address> {
        match end {
            End::Remote => Some(info::address(self.peer)),
            End::Local => info::local_end(self.local.as_ref(), self.facts.as_deref()),
        }
    }

    /// Whether a verdict has been given.
    pub fn has_verdict(&self) -> bool {
        self.draft().verdict.is_some()
    }

    /// A handler's wish, in `do_extra_handshake`, where the last verdict counts. Results as in `ws_handler.h`.
    pub fn reply(&self, reply: Reply<'_>) -> i32 {
        self.change(self.draft(), reply)
    }

    /// The same after `WS_LATER`: the first verdict counts, and finishes the handshake.
    pub fn reply_later(&self, reply: Reply<'_>) -> i32 {
        let draft = self.draft();
        if draft.verdict.is_some() { WS_E_GONE } else { self.change(draft, reply) }
    }

    fn change(&self, mut draft: MutexGuard<'_, Draft>, reply: Reply<'_>) -> i32 {
        if draft.finished {
            return WS_E_GONE;
        }
        let verdict = match reply {
            Reply::Protocol(name) => {
                let offered =
                    self.request.opening.protocols.iter().find(|offered| offered.as_bytes() == name);
                let Some(offered) = offered else { return WS_E_INVALID };
                draft.protocol = Some(offered.clone());
                return WS_OK;
            }
            Reply::Header { name, value } => return draft.add_header(name, value),
            Reply::Deflate(options) => {
                let Some(config) = deflate_config(options) else { return WS_E_INVALID };
                draft.deflate = config;
                return WS_OK;
            }
            Reply::RefuseExtensions => {
                draft.deflate.enabled = false;
                return WS_OK;
            }
            Reply::Accept => Verdict::Accept,
            Reply::AcceptAndClose { code, reason } => match close::checked(code, reason) {
                Some(code) => Verdict::AcceptAndClose(code, reason.to_vec()),
                None => return WS_E_INVALID,
            },
            Reply::Reject { status, content_type, body } => {
                let content_type = content_type.map(|kind| str::from_utf8(kind).map(str::to_owned));
                match (u16::try_from(status), content_type.transpose()) {
                    (Ok(status @ 300..=599), Ok(content_type))
                        if content_type
                            .as_ref()
                            .is_none_or(|kind| handshake::is_header_value(kind.as_bytes())) =>
                    {
                        if body.len() > MAX_BODY {
                            return WS_E_LIMIT;
                        }
                        Verdict::Reject { status, content_type, body: body.to_vec() }
                    }
                    _ => return WS_E_INVALID,
                }
            }
            Reply::Abort => Verdict::Abort,
        };
        let result = match verdict {
            Verdict::Accept | Verdict::AcceptAndClose(..) => WS_OK,
            Verdict::Reject { .. } => WS_REJECTED,
            Verdict::Abort => WS_ABORTED,
        };
        draft.verdict = Some(verdict);
        result
    }

    /// Notes what `do_extra_handshake` returned; false if the verdict comes later.
    pub fn returned(&self, result: i32, may_be_later: bool) -> bool {
        let mut draft = self.draft();
        let verdict = match (result, draft.verdict.take()) {
            (WS_LATER, None) if may_be_later => return false,
            (WS_LATER, Some(verdict)) if may_be_later => verdict,
            (WS_OK, Some(verdict @ (Verdict::Accept | Verdict::AcceptAndClose(..)))) => verdict,
            (WS_OK, _) => Verdict::Accept,
            (WS_REJECTED, Some(verdict @ Verdict::Reject { .. })) => verdict,
            (WS_ABORTED, _) => Verdict::Abort,
            _ => Verdict::Reject { status: 500, content_type: None, body: Vec::new() },
        };
        draft.verdict = Some(verdict);
        true
    }

    /// Ends the handshake: later calls on its handle return `WS_E_GONE`. Without a
    /// verdict it has timed out (503).
    pub fn finish(&self) -> Finished {
        let mut draft = self.draft();
        draft.finished = true;
        let timed_out = Verdict::Reject { status: 503, content_type: None, body: Vec::new() };
        let config = &draft.deflate;
        let params = config.enabled.then(|| negotiate::negotiate(&self.request.opening.extensions, config));
        Finished {
            deflate: params.flatten().map(|params| (params, config.threshold, config.level)),
            verdict: draft.verdict.take().unwrap_or(timed_out),
            protocol: draft.protocol.take(),
            headers: std::mem::take(&mut draft.headers),
        }
    }

    fn draft(&self) -> MutexGuard<'_, Draft> {
        // A panic elsewhere leaves a draft that is still whole.
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draft {
    fn add_header(&mut self, name: &[u8], value: &[u8]) -> i32 {
        const OURS: [&str; 7] = [
            "Connection",
            "Upgrade",
            "Content-Length",
            "Transfer-Encoding",
            "Sec-WebSocket-Accept",
            "Sec-WebSocket-Protocol",
            "Sec-WebSocket-Extensions",
        ];
        let (Ok(name), Ok(value)) = (str::from_utf8(name), str::from_utf8(value)) else {
            return WS_E_INVALID;
        };
        let valid = handshake::is_header_name(name.as_bytes())
            && handshake::is_header_value(value.as_bytes())
            && !OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if !valid {
            return WS_E_INVALID;
        }
        let bytes = self.header_bytes + name.len() + value.len();
        if self.headers.len() == MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            return WS_E_LIMIT;
        }
        self.header_bytes = bytes;
        self.headers.push((name.to_owned(), value.to_owned()));
        WS_OK
    }
}

fn deflate_config(options: &ws_deflate_options) -> Option<negotiate::Config> {
    let bits = |bits: u32| u8::try_from(bits).ok().filter(|bits| (9..=15).contains(bits));
    let flag = |flag: u32| (flag <= 1).then_some(flag == 1);
    Some(negotiate::Config {
        enabled: true,
        server_max_window_bits: bits(options.server_max_window_bits)?,
        client_max_window_bits: bits(options.client_max_window_bits)?,
        server_no_context_takeover: flag(options.server_no_context_takeover)?,
        client_no_context_takeover: flag(options.client_no_context_takeover)?,
        threshold: options.threshold,
        level: u8::try_from(options.level).ok().filter(|level| (1..=9).contains(level))?,
    })
}
