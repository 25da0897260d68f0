//! The event loop accepts, and hands what it has accepted to the handshake.

use socket2::Socket;

use crate::fleet::memory::scoreboard::{Fault, State};
use crate::fleet::sockets::control::Report;
use crate::worker::Worker;
use crate::worker::conn::record::foreign::Arrival;
use crate::worker::crash::signals::{self, uninterrupted};
use crate::worker::listen::acceptor::AT_A_TIME;
use crate::worker::listen::admission;

impl Worker {
    /// Accepts up to `most` connections from the listening socket with this number, as far as this worker may take
    /// them.
    pub fn accept_from(&self, number: usize, most: usize) {
        for _ in 0..most {
            signals::begin_work();
            if !uninterrupted(|| {
                self.acceptor.accept(number, |socket, arrival| self.admit(number, socket, arrival))
            }) {
                return;
            }
            if !self.acceptor.may_go_on() {
                return;
            }
        }
    }

    /// Once in a second: takes what waits although nobody was woken for it (see [`crate::worker::listen::acceptor`]),
    /// and tells the supervisor if this worker cannot.
    pub fn look_for_connections(&self) {
        if !self.acceptor.is_poll_due(self.conns.now()) {
            return;
        }
        let slot = self.conns.presence.slot;
        let has_descriptors = self.descriptors.check();
        if has_descriptors && slot.state() != State::Standby {
            self.transfer.intake.watch();
        }
        let is_faulty = matches!(slot.fault(), Some(Fault::Descriptors | Fault::Listener | Fault::Inbox));
        if is_faulty && slot.state() == State::Running {
            self.conns.presence.report(Report::Faulty);
        }
        if self.acceptor.exists() {
            self.acceptor.resume();
            self.acceptor.share.watch_saturation();
        }
        self.accept_from_all();
    }

    /// Accepts what this worker may have been woken for, then closes the acceptor.
    pub fn stop_accepting(&self) {
        self.accept_from_all();
        self.acceptor.close();
    }

    fn accept_from_all(&self) {
        for number in 0..self.acceptor.sockets() {
            if self.acceptor.is_accepting() {
                self.accept_from(number, AT_A_TIME);
            }
        }
    }

    fn admit(&self, number: usize, socket: Socket, arrival: &Arrival<'_>) {
        let listener = self.acceptor.listener(number);
        let is_draining =
            listener.is_some() && !self.conns.presence.scoreboard.bulletin().readiness().accepts();
        match self.session.admission.admit(arrival.peer, is_draining) {
            Ok(permit) => {
                self.conns.metrics.place.accepted.add_shared(1);
                self.conns.presence.accepted();
                let config = &self.conns.config;
                let listener =
                    listener.map_or(&config.listener, |listener| config.listener(listener.asked()));
                // One that is refused is closed.
                _ = self.handshakes.start_connection(socket, arrival, permit, listener);
            }
            Err(refusal) => {
                self.session.admission.note(refusal, arrival.peer, "");
                // Refusals take at most half of the connection table.
                if self.acceptor.share.is_half_full() || !self.session.admission.may_answer() {
                    return admission::cut(&socket, refusal);
                }
                self.conns.presence.accepted();
                self.handshakes.refuse_with_response(socket, refusal);
            }
        }
    }
}
