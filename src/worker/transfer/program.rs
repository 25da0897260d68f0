//! Requests for programs on their way to the process that runs these, with their sockets.

use std::io;
use std::os::fd::AsFd;

use crate::cgi::handover::{self, RequestFacts};
use crate::fleet::sockets::facts::GatewayFacts;
use crate::http;
use crate::worker::crash::signals::uninterrupted;
use crate::worker::handshake::outcome::Asked;
use crate::worker::handshake::outcome::unavailable;
use crate::worker::transfer::Transfer;

impl Transfer {
    /// Hands a request over, with what was read of it.
    pub fn forward_to_program(&self, id: u64, asked: &Asked, read: &[u8]) {
        let sent = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            let gateway = record.facts().and_then(GatewayFacts::from_bytes).unwrap_or_default();
            let text =
                |fact: Option<&[u8]>| fact.and_then(|fact| str::from_utf8(fact).ok().map(str::to_owned));
            let facts = RequestFacts {
                peer: record.peer.address(),
                user: asked.user.as_ref().map(|user| user.name().to_owned()),
                resource: asked.resource.clone(),
                at: self.conns.now().as_nanos(),
                is_tls: gateway.is_tls,
                local: text(gateway.local).and_then(|local| local.parse().ok()),
                hsts: text(gateway.hsts),
            };
            let to = self.cgi.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
            to.and_then(|to| {
                uninterrupted(|| {
                    handover::send(to.as_fd(), conn.socket.as_fd(), &facts, read)?;
                    // It is the receiver's: a rescue must not send it once more.
                    record.leave_alone();
                    Ok(())
                })
            })
        };
        match sent {
            Ok(()) => self.forget_moved(id, false),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.conns.reply(id, http::error(431, "the request is too large for a program", &[]));
            }
            Err(_) => self.conns.reply(id, unavailable("too many requests wait for programs")),
        }
    }
}
