//! An opening handshake in progress: the request, and the reply as the handler
//! wants it. Shared by the event loop and, for blocking handlers and deferred
//! answers, by another thread. Touches no socket.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::ws_handler::raw::*;

use crate::ffi::host::{Reply, Task, User};
use crate::ffi::place::{self, Callback};
use crate::ffi::request::PendingHandshakes;
use crate::proto::http1::field;
use crate::proto::ws::close;
use crate::proto::ws::deflate::negotiate::{self, Params};
use crate::worker::commands::queue::{CommandQueue, ThreadCommand};
use crate::worker::conn::handler_timers::HandlerTimers;
use crate::worker::conn::info::Path;
use crate::worker::conn::request::Request;

/// Headers that a handler may add to a reply.
const MAX_HEADERS: usize = 64;
/// Bytes of those headers.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Bytes of the body of a rejection, or of octets in place of a reply.
const MAX_BODY: usize = 64 * 1024;
/// Functions that wait for the connection to be open.
const MAX_POSTS: usize = 1024;

#[derive(Debug)]
pub enum HandshakeResult {
    Accept,
    /// 101, then a Close frame.
    AcceptAndClose(Option<u16>, Vec<u8>),
    Reject {
        status: u16,
        content_type: Option<String>,
        body: Vec<u8>,
    },
    Abort,
}

/// What the handler has said so far.
#[derive(Default)]
struct Draft {
    protocol: Option<String>,
    deflate: negotiate::Config,
    headers: Vec<(String, String)>,
    header_bytes: usize,
    verdict: Option<HandshakeResult>,
    /// The handler has tried to reject or abort: it cannot accept any more.
    rejected: bool,
    /// The verdict was carried out, or the peer has left: nothing counts any more.
    finished: bool,
    carried: Carried,
    /// Posted; at most [`MAX_POSTS`].
    posts: Vec<Task>,
    /// The connection is open or never will be: posts go elsewhere.
    posts_closed: bool,
}

/// What a handler gives a connection before it is open. None of it runs before on_open.
#[derive(Default)]
pub struct Carried {
    pub user: Option<User>,
    /// A state that another thread has attached.
    pub state: Option<Vec<u8>>,
    /// Its timers, in the event style.
    pub timers: HandlerTimers,
    /// The path, which was lent for the connection's life.
    pub path: Path,
    /// In place of a reply, unless empty.
    pub octets: Vec<u8>,
}

pub struct Handshake {
    /// The connection's id, which is also the handle that handlers hold.
    pub conn: u64,
    pub request: Arc<Request>,
    /// Index of the handler in the routes.
    pub handler: u16,
    /// It is answered by a thread of its own, and by no other.
    is_blocking: bool,
    draft: Mutex<Draft>,
}

/// Handshakes in progress, for threads that finish them or post, by the handle that they hold.
pub struct Registry {
    commands: &'static CommandQueue,
    /// One for each connection in that phase at most.
    handshakes: Mutex<HashMap<u64, Arc<Handshake>>>,
}

impl Registry {
    /// An empty one; verdicts are left in this queue.
    pub fn new(commands: &'static CommandQueue) -> Self {
        Self { commands, handshakes: Mutex::default() }
    }

    /// Registers a handshake, before its handler is called.
    pub fn add(&self, handshake: &Arc<Handshake>) {
        self.lock().insert(handshake.conn, Arc::clone(handshake));
    }

    pub fn remove(&self, conn: u64) {
        self.lock().remove(&conn);
    }

    pub fn get(&self, conn: u64) -> Option<Arc<Handshake>> {
        self.lock().get(&conn).cloned()
    }

    /// Changes what is carried by a handshake after WS_LATER.
    fn carry(&self, handshake: u64, change: impl FnOnce(&mut Carried)) -> i32 {
        match self.get(handshake) {
            Some(known) if known.is_blocking => WS_E_PLACE,
            known => known.and_then(|known| known.carry_later(change)).map_or(WS_E_GONE, |()| WS_OK),
        }
    }

    /// `ws_post` for a connection that may not be open yet.
    pub fn post(&self, conn: u64, task: Task) -> i32 {
        let result = self.commands.post(conn, task);
        if result != WS_E_GONE {
            return result;
        }
        let posted = self.get(conn).and_then(|known| known.post(task));
        // It may have opened meanwhile.
        posted.unwrap_or_else(|| self.commands.post(conn, task))
    }

    /// The result of a call for a connection that is open: before that it came too early, and not too late.
    pub fn result(&self, conn: u64, result: i32) -> i32 {
        if result == WS_E_GONE && self.get(conn).is_some() { WS_E_PLACE } else { result }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handshake>>> {
        // A panic elsewhere leaves a map that is still whole.
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingHandshakes for Registry {
    fn reply(&self, handshake: u64, in_callback: bool, reply: Reply<'_>) -> i32 {
        let Some(known) = self.get(handshake) else { return WS_E_GONE };
        if in_callback {
            return known.reply(reply);
        }
        if known.is_blocking {
            return WS_E_PLACE;
        }
        let result = known.reply_later(reply);
        if known.has_verdict() {
            self.commands.give(ThreadCommand::HandshakeEnded(handshake));
        }
        result
    }

    fn set_user(&self, handshake: u64, user: User) -> i32 {
        // The one before is released once the draft is unlocked: its function may call the host.
        let mut replaced = None;
        self.carry(handshake, |carried| replaced = carried.user.replace(user))
    }

    fn set_state(&self, handshake: u64, state: &[u8]) -> i32 {
        self.carry(handshake, |carried| carried.state = Some(state.to_vec()))
    }
}

/// A handshake that came to its end, ready to be written.
pub struct Finished {
    pub verdict: HandshakeResult,
    pub protocol: Option<String>,
    /// What was agreed about compression, with threshold and level.
    pub deflate: Option<(Params, u32, u8)>,
    pub headers: Vec<(String, String)>,
    /// What the connection takes along, or what is released.
    pub carried: Carried,
}

/// A handler that has not answered as the header says, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// WS_OK after it has rejected, or tried to.
    AcceptedAfterAll,
    /// A result without what belongs to it, or that is none.
    Result,
    /// A negative one.
    Failed,
}

impl Handshake {
    /// Begins one. `protocols` are the handler's own, in its order of preference:
    /// the first that was offered is chosen. `config` is the server's; without it no extension is used.
    pub fn new(
        conn: u64,
        handler: u16,
        request: Arc<Request>,
        protocols: &[String],
        config: Option<&negotiate::Config>,
        is_blocking: bool,
    ) -> Self {
        let protocol = protocols.iter().find(|known| request.opening.protocols.contains(known)).cloned();
        let deflate = match config {
            Some(config) => config.clone(),
            None => negotiate::Config { enabled: false, ..Default::default() },
        };
        let draft = Draft { protocol, deflate, ..Draft::default() };
        Handshake { conn, request, handler, is_blocking, draft: Mutex::new(draft) }
    }

    pub fn has_verdict(&self) -> bool {
        self.draft().verdict.is_some()
    }

    /// Copies the path to where it lives as long as the connection.
    pub fn keep_path(&self, text: &[u8]) -> ws_bytes {
        self.draft().carried.path.keep(text)
    }

    pub fn user(&self) -> *mut c_void {
        self.draft().carried.user.as_ref().map_or(null_mut(), User::pointer)
    }

    /// Changes what the connection takes along; `None` if it is too late. A change that is refused is dropped when the
    /// draft is unlocked, and with it what it brings: that may call the handler.
    pub fn carry<R>(&self, change: impl FnOnce(&mut Carried) -> R) -> Option<R> {
        let mut draft = self.draft();
        if draft.finished {
            return None;
        }
        Some(change(&mut draft.carried))
    }

    /// The same after `WS_LATER`: once there is a verdict it is too late.
    fn carry_later<R>(&self, change: impl FnOnce(&mut Carried) -> R) -> Option<R> {
        if self.has_verdict() { None } else { self.carry(change) }
    }

    /// Appends octets in place of a reply.
    pub fn add_octets(&self, octets: &[u8]) -> i32 {
        let add = |carried: &mut Carried| {
            if carried.octets.len() + octets.len() > MAX_BODY {
                return WS_E_LIMIT;
            }
            carried.octets.extend_from_slice(octets);
            WS_OK
        };
        self.carry(add).unwrap_or(WS_E_GONE)
    }

    /// Keeps a function until the connection is open; `None` if it is, or never will be.
    fn post(&self, task: Task) -> Option<i32> {
        let mut draft = self.draft();
        if draft.posts_closed {
            return None;
        }
        if draft.posts.len() == MAX_POSTS {
            return Some(WS_E_LIMIT);
        }
        draft.posts.push(task);
        Some(WS_OK)
    }

    /// Takes those functions; others come no more.
    pub fn close_posts(&self) -> Vec<Task> {
        let mut draft = self.draft();
        draft.posts_closed = true;
        std::mem::take(&mut draft.posts)
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
            Reply::Protocol(None) => {
                draft.protocol = None;
                return WS_OK;
            }
            Reply::Protocol(Some(name)) => {
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
            Reply::Accept | Reply::AcceptAndClose { .. } if draft.rejected => return WS_E_INVALID,
            Reply::Accept => HandshakeResult::Accept,
            Reply::AcceptAndClose { code, reason } => match close::checked(code, reason) {
                Some(code) => HandshakeResult::AcceptAndClose(code, reason.to_vec()),
                None => return WS_E_INVALID,
            },
            Reply::Reject { status, content_type, body } => {
                // Also if the call fails: a handler that tried to reject does not accept.
                draft.rejected = true;
                let content_type = content_type.map(|kind| str::from_utf8(kind).map(str::to_owned));
                match (u16::try_from(status), content_type.transpose()) {
                    (Ok(status @ 300..=599), Ok(content_type))
                        if content_type.as_ref().is_none_or(|kind| field::is_value(kind.as_bytes())) =>
                    {
                        if body.len() > MAX_BODY {
                            return WS_E_LIMIT;
                        }
                        HandshakeResult::Reject { status, content_type, body: body.to_vec() }
                    }
                    _ => return WS_E_INVALID,
                }
            }
            Reply::Abort => {
                draft.rejected = true;
                HandshakeResult::Abort
            }
        };
        let result = match verdict {
            HandshakeResult::Accept | HandshakeResult::AcceptAndClose(..) => WS_OK,
            HandshakeResult::Reject { .. } => WS_REJECTED,
            HandshakeResult::Abort => WS_ABORTED,
        };
        draft.verdict = Some(verdict);
        result
    }

    /// Notes what `do_extra_handshake` returned, and logs what was wrong with it; false if the verdict comes later.
    pub fn settle(&self, result: i32) -> bool {
        let (has_verdict, wrong) = self.returned(result);
        let conn = self.conn;
        match wrong {
            None => {}
            Some(Wrong::Failed) => place::note_result(Callback::Handshake, conn, result, "answered with 500"),
            Some(Wrong::AcceptedAfterAll) => place::breach_of_contract(
                Callback::Handshake,
                conn,
                format_args!("returned WS_OK after ws_reject() or ws_abort_handshake(); rejected"),
            ),
            Some(Wrong::Result) => place::note_wrong_result(Callback::Handshake, conn, result),
        }
        has_verdict
    }

    /// Notes what `do_extra_handshake` returned; whether there is a verdict, which may come later, and what was wrong.
    /// Fails closed: what was rejected is never accepted.
    pub fn returned(&self, result: i32) -> (bool, Option<Wrong>) {
        let mut draft = self.draft();
        let failed = HandshakeResult::Reject { status: 500, content_type: None, body: Vec::new() };
        let (verdict, wrong) = match (result, draft.verdict.take()) {
            (WS_LATER, None) if !self.is_blocking => return (false, None),
            (WS_LATER, Some(verdict)) if !self.is_blocking => (verdict, None),
            (WS_OK, verdict) if draft.rejected => {
                let rejection = verdict.filter(|verdict| verdict.is_rejection());
                (rejection.unwrap_or(failed), Some(Wrong::AcceptedAfterAll))
            }
            (WS_OK, verdict) => (verdict.unwrap_or(HandshakeResult::Accept), None),
            (WS_REJECTED, Some(verdict @ HandshakeResult::Reject { .. })) => (verdict, None),
            (WS_ABORTED, Some(HandshakeResult::Abort)) => (HandshakeResult::Abort, None),
            (WS_ABORTED, _) => (HandshakeResult::Abort, Some(Wrong::Result)),
            (..0, _) => (failed, Some(Wrong::Failed)),
            _ => (failed, Some(Wrong::Result)),
        };
        draft.verdict = Some(verdict);
        (true, wrong)
    }

    /// Ends the handshake: later calls on its handle return `WS_E_GONE`. Without a
    /// verdict it has timed out (503).
    pub fn finish(&self) -> Finished {
        let mut draft = self.draft();
        draft.finished = true;
        let timed_out = HandshakeResult::Reject { status: 503, content_type: None, body: Vec::new() };
        let config = &draft.deflate;
        let params = config.enabled.then(|| negotiate::negotiate(&self.request.opening.extensions, config));
        Finished {
            deflate: params.flatten().map(|params| (params, config.threshold, config.level)),
            verdict: draft.verdict.take().unwrap_or(timed_out),
            protocol: draft.protocol.take(),
            headers: std::mem::take(&mut draft.headers),
            carried: std::mem::take(&mut draft.carried),
        }
    }

    fn draft(&self) -> MutexGuard<'_, Draft> {
        // A panic elsewhere leaves a draft that is still whole.
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandshakeResult {
    fn is_rejection(&self) -> bool {
        matches!(self, HandshakeResult::Reject { .. } | HandshakeResult::Abort)
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
        let valid = field::is_token(name.as_bytes())
            && field::is_value(value.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http1::head::{HeadLimits, Parsed, parse};
    use crate::proto::ws::handshake;

    fn handshake(is_blocking: bool) -> Handshake {
        let text = b"GET /a?b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, y\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let Ok(Parsed::Head { head, .. }) = parse(text, &HeadLimits { bytes: 1000, headers: 20 }) else {
            panic!("not a head")
        };
        let opening = handshake::check(&head).unwrap();
        let request = Arc::new(Request::new(head, opening, None, None));
        Handshake::new(1, 0, request, &["y".to_owned()], None, is_blocking)
    }

    fn reject(status: u32) -> Reply<'static> {
        Reply::Reject { status, content_type: None, body: b"" }
    }

    /// The status of the verdict; 101, or 0 for none.
    fn status(handshake: &Handshake) -> u16 {
        match handshake.finish().verdict {
            HandshakeResult::Accept | HandshakeResult::AcceptAndClose(..) => 101,
            HandshakeResult::Reject { status, .. } => status,
            HandshakeResult::Abort => 0,
        }
    }

    #[test]
    fn what_was_rejected_is_never_accepted() {
        let accepted = Some(Wrong::AcceptedAfterAll);
        for (replies, result, expected) in [
            (vec![], WS_OK, (101, None)),
            (vec![reject(401)], WS_OK, (401, accepted)),
            (vec![reject(200)], WS_OK, (500, accepted)),
            (vec![Reply::Abort], WS_OK, (0, accepted)),
            (vec![reject(401), reject(99)], WS_OK, (401, accepted)),
            (vec![reject(401)], WS_REJECTED, (401, None)),
            (vec![reject(401), Reply::Accept], WS_OK, (401, accepted)),
            (vec![reject(99), Reply::Accept], WS_OK, (500, accepted)),
            (vec![Reply::Accept, reject(403)], WS_OK, (403, accepted)),
            (vec![Reply::Abort], WS_ABORTED, (0, None)),
            (vec![], WS_REJECTED, (500, Some(Wrong::Result))),
            (vec![], 77, (500, Some(Wrong::Result))),
            (vec![], WS_E_FAILED, (500, Some(Wrong::Failed))),
            (vec![reject(401)], WS_E_FAILED, (500, Some(Wrong::Failed))),
        ] {
            let handshake = handshake(false);
            for reply in replies {
                handshake.reply(reply);
            }
            let (has_verdict, wrong) = handshake.returned(result);
            assert!(has_verdict);
            assert_eq!((status(&handshake), wrong), expected, "{result}");
        }
    }

    #[test]
    fn a_late_handshake_that_was_rejected_wrongly_cannot_be_accepted() {
        let handshake = handshake(false);
        assert_eq!(handshake.returned(WS_LATER), (false, None));
        assert_eq!(handshake.reply_later(reject(99)), WS_E_INVALID);
        assert_eq!(handshake.reply_later(Reply::Accept), WS_E_INVALID);
        assert_eq!(handshake.reply_later(reject(403)), WS_REJECTED);
        assert_eq!(handshake.reply_later(reject(404)), WS_E_GONE);
        assert_eq!(handshake.carry_later(|_| ()), None, "too late");
        assert_eq!(status(&handshake), 403);
    }

    #[test]
    fn what_comes_too_late_is_dropped_where_the_handshake_is_not_locked() {
        struct Refused<'a>(&'a Handshake, &'a std::cell::Cell<u32>);
        impl Drop for Refused<'_> {
            fn drop(&mut self) {
                self.1.set(self.1.get() + u32::from(self.0.draft.try_lock().is_ok()));
            }
        }
        let (handshake, free) = (handshake(false), std::cell::Cell::new(0));
        assert_eq!(handshake.reply_later(Reply::Accept), WS_OK);
        let refused = Refused(&handshake, &free);
        assert_eq!(handshake.carry_later(move |_| drop(refused)), None);
        handshake.finish();
        let refused = Refused(&handshake, &free);
        assert_eq!(handshake.carry(move |_| drop(refused)), None);
        assert_eq!(free.get(), 2);
    }

    #[test]
    fn a_subprotocol_can_be_chosen_and_unchosen() {
        let handshake = handshake(true);
        assert_eq!(handshake.returned(WS_LATER), (true, Some(Wrong::Result)), "not in the blocking style");
        let handshake = self::handshake(false);
        assert_eq!(handshake.reply(Reply::Protocol(Some(b"z"))), WS_E_INVALID);
        assert_eq!(handshake.reply(Reply::Protocol(Some(b"x"))), WS_OK);
        assert_eq!(handshake.reply(Reply::Protocol(None)), WS_OK);
        assert_eq!(handshake.finish().protocol, None);
        assert_eq!(self::handshake(false).finish().protocol.as_deref(), Some("y"));
    }
}
