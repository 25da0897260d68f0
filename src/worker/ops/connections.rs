//! For operators (`wshd ctl`): the list of this worker's connections. It has a bound,
//! so that writing it does not hold the event loop up.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::ctl::answer::{Connection, seconds};
use crate::ctl::request::Id;
use crate::fleet::control::Report;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{Place, Slot};
use crate::worker::conn::connections::{Conns, Core};
use crate::worker::conn::table::Phase;

/// Most connections in a list.
const MAX_LINES: usize = 20_000;
/// Most bytes of a list; resources can be long.
const MAX_BYTES: usize = 4 << 20;

/// The connections of a worker, as operators see them.
pub struct Listing {
    /// All of them.
    pub conns: &'static Conns,
    /// What they are served by.
    pub routes: Arc<Routes>,
    /// Which worker this is.
    pub slot: &'static Slot,
    /// This process.
    pub pid: i32,
}

impl Listing {
    /// Writes the list into a file; what is to be reported of that.
    pub fn write(&self, ticket: u64, file: Option<OwnedFd>) -> Report {
        let (text, listed, left_out) = self.text();
        let written = file.map_or(Err(io::ErrorKind::InvalidInput.into()), |file| {
            File::from(file).write_all(text.as_slice())
        });
        match written {
            Ok(()) => Report::Listed { ticket, listed, left_out },
            Err(error) => {
                log::error!("cannot write the list of connections: {error}");
                Report::Listed { ticket, listed: 0, left_out: listed + left_out }
            }
        }
    }

    /// JSON objects with commas between, how many, and how many more there would be.
    fn text(&self) -> (Vec<u8>, u64, u64) {
        let (mut text, mut listed, mut left_out) = (Vec::new(), 0, 0);
        let Place { pool, number } = self.slot.place();
        let name = self.conns.config.worker_name(pool, number);
        let name = name.strip_prefix("worker ").unwrap_or(&name);
        let core = &mut *self.conns.core.borrow_mut();
        for id in core.table.ids() {
            let end = text.len();
            let has_room = (listed as usize) < MAX_LINES && end < MAX_BYTES;
            let entry = has_room.then(|| self.entry(core, id, name)).flatten();
            if end > 0 {
                text.push(b',');
            }
            // Writing to memory fails for no connection.
            if entry.is_some_and(|entry| serde_json::to_writer(&mut text, &entry).is_ok()) {
                listed += 1;
            } else {
                text.truncate(end);
                left_out += 1;
            }
        }
        (text, listed, left_out)
    }

    fn entry<'a>(&'a self, core: &'a mut Core, id: u64, worker: &'a str) -> Option<Connection<'a>> {
        let record = core.table.record(id)?;
        let (peer, deflate) = (record.peer.address(), record.deflate);
        let text = |bytes: &[u8]| Cow::Owned(String::from_utf8_lossy(bytes).into_owned());
        let strings = record.strings();
        let (resource, protocol) = (text(strings.resource), strings.protocol.map(text));
        let user = strings.user.map(text);
        let conn = core.table.get(id)?;
        let (phase, handler, resource, protocol) = match &conn.phase {
            Phase::Head(..) => ("request", None, None, None),
            Phase::Opening(handshake, ..) => {
                ("handshake", Some(handshake.handler), Some(text(handshake.request.strings().resource)), None)
            }
            Phase::Reply(..) => ("reply", None, None, None),
            Phase::Open(open) if open.over || open.is_closing() => {
                ("closing", Some(conn.handler), Some(resource), protocol)
            }
            Phase::Open(_) => ("open", Some(conn.handler), Some(resource), protocol),
            Phase::Linger(_) => ("ended", None, None, None),
        };
        let route = handler.and_then(|handler| self.routes.handlers().get(usize::from(handler)));
        Some(Connection {
            id: Id { pid: self.pid, conn: id }.to_string().into(),
            worker: worker.into(),
            peer: peer.map(|peer| peer.to_string()),
            phase: phase.into(),
            resource,
            handler: route.map(|route| route.name.as_str().into()),
            user,
            protocol,
            compressed: phase != "request" && deflate != 0,
            age: seconds(Duration::from_nanos(
                self.conns.life.now.get().saturating_sub(u64::from(conn.since) * 1_000_000_000),
            )),
            queued: conn.queued() as u64,
        })
    }
}
