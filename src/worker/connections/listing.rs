//! For operators (`wshd ctl`): the list of this worker's connections. It has a bound,
//! so that writing it does not hold the event loop up.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use crate::ctl::answer::{Connection, seconds};
use crate::ctl::filter::Filter;
use crate::ctl::request::{Id, MAX_BYTES as MAX_FILTER};
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::sockets::control::Report;
use crate::time::Instant;
use crate::worker::conn::table::Phase;
use crate::worker::connections::{Conns, Core};

/// Most connections in a list.
const MAX_LINES: usize = 20_000;
/// Most bytes of a list; resources can be long.
const MAX_BYTES: usize = 4 << 20;

/// Writes the list into a file, in place of the filter in it; what is to be reported of that.
pub fn list(conns: &Conns, ticket: u64, file: Option<OwnedFd>) -> Report {
    let (listed, left_out) = try_list(conns, file).unwrap_or_else(|error| {
        log::error!("cannot write the list of connections: {error}");
        (0, conns.len().into())
    });
    Report::Listed { ticket, listed, left_out }
}

/// The connections that the filter in a file lets through.
pub fn matching(conns: &Conns, file: Option<OwnedFd>) -> Vec<u64> {
    let filter = match file.ok_or(io::ErrorKind::InvalidInput.into()).and_then(|file| filter_in(&file.into()))
    {
        Ok(filter) => filter,
        Err(error) => {
            log::error!("cannot read which connections to close: {error}");
            return Vec::new();
        }
    };
    let core = &mut *conns.core.borrow_mut();
    let ids = core.table.ids();
    let matches = |id: &u64| entry(conns, core, *id, "").is_some_and(|entry| filter.matches(&entry));
    ids.into_iter().filter(matches).collect()
}

/// How many were listed, and how many more there would be.
fn try_list(conns: &Conns, file: Option<OwnedFd>) -> io::Result<(u64, u64)> {
    let mut file = File::from(file.ok_or(io::ErrorKind::InvalidInput)?);
    let (text, listed, left_out) = text(conns, &filter_in(&file)?);
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&text)?;
    Ok((listed, left_out))
}

/// JSON objects with commas between, how many, and how many more there would be.
fn text(conns: &Conns, filter: &Filter) -> (Vec<u8>, u64, u64) {
    let (mut text, mut listed, mut left_out) = (Vec::new(), 0, 0);
    let Place { pool, number } = conns.presence.slot.place();
    let name = conns.config.worker_name(pool, number);
    let name = name.strip_prefix("worker ").unwrap_or(&name);
    let core = &mut *conns.core.borrow_mut();
    for id in core.table.ids() {
        let entry = entry(conns, core, id, name);
        if entry.as_ref().is_some_and(|entry| !filter.matches(entry)) {
            continue;
        }
        let end = text.len();
        let entry = entry.filter(|_| (listed as usize) < MAX_LINES && end < MAX_BYTES);
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

fn entry<'a>(conns: &'a Conns, core: &'a mut Core, id: u64, worker: &'a str) -> Option<Connection<'a>> {
    let (conn, record) = core.table.both(id)?;
    let (peer, deflate) = (record.peer.address(), record.deflate);
    let text = |bytes: &[u8]| Cow::Owned(String::from_utf8_lossy(bytes).into_owned());
    let strings = record.strings();
    let (resource, protocol) = (text(strings.resource), strings.protocol.map(text));
    let user = strings.user.map(text);
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
    let route = handler.and_then(|handler| conns.routes.get(handler));
    Some(Connection {
        id: Id { pid: conns.presence.pid, conn: id }.to_string().into(),
        worker: worker.into(),
        peer: peer.map(|peer| peer.to_string()),
        phase: phase.into(),
        resource,
        handler: route.map(|route| route.name.as_str().into()),
        user,
        protocol,
        compressed: phase != "request" && deflate != 0,
        age: seconds(conns.now().since(Instant::from_seconds(conn.since))),
        queued: conn.queued() as u64,
    })
}

/// The filter that the supervisor has written into a file, which other workers may read as well.
fn filter_in(file: &File) -> io::Result<Filter> {
    let mut text = vec![0; MAX_FILTER];
    let size = file.read_at(&mut text, 0)?;
    text.truncate(size);
    Ok(serde_json::from_slice(&text)?)
}
