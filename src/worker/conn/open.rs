//! What a connection has while it is an open WebSocket.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use crate::ffi::host::{Task, User};
use crate::proto::ws::connection::{Connection, Kind};
use crate::time::Instant;
use crate::worker::base::metrics::OpenCount;
use crate::worker::conn::channel::{PeerClose, ThreadChannel};
use crate::worker::conn::handler_timers::HandlerTimers;
use crate::worker::conn::handshake::Carried;
use crate::worker::conn::info::Path;
use crate::worker::conn::rate_limit::RateLimit;
use crate::worker::conn::receive_budget::{ReceiveBudget, Share};
use crate::worker::conn::request::Request;

pub struct Open {
    pub proto: Connection,
    pub counted: OpenCount,
    /// The handler's pointer; set by [`set_user`](Self::set_user).
    user: *mut c_void,
    extra: Option<Box<Extra>>,
    pub last_opcode: u8,
    /// The connection is over: on_close is pending.
    pub over: bool,
    /// The handler does not know of it (accepted only to be closed).
    pub silent: bool,
    /// Its deadlines were entered since it is open.
    pub armed: bool,
}

/// What is done once the thread of a blocking handler has taken all messages that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastCall {
    /// The peer has sent a Close frame, which the thread answers.
    Answer,
    /// The peer has closed its end without one.
    Ended,
    /// The peer has broken the protocol or a limit, or the server ends the connection: a Close frame with this code.
    Close(u16),
}

/// What a connection that waits for messages usually does not have.
#[derive(Default)]
pub struct Extra {
    pub channel: Option<Arc<ThreadChannel>>,
    pub request: Option<Arc<Request>>,
    pub peer_close: Option<PeerClose>,
    /// Why a blocking handler gets no more messages than it has yet to take, and by when it has to have taken those.
    pub last_call: Option<(LastCall, Instant)>,
    pub timers: HandlerTimers,
    /// Who began to close (`WS_BY_...`), and the code; 0 while nobody did.
    pub closing: (u8, u16),
    unread: Option<Box<[u8]>>,
    /// Releases the handler's pointer.
    user: Option<User>,
    /// The path, if the handler has asked for it.
    pub path: Path,
    /// How fast the peer may send, if that is limited.
    pub pace: Option<RateLimit>,
    pub share: Share,
    /// Its context for compressing, as it is counted.
    pub context: Share,
}

impl Open {
    pub fn new(proto: Connection, counted: OpenCount) -> Self {
        Open {
            proto,
            counted,
            user: null_mut(),
            extra: None,
            last_opcode: 0,
            over: false,
            silent: false,
            armed: false,
        }
    }

    pub fn user(&self) -> *mut c_void {
        self.user
    }

    /// Sets it; returns the one before, to be released by whoever drops it.
    pub fn set_user(&mut self, user: User) -> Option<User> {
        self.user = user.pointer();
        match &mut self.extra {
            Some(extra) => extra.user.replace(user),
            None if user.is_owned() => self.extra().user.replace(user),
            None => None,
        }
    }

    /// Its handler was told that it moves, and is to be told that it is open: nothing that it has set is left.
    pub fn begin_anew(&mut self) {
        (self.user, self.last_opcode, self.over) = (null_mut(), 0, false);
        if let Some(extra) = &mut self.extra {
            (extra.user, extra.timers) = Default::default();
        }
    }

    pub fn take_over(&mut self, carried: Carried) {
        if let Some(user) = carried.user {
            self.set_user(user);
        }
        if !carried.timers.next().is_never() {
            self.extra().timers = carried.timers;
        }
        if carried.path.is_made() {
            self.extra().path = carried.path;
        }
    }

    /// What most connections do not have, to be changed.
    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Sets aside what was read and cannot be processed yet.
    pub fn set_unread(&mut self, bytes: Box<[u8]>) {
        self.extra().unread = Some(bytes);
    }

    /// Takes that back.
    pub fn take_unread(&mut self) -> Option<Box<[u8]>> {
        self.extra.as_mut()?.unread.take()
    }

    /// Whether there is such.
    pub fn has_unread(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.unread.is_some())
    }

    /// When the thread of a blocking handler has to have taken what came before the end.
    pub fn last_call_by(&self) -> Instant {
        self.extra.as_ref().and_then(|extra| extra.last_call).map_or(Instant::NEVER, |(_, by)| by)
    }

    /// Whether only the deadlines of an idle connection run.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.extra.is_none() && self.proto.is_quiet()
    }

    /// Gives the connection to the thread of a blocking handler.
    pub fn set_channel(&mut self, channel: Arc<ThreadChannel>) {
        self.proto.defer_failures();
        self.extra().channel = Some(channel);
    }

    #[inline]
    pub fn channel(&self) -> Option<&Arc<ThreadChannel>> {
        self.extra.as_ref()?.channel.as_ref()
    }

    pub fn request(&self) -> Option<&Arc<Request>> {
        self.extra.as_ref()?.request.as_ref()
    }

    pub fn peer_close(&self) -> Option<&PeerClose> {
        self.extra.as_ref()?.peer_close.as_ref()
    }

    pub fn is_closing(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.closing.0 != 0)
    }

    /// The code with which the connection has failed, if that is still to be said.
    pub fn failure(&self) -> Option<u16> {
        let closing = self.extra.as_ref().map(|extra| extra.closing);
        closing.filter(|(by, _)| u32::from(*by) == ::ws_handler::raw::WS_BY_HOST).map(|(_, code)| code)
    }

    /// Notes who began to close; the first counts.
    pub fn begin_close(&mut self, by: u32, code: u16) {
        let extra = self.extra();
        if extra.closing.0 == 0 {
            extra.closing = (by as u8, code);
        }
    }

    pub fn share(&self) -> Share {
        self.extra.as_ref().map_or(Share::default(), |extra| extra.share)
    }

    /// What is counted of it, which is nothing any more.
    pub fn take_counted(&mut self) -> Option<(Share, Share)> {
        let extra = self.extra.as_deref_mut()?;
        Some((std::mem::take(&mut extra.share), std::mem::take(&mut extra.context)))
    }

    /// Counts a message that has come, or a part of one.
    #[inline]
    pub fn note_message(&mut self, kind: Kind, size: usize, last: bool) {
        self.last_opcode = kind as u8;
        self.counted.counters().received(size, last);
    }

    /// Whether an incomplete message takes more memory, or less, than is counted.
    #[inline]
    pub fn is_share_stale(&self) -> bool {
        self.share().bytes != ReceiveBudget::counted(self.proto.held())
    }

    pub fn next_timer(&self) -> Instant {
        self.extra.as_ref().map_or(Instant::NEVER, |extra| extra.timers.next())
    }

    /// The timer of the handler that expired first.
    pub fn pop_timer(&mut self, now: Instant) -> Option<Task> {
        self.extra.as_mut()?.timers.pop(now)
    }
}
