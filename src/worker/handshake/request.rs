//! From an accepted socket to an open WebSocket: request head, route, do_extra_handshake, reply. Requests that are not
//! for a WebSocket are answered by `http`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use ::ws_handler::raw::*;
use socket2::Socket;

use crate::cgi::covers;
use crate::config::{Console, ListenerSettings};
use crate::ffi::place::Callback;
use crate::fleet::memory::addresses::Permit;
use crate::http;
use crate::proto::http1::head::{self, Head, Parsed};
use crate::proto::ws::handshake::{self, is_upgrade};
use crate::worker::blocking::thread::ThreadStart;
use crate::worker::conn::channel::{Agreed, Ended, ThreadChannel};
use crate::worker::conn::handshake::{Carried, Finished, Handshake, HandshakeResult};
use crate::worker::conn::info::{OwnedInfo, Stage};
use crate::worker::conn::record::foreign::Arrival;
use crate::worker::conn::record::{Strings, flags};
use crate::worker::conn::request::Request;
use crate::worker::conn::table::{Conn, PartialHead, Pause, Phase};
use crate::worker::handshake::Handshakes;
use crate::worker::handshake::outcome::{Asked, Elsewhere, Unserved};
use crate::worker::handshake::outcome::{quarantined, rejection, unavailable};
use crate::worker::host::handlers::Service;
use crate::worker::session::opening::OpenOptions;

/// Fields with which proxies tell whom they relay, or that they do.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

impl Handshakes {
    /// Begins with a connection; an error as that of `Conns::add`.
    pub fn start_connection(
        &self,
        socket: Socket,
        arrival: &Arrival<'_>,
        permit: Permit,
        listener: &ListenerSettings,
    ) -> Result<u64, Socket> {
        let id = self.add(socket)?;
        self.conns.with_head(id, |head| head.console = listener.console);
        self.conns.edit_record(id, |record| {
            record.peer = arrival.peer.into();
            record.mark = permit.keep();
            if arrival.has_proxy_header || !listener.proxy_protocol {
                record.set_proxy_header(); // as if it were read where there is none
            }
            if let Some(facts) = arrival.facts {
                record.set_facts(facts);
            }
            record.set_flags(flags::TAKEN | flags::FRESH);
        });
        self.conns.arm(id);
        Ok(id)
    }

    /// A connection of which nothing is known yet.
    pub fn add(&self, socket: Socket) -> Result<u64, Socket> {
        // Accepted while the worker was told to stop.
        if self.conns.life.is_stopping() {
            self.conns.presence.release();
            return Err(socket);
        }
        let deadline = self.conns.now() + self.conns.config.handshake_timeout;
        self.conns.add(Conn::new(socket, deadline))
    }

    /// Continues with bytes of a request head. Returns a request that another process is to answer, with what was read
    /// of it from its first byte on.
    pub fn read_head<'a>(&self, id: u64, received: &'a [u8]) -> Option<(Elsewhere, Cow<'a, [u8]>)> {
        let mut kept = {
            let core = &mut *self.conns.core.borrow_mut();
            let (conn, record) = core.table.both(id)?;
            let head = conn.head()?;
            // What was read changes from here on.
            record.cut();
            record.forget_head();
            std::mem::take(&mut head.read)
        };
        // What has arrived from another process, or waits for a password, may be a whole head already.
        let seen = if received.is_empty() { 0 } else { kept.len() };
        // Usually the head comes at once, and is not copied.
        let read = if kept.is_empty() {
            Cow::Borrowed(received)
        } else {
            kept.extend_from_slice(received);
            Cow::Owned(kept)
        };
        let all = read.len();
        let read = self.take_proxy_header(id, read)?;
        self.conns.with_head(id, |head| head.takes_content = http::takes_content(&read));
        // Bytes behind a header of the PROXY protocol have not been searched.
        let seen = if read.len() == all { seen } else { 0 };
        match head::parse_more(&read, seen, &self.conns.config.head) {
            Ok(Parsed::NeedMore) => self.conns.keep_head(id, read.into_owned()),
            Ok(Parsed::Head { head, .. }) if self.answer_health_check(id, &head) => {}
            Ok(Parsed::Head { head, consumed }) => {
                if self.conns.access_log.is_on() {
                    let policy = self.policy_of(self.conns.routes.find(head.path()));
                    let resource = policy.map_or(head.resource().into(), |policy| policy.resource(&head));
                    self.conns.access_log.asked(id, &resource, is_upgrade(&head), &head);
                }
                let handler = self.handler_of(id, &head);
                let rest = read.get(consumed..).unwrap_or_default();
                match handler.and_then(|handler| self.begin(id, handler, head, rest)) {
                    Ok(()) | Err(Unserved::Answered) => {}
                    // As it came, until the password was compared.
                    Err(Unserved::Waits) => {
                        self.conns.keep_head(id, read.into_owned());
                        self.conns.pause(id, Pause::Handshake);
                    }
                    Err(Unserved::Reply(reply)) => self.conns.reply(id, reply),
                    Err(Unserved::Elsewhere(whom)) => return Some((whom, read)),
                }
            }
            Err(bad) => self.conns.reply(id, bad.into()),
        }
        None
    }

    /// Whether the console is served to this client.
    fn shows_console(&self, id: u64, head: &Head) -> bool {
        match self.conns.with_head(id, |head| head.console) {
            Some(Console::Always) => true,
            Some(Console::Local) => {
                let is_here = self.conns.peer(id).is_some_and(|peer| peer.ip().to_canonical().is_loopback());
                // A proxy that hides whom it relays cannot be told from a client.
                let is_relayed = FORWARDED.iter().any(|name| head.header_all(name).next().is_some());
                is_here && !is_relayed
            }
            Some(Console::Never) | None => false,
        }
    }

    /// The handler of this worker that a request is for, if it may have it.
    fn handler_of(&self, id: u64, head: &Head) -> Result<u16, Unserved> {
        if self.conns.life.is_stopping() {
            return Err(unavailable("the server is stopping").into());
        }
        self.check_request(id, head)?;
        self.check_authority(head)?;
        let found = self.conns.routes.find(head.path());
        if let (Some(handler), Some(conn)) = (found, self.conns.core.borrow_mut().table.get(id)) {
            conn.handler = handler; // what is answered counts for it
        }
        let Some(handler) = found.filter(|_| is_upgrade(head)) else {
            let user = self.authenticate(id, self.policy_of(None), head)?;
            let is_program =
                |path| self.conns.config.cgi.as_ref().is_some_and(|cgi| covers(&cgi.directories, path));
            if found.is_none() && is_program(head.path()) {
                let resource = self.policy_of(None).map(|policy| policy.resource(head).into_owned());
                return Err(Unserved::Elsewhere(Elsewhere::Program(Asked { user, resource })));
            }
            self.record_user(id, user.as_ref());
            let console = self.shows_console(id, head);
            return Err(self.site.serve(head, found.is_some(), console, SystemTime::now()).into());
        };
        self.check_limits(id, handler, head)?;
        let pool = self.handlers.pool_of(handler);
        if pool == self.conns.presence.pool {
            return Ok(handler); // `begin` asks the breaker, and may let a probe through
        }
        match self.breakers.get(pool, handler).and_then(|breaker| breaker.refusal(self.conns.now())) {
            Some(seconds) => Err(quarantined(seconds).into()),
            None => Err(Unserved::Elsewhere(Elsewhere::Pool(pool))),
        }
    }

    /// A request for a handler of this worker, followed by `rest`.
    fn begin(&self, id: u64, handler: u16, head: Head, rest: &[u8]) -> Result<(), Unserved> {
        let opening = handshake::check(&head).map_err(http::Response::from)?;
        let policy = self.policy_of(Some(handler));
        let user = self.authenticate(id, policy, &head)?;
        let service = self
            .handlers
            .service(handler)
            .ok_or_else(|| unavailable("the handler of this resource could not be started"))?;
        self.check_breaker(handler, id).map_err(quarantined)?;
        self.begin_handshake(id, handler, service, Request::new(head, opening, user, policy), rest);
        Ok(())
    }

    /// Calls do_extra_handshake: on the loop, or on the connection's own thread.
    pub fn begin_handshake(&self, id: u64, handler: u16, service: &Service, request: Request, rest: &[u8]) {
        let blocking = service.handler.is_blocking();
        if !self.record_strings(id, &request) {
            return self.conns.reply(id, http::error(431, "a resource or origin of more than 64 KiB", &[]));
        }
        let deflate = (!service.handler.has_flag(WS_NO_EXTENSIONS)).then_some(&service.deflate);
        let protocols = &service.plugin.protocols;
        let request = Arc::new(request);
        let handshake = Handshake::new(id, handler, request, protocols, deflate, blocking);
        let handshake = Arc::new(handshake);
        if blocking && self.session.threads.is_full() {
            return self.conns.reply(id, unavailable("too many connections to blocking handlers"));
        }
        self.registry.add(&handshake);
        self.conns.commands.set_handler(id, handler);
        let beginning = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            record.handler = handler; // it may crash already in the handshake
            record.set_head(handshake.request.head.as_bytes());
            // Of another process, in which this handshake has begun.
            record.set_state(b"");
            record.seal();
            record.set_flags(flags::TAKEN | if rest.is_empty() { flags::OPENING } else { flags::AHEAD });
            let beginning = blocking.then(|| ThreadStart {
                conn: id,
                number: handler,
                handler: service.handler,
                channel: self.session.threads.new_channel(id, service.handler),
                info: OwnedInfo::new(
                    Stage::Handshake,
                    record,
                    &conn.socket,
                    Some(Arc::clone(&handshake.request)),
                ),
                handshake: Some(Arc::clone(&handshake)),
            });
            let channel = beginning.as_ref().map(|beginning| Arc::clone(&beginning.channel));
            let unread = (!rest.is_empty()).then(|| rest.into());
            conn.phase = Phase::Opening(Arc::clone(&handshake), channel, unread, conn.deadline());
            conn.set_pause(Pause::Handshake, true, self.conns.now());
            beginning
        };
        if self.conns.recorder.records(handler) {
            self.conns.record_request(id, &handshake.request);
        }
        match beginning {
            Some(beginning) => {
                if let Err(error) = self.session.threads.start(beginning) {
                    log::error!("cannot start a thread for a blocking handler: {error}; answered 503");
                    self.discard(&handshake, handshake.finish().carried, None);
                    return self.conns.reply(id, unavailable("no thread can be started"));
                }
                self.conns.watch(id);
            }
            None => {
                let result =
                    self.handlers.tell(handler, Callback::Handshake, id, |handler| handler.handshake(id));
                if handshake.settle(result.unwrap_or(WS_OK)) {
                    self.finish_handshake(id);
                } else {
                    self.conns.watch(id);
                }
            }
        }
    }

    /// Stores resource and origin for the connection's life, with room for any subprotocol offered; false if they are
    /// too long.
    pub fn record_strings(&self, id: u64, request: &Request) -> bool {
        let longest = request.opening.protocols.iter().max_by_key(|name| name.len());
        let strings = Strings { protocol: longest.map(|name| name.as_bytes()), ..request.strings() };
        let recorded = self.conns.edit_record(id, |record| {
            let recorded = record.set_strings(strings);
            record.set_protocol(None);
            recorded.is_ok()
        });
        recorded == Some(true)
    }

    /// Writes the reply: the verdict is there, or the handshake has timed out.
    pub fn finish_handshake(&self, id: u64) {
        let Some((handshake, channel)) = self.opening(id) else { return };
        let mut finished = handshake.finish();
        let octets = std::mem::take(&mut finished.carried.octets);
        let refusal = match finished.verdict {
            HandshakeResult::Accept if self.is_unmatched(&handshake, &finished) => {
                Some(http::error(400, "none of the subprotocols that were offered is spoken here", &[]))
            }
            HandshakeResult::Accept => return self.accept(id, &handshake, finished, &octets, channel, None),
            HandshakeResult::AcceptAndClose(code, ref mut reason) => {
                let close = Some((code, std::mem::take(reason)));
                return self.accept(id, &handshake, finished, &octets, channel, close);
            }
            HandshakeResult::Reject { status, content_type, body } if octets.is_empty() => {
                Some(rejection(status, content_type.as_deref(), body, &finished.headers))
            }
            HandshakeResult::Reject { .. } | HandshakeResult::Abort => None,
        };
        self.discard(&handshake, finished.carried, channel.as_deref());
        if let Some(refusal) = refusal {
            return self.conns.reply(id, refusal);
        }
        self.conns.metrics.of(handshake.handler).count_status(0);
        match octets.is_empty() {
            true => self.conns.remove(id),
            false => self.conns.reply_octets(id, &octets),
        }
    }

    /// The handshake has ended without an open connection that its handler knows of: what it carries is released, and
    /// what was posted is called for a connection that is gone.
    fn discard(&self, handshake: &Handshake, carried: Carried, channel: Option<&ThreadChannel>) {
        let id = handshake.conn;
        self.registry.remove(id);
        if let Some(channel) = channel {
            // All that was posted waits in the handshake.
            drop(channel.end(Ended { by: WS_BY_HOST, code: 1006 }));
        }
        drop(carried);
        for task in handshake.close_posts() {
            self.handlers.call_about(handshake.handler, Callback::Task, id, || task.run(id));
        }
    }

    /// Writes 101 and opens the connection.
    pub fn accept(
        &self,
        id: u64,
        handshake: &Handshake,
        finished: Finished,
        octets: &[u8],
        channel: Option<Arc<ThreadChannel>>,
        close: Option<(Option<u16>, Vec<u8>)>,
    ) {
        let handler = handshake.handler;
        let Some(service) = self.handlers.service(handler) else { return };
        let Finished { protocol, deflate, headers, mut carried, .. } = finished;
        {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            record.cut();
            record.forget_head();
            if let Some((params, threshold, level)) = deflate {
                (record.deflate, record.threshold, record.level) = (params.to_bits(), threshold, level);
            }
            record.set_protocol(protocol.as_deref().map(str::as_bytes));
            if let Some(state) = carried.state.take() {
                record.set_state(&state);
            }
            let out = conn.queue.get_or_insert_with(|| core.queue_pool.take()).tail();
            if octets.is_empty() {
                let extensions = deflate.map(|(params, ..)| params.header_value());
                let opening = &handshake.request.opening;
                let (protocol, extensions) = (protocol.as_deref(), extensions.as_deref());
                handshake::write_switching(out, opening, protocol, extensions, &headers);
            } else {
                out.extend_from_slice(octets);
            }
        }
        self.conns.metrics.of(handler).count_status(101);
        let keeps_request = service.handler.has_flag(WS_KEEP_REQUEST);
        let request = keeps_request.then(|| Arc::clone(&handshake.request));
        let options = OpenOptions { is_new: true, request, ..OpenOptions::default() };
        if let Some((code, reason)) = close {
            self.session.open(id, handler, OpenOptions { silent: true, ..options });
            self.conns.flush(id);
            self.discard(handshake, carried, channel.as_deref());
            return self.conns.close(id, code, &reason, WS_BY_HANDLER);
        }
        self.session.open(id, handler, OpenOptions { channel: channel.clone(), carried, ..options });
        // Before the handler is called: if it crashes, a Close frame must follow the reply.
        self.conns.flush(id);
        // In this order: who posts finds the connection open, or the handshake in progress.
        for task in self.conns.commands.post_all(id, handshake.close_posts()) {
            self.session.run_task(id, task);
        }
        self.registry.remove(id);
        match channel {
            Some(channel) => {
                let core = &mut *self.conns.core.borrow_mut();
                let Some(record) = core.table.record(id) else { return };
                let protocol = record.strings().protocol.map(<[u8]>::to_vec);
                channel.open(Agreed { protocol, deflate: record.deflate });
            }
            None => self.session.notify_open(id, handler),
        }
        self.conns.arm(id);
    }

    /// Ends a handshake that the handler has not decided; which handler that is.
    fn abandon(&self, id: u64) -> Option<u16> {
        let (handshake, channel) = self.opening(id)?;
        self.discard(&handshake, handshake.finish().carried, channel.as_deref());
        Some(handshake.handler)
    }

    pub fn drop_unopened(&self, id: u64) {
        if let Some(handler) = self.abandon(id) {
            self.conns.metrics.of(handler).count_status(0);
        }
        self.conns.remove(id);
    }

    /// The handshake, a reply, or the peer's end after it has taken too long.
    pub fn timed_out(&self, id: u64) {
        if self.abandon(id).is_some() {
            return self.conns.reply(id, unavailable("the handler did not decide in time"));
        }
        let parse = |head: &mut PartialHead| {
            (!head.read.is_empty()).then(|| head::parse(&head.read, &self.conns.config.head))
        };
        match self.conns.with_head(id, parse).flatten() {
            // It waits for a password to be compared, or for a process.
            Some(Ok(Parsed::Head { .. })) => {
                self.conns.reply(id, unavailable("the request could not be served in time"));
            }
            Some(_) => self.conns.reply(id, http::error(408, "the request did not come in time", &[])),
            None => self.conns.remove(id),
        }
    }

    /// A handshake that the handler decides about, and the channel to its thread.
    fn opening(&self, id: u64) -> Option<(Arc<Handshake>, Option<Arc<ThreadChannel>>)> {
        match &self.conns.core.borrow_mut().table.get(id)?.phase {
            Phase::Opening(handshake, channel, ..) => Some((Arc::clone(handshake), channel.clone())),
            _ => None,
        }
    }
}
