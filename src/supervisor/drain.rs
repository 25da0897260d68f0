//! Draining the server, as `policy::drain` decides. Workers read in shared memory what they have to do ([`Readiness`]);
//! gateways are told to leave, and started again by a resume.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::policy::drain::{Action, Drain, Event};
use super::processes::Role;
use super::{Busy, Supervisor};
use crate::clock;
use crate::ctl::answer::{Draining, seconds};
use crate::exit::Exit;
use crate::fleet::memory::bulletin::Readiness;
use crate::fleet::memory::scoreboard::State;

/// Over which time connections are closed if nobody says.
const DEFAULT_TIME: Duration = Duration::from_secs(60);

impl Supervisor {
    /// SIGTERM: the server drains first, if that is configured and possible; told again it stops.
    pub(super) fn terminate(&mut self) {
        let time = self.generation.config.drain.before_stop;
        if time.is_zero() || self.drain.is_on() || self.may_drain().is_err() {
            return self.stop(Exit::Ok, false);
        }
        self.begin_drain(time, true);
        self.host.notify.stopping(self.time_to_drain() + self.stop_time());
    }

    /// `wshd ctl drain`: begins, or changes the time.
    pub(super) fn drain_by_order(&mut self, time: Option<Duration>) -> Result<Value, String> {
        self.may_drain()?;
        let configured = Some(self.generation.config.drain.before_stop).filter(|time| !time.is_zero());
        self.begin_drain(time.or(configured).unwrap_or(DEFAULT_TIME), false);
        if self.drain.is_last() {
            self.host.notify.extend(self.time_to_drain() + self.stop_time());
        }
        Ok(format!("draining; the server stops in {:.0?} at the latest", self.time_to_drain()).into())
    }

    /// `wshd ctl resume`.
    pub(super) fn resume_by_order(&mut self) -> Result<Value, String> {
        if self.slots.is_stopping() || self.drain.is_last() {
            return Err("the server is told to stop; it cannot resume".to_owned());
        }
        if !self.drain.is_on() {
            return Err("the server is not draining".to_owned());
        }
        self.on_drain(Event::Resume);
        Ok("resumed: new connections are accepted".into())
    }

    /// Whether the server can drain now.
    fn may_drain(&self) -> Result<(), String> {
        let busy = self.busy(&[Busy::Draining, Busy::Replacing]);
        busy.map_or(Ok(()), |why| Err(format!("cannot drain: {why}")))
    }

    fn begin_drain(&mut self, time: Duration, is_last: bool) {
        self.abort_rolling("the server is draining");
        let grace = self.generation.config.drain.delay;
        self.on_drain(Event::Begin { grace, time, is_last });
    }

    fn on_drain(&mut self, event: Event) {
        let Some(action) = self.drain.on(event, clock::now()) else { return };
        let scoreboard = self.shared.scoreboard;
        match action {
            Action::Announce => {
                scoreboard.bulletin().set_readiness(Readiness::Draining);
                let grace = self.generation.config.drain.delay;
                self.tell_drain(&format!("health checks fail; accepting connections for {grace:?} more"));
            }
            Action::Close { until } => {
                let is_accepting = scoreboard.bulletin().readiness().accepts();
                let code = self.generation.config.drain.code;
                scoreboard.bulletin().set_readiness(Readiness::Closing { until, code });
                if is_accepting {
                    self.settle_auxiliaries();
                    self.generation.listeners.iter().for_each(|listener| listener.pause());
                }
                let (open, time) = (self.connections(), self.time_to_drain());
                self.tell_drain(&format!("accepting no more; closing {open} connections over {time:.0?}"));
            }
            Action::Resume => self.resume(),
            Action::Stop => {
                let open = self.connections();
                log::info!("drain: done, {open} connections left; stopping");
                self.stop(Exit::Ok, false);
            }
        }
    }

    fn resume(&mut self) {
        let was_accepting = self.shared.scoreboard.bulletin().readiness().accepts();
        if !was_accepting {
            self.listen_again();
        }
        self.shared.scoreboard.bulletin().set_readiness(Readiness::Ready);
        log::info!("drain: resumed; accepting connections");
        self.host.notify.status(&self.summary());
    }

    /// A handler can shut down a listening socket, which all workers share. To be called once in a while.
    pub(super) fn repair_listeners(&mut self) {
        let is_in_use =
            self.shared.scoreboard.bulletin().readiness().accepts() && !self.upgrade.is_superseded();
        let deaf = self.deaf_listeners();
        if !is_in_use || deaf == self.maintenance.deaf {
            return;
        }
        if !deaf.is_empty() {
            log::error!("a handler has shut down {deaf}, where connections are refused; listening again");
            self.listen_again();
        }
        self.maintenance.deaf = self.deaf_listeners();
        if !self.maintenance.deaf.is_empty() {
            log::error!("connections are still refused on {}; restart the server", self.maintenance.deaf);
        }
    }

    /// The listening sockets that were shut down.
    fn deaf_listeners(&self) -> String {
        let deaf = self.generation.listeners.iter().filter(|listener| !listener.is_listening());
        deaf.map(|listener| listener.address.to_string()).collect::<Vec<_>>().join(" and ")
    }

    fn listen_again(&self) {
        let config = &self.generation.config;
        for listener in &self.generation.listeners {
            let backlog = config.listener(listener.asked()).binding.backlog;
            if let Err(error) = listener.listen_again(backlog) {
                log::error!("cannot listen on {} again: {error}; restart the server", listener.address);
            }
        }
    }

    fn tell_drain(&mut self, text: &str) {
        log::info!("drain: {text}");
        self.host.notify.status(&format!("Draining: {text}"));
    }

    /// What is due; in each turn, of which there is one a second at least.
    pub(super) fn go_on_with_drain(&mut self) {
        if !self.drain.is_on() {
            return;
        }
        self.on_drain(Event::Time);
        if matches!(self.drain, Drain::Closing { .. }) && self.connections() == 0 && !self.are_any_moving() {
            self.on_drain(Event::Empty);
        }
    }

    /// Whether connections may be on their way: from a worker that has crashed, or to one that is to come.
    fn are_any_moving(&self) -> bool {
        let serves = |slot| {
            let record = self.shared.scoreboard.slot(slot);
            record.is_some_and(|record| record.state() == State::Running)
        };
        self.processes.in_role(Role::Crashed).next().is_some()
            || !self.slots.taken().all(serves)
            || (0..self.processes.slots()).any(|slot| self.processes.has_mail(slot))
    }

    /// How the server drains, if it does.
    pub(super) fn draining(&self) -> Option<Draining> {
        let accepting = self.shared.scoreboard.bulletin().readiness().accepts();
        self.drain.is_on().then(|| Draining { accepting, seconds: seconds(self.time_to_drain()) })
    }

    fn time_to_drain(&self) -> Duration {
        self.drain.end().map_or(Duration::ZERO, |end| end.since(clock::now()))
    }

    /// Connections of all workers.
    fn connections(&self) -> u64 {
        let slots = self.shared.scoreboard.slots().map(|(_, slot)| slot);
        slots.map(|slot| u64::from(slot.connections.load(Ordering::Relaxed))).sum()
    }
}
