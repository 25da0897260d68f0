//! The supervisor's part of `wshd ctl`: what requests see of it, and carrying out what they ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;

use super::Supervisor;
use super::policy::rolling_restart::{self, Step};
use super::policy::upgrade;
use super::processes::{Kind, Role};
use super::reload::failed;
use crate::clock;
use crate::control::Number;
use crate::control::view::{Process, View};
use crate::ctl::request::{Request, Switch};
use crate::exit::Exit;
use crate::time::Instant;

impl Supervisor {
    /// Serves clients of the control socket. While another executable still serves, it is the one to be asked.
    pub(super) fn serve_control(&mut self) {
        let now = clock::now();
        if self.upgrade.predecessor.is_some() {
            return;
        }
        let Some(asked) = self.host.control.read(!self.upgrade.is_superseded(), now) else { return };
        let mut control = std::mem::take(&mut self.host.control); // the view borrows the rest
        let requests = control.serve(asked, &self.view(), now);
        self.host.control = control;
        for (client, request) in requests {
            self.operate(client, request);
        }
    }

    fn operate(&mut self, client: Number, request: Request) {
        let time = |seconds: u32| Duration::from_secs(seconds.into());
        let result = match request {
            Request::Stop { now } => return self.stop(Exit::Ok, now),
            Request::Reload {} => return self.rolling.is_reload_wanted = true,
            Request::Upgrade {} => return self.upgrade.is_wanted = true,
            Request::Drain { seconds } => self.drain_by_order(seconds.map(time)),
            Request::Resume {} => self.resume_by_order(),
            Request::Cancel {} => self.cancel(),
            Request::LogLevel { level: Some(level) } => {
                self.set_log_level(level);
                Ok(level.name().into())
            }
            Request::Workers { pool, change } => self.change_workers(&pool, change),
            Request::Quarantine { resource: Some(resource), state: Some(state), seconds } => {
                self.quarantine_by_order(&resource, state, seconds.map(time))
            }
            // The room `control` has answered it.
            _ => return,
        };
        self.host.control.answer(client, &result);
    }

    /// What a request sees.
    fn view(&self) -> View<'_> {
        let channel_of = |pid: Option<Pid>| self.processes.get(pid?)?.channel.as_ref();
        let process = |slot, pid, is_leaving| Process { slot, pid, is_leaving, channel: channel_of(pid) };
        // Slots whose workers are due come without a process.
        let holders: BTreeMap<usize, Pid> = self.processes.holders().collect();
        let present = (0..self.processes.slots())
            .map(|slot| (slot, holders.get(&slot).copied()))
            .filter(|(slot, pid)| pid.is_some() || self.slots.is_taken(*slot))
            .map(|(slot, pid)| process(slot, pid, false));
        let leaving = self
            .processes
            .iter()
            .filter(|(_, process)| matches!(process.role, Role::Draining | Role::Crashed))
            .filter_map(|(pid, leaving)| Some(process(leaving.slot?, Some(pid), true)));
        let bus = self.auxiliaries.serving(Kind::Bus);
        View {
            config: &self.generation.config,
            routes: &self.generation.routes,
            listeners: &self.generation.listeners,
            shared: self.shared,
            processes: present.chain(leaving).collect(),
            bus: bus.and_then(|pid| Some((pid.as_raw(), channel_of(Some(pid))?))),
            is_upgrading: self.upgrade.policy.is_under_way(),
            longest_turn: self.host.longest_turn,
            draining: self.draining(),
        }
    }

    /// Gives up a reload or an upgrade that waits for its new processes.
    fn cancel(&mut self) -> Result<Value, String> {
        const WHY: &str = "cancelled by wshd ctl";
        if self.rolling.reload.is_some() {
            self.cancel_loading(WHY);
            self.rolling.policy.on(rolling_restart::Event::CancelReload(WHY.to_owned()));
            return Ok("reload cancelled".into());
        }
        if self.upgrade.policy.is_pending() {
            self.on_upgrade(upgrade::Event::Cancel(WHY.to_owned()));
            return Ok("upgrade cancelled".into());
        }
        if self.rolling.is_reload_wanted {
            self.rolling.is_reload_wanted = false;
            self.host.control.reload_begins();
            self.host.control.reload_ends(&Err(failed(WHY)));
            return Ok("reload cancelled".into());
        }
        Err("no reload or upgrade to cancel".to_owned())
    }

    /// Quarantines the handler of a resource, or lifts its quarantine; the handler.
    fn quarantine_by_order(
        &mut self,
        resource: &str,
        state: Switch,
        time: Option<Duration>,
    ) -> Result<Value, String> {
        let number =
            self.generation.routes.find(resource).ok_or_else(|| format!("no handler serves {resource}"))?;
        match state {
            Switch::On => self.quarantine(number, time),
            Switch::Off => self.lift_quarantine(number)?,
        }
        let handlers: Vec<_> = self.view().handler(number).into_iter().collect();
        serde_json::to_value(handlers).map_err(|error| error.to_string())
    }

    fn quarantine(&self, number: u16, time: Option<Duration>) {
        let until = time.map_or(Instant::NEVER, |time| clock::now() + time);
        if let Some(breaker) = self.breaker(number) {
            breaker.open(until);
        }
        if let Some(route) = self.generation.routes.handlers().get(usize::from(number)) {
            let how_long = time.map_or("until it is switched off".to_owned(), |time| format!("for {time:?}"));
            log::warn!("{}: quarantined by wshd ctl {how_long}; {} answers 503", route.name, route.resource);
        }
    }

    fn lift_quarantine(&mut self, number: u16) -> Result<(), String> {
        let was_loaded = !self.postmortem.quarantine.does_not_start(number);
        if !was_loaded {
            self.may_replace()?;
        }
        self.forgive(number);
        let Some(route) = self.generation.routes.handlers().get(usize::from(number)) else { return Ok(()) };
        if was_loaded {
            log::warn!("{}: quarantine lifted by wshd ctl; handler back in service", route.name);
            return Ok(());
        }
        log::warn!(
            "{}: quarantine lifted by wshd ctl; replacing the workers that run without it",
            route.name
        );
        let pool = self.generation.config.pool_of(&route.resource);
        for (place, slot) in
            self.all_workers().into_iter().filter(|(place, _)| usize::from(place.pool) == pool)
        {
            if !self.rolling.policy.retires(slot) {
                let step = Step { start: Some(place), retire: Some(slot) };
                self.rolling.policy.on(rolling_restart::Event::Step(step));
            }
        }
        Ok(())
    }
}
