//! Recording what the connections of a handler receive: the processes of its pool are given the socket that a client
//! has sent, and write to it. The client ends it by leaving.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use serde_json::Value;

use super::Control;
use super::view::View;
use crate::config::Config;
use crate::ctl::record::ENDED;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::control::{Channel, Command};
use crate::fleet::sockets::datagram;
use crate::time::Instant;

/// A recording that runs.
pub(super) struct Recording {
    /// Nothing is written to it here.
    socket: OwnedFd,
    resource: String,
    pool: u16,
    order: Command,
}

impl Recording {
    /// What to wait for: only that its other end is closed.
    pub(super) fn interest(&self) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), PollFlags::empty())
    }

    /// The last line, of this process: those that write the others are about to leave.
    pub(super) fn say_why_it_ends(&self, why: &str) {
        // If there is no room, the client learns that the server has ended.
        let _ = datagram::send_at_once(self.socket.as_fd(), format!("{ENDED}{why}\n").as_bytes(), &[]);
    }

    /// Whether the client has left.
    pub(super) fn is_over(&self) -> bool {
        datagram::is_hung_up(self.socket.as_fd())
    }
}

impl Control {
    /// Begins to record; the handler.
    pub(super) fn record(
        &mut self,
        resource: &str,
        longest: u32,
        socket: Option<OwnedFd>,
        view: &View<'_>,
        now: Instant,
    ) -> Result<Value, String> {
        if let Some(other) = &self.recording {
            return Err(format!("{} is being recorded: one at a time", other.resource.escape_debug()));
        }
        let socket = socket.filter(is_of_datagrams).ok_or("expected a socket of datagrams with it")?;
        let number = view.routes.find(resource);
        let handler = number.and_then(|number| view.handler(number));
        let (Some(number), Some(handler)) = (number, handler) else {
            return Err(format!("no handler serves {}: see wshd ctl status", resource.escape_debug()));
        };
        let order = Command::Record { handler: number, longest, begun: now };
        let (pool, resource) = (pool_of(view.config, view.routes, number), resource.to_owned());
        let recording = Recording { socket, resource, pool, order };
        tell(view, &recording, true);
        self.recording = Some(recording);
        serde_json::to_value(handler).map_err(|error| error.to_string())
    }

    /// Another generation is in force, in which the handler may be in another pool.
    pub fn follow_recording(&mut self, config: &Config, routes: &Routes) {
        if let Some(recording) = &mut self.recording
            && let Some(number) = routes.find(&recording.resource)
        {
            recording.pool = pool_of(config, routes, number);
        }
    }

    /// A new process of this pool takes part.
    pub fn join_recording(&self, pool: u16, channel: &Channel) {
        if let Some(recording) = self.recording.as_ref().filter(|recording| recording.pool == pool) {
            // One that cannot be told has died.
            let _ = channel.send_command_with(recording.order, &[recording.socket.as_fd()]);
        }
    }

    /// Ends a recording whose client has left.
    pub(super) fn end_recording(&mut self, view: &View<'_>) {
        if let Some(recording) = self.recording.take_if(|recording| recording.is_over()) {
            tell(view, &recording, false);
            log::info!("recording of {} ended", recording.resource.escape_debug());
        }
    }
}

fn pool_of(config: &Config, routes: &Routes, handler: u16) -> u16 {
    routes.get(handler).map_or(0, |route| config.pool_of(&route.resource) as u16)
}

/// Has the processes of its pool begin, or end it.
fn tell(view: &View<'_>, recording: &Recording, is_on: bool) {
    for (pid, slot, channel) in view.channels() {
        if view.shared.scoreboard.place(slot).is_none_or(|place| place.pool != recording.pool) {
            continue;
        }
        let socket = is_on.then_some(recording.socket.as_fd());
        let told = channel.send_command_with(recording.order, socket.as_slice());
        if told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            log::warn!(
                "recording: process {pid} does not read its commands; its connections are not recorded"
            );
        }
    }
}

/// Whether it keeps what processes write apart, and takes no other's place.
fn is_of_datagrams(fd: &OwnedFd) -> bool {
    let is_unix = |address: SockaddrStorage| address.family() == Some(AddressFamily::Unix);
    getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket)
        && getsockname(fd.as_raw_fd()).is_ok_and(is_unix)
}
