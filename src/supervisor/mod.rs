//! The supervisor: binds, forks, watches, replaces, stops. Small and single-threaded; never reads a byte of a
//! client and never loads a handler. What it does when is decided in [`plan`]; here it is carried out.

pub mod alias;
pub mod balance;
pub mod check;
pub mod crash;
mod deaths;
pub mod discover;
pub mod plan;
pub mod quarantine;
pub mod scan;
pub mod spawn;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use self::deaths::Deaths;
use self::plan::{Action, Event, Plan, Times};
use crate::config::{Config, RESERVED_DESCRIPTORS, Wear};
use crate::exit::Exit;
use crate::fleet::control::{Channel, Command, Report};
use crate::fleet::inbox::Inbox;
use crate::fleet::listener::{self, Bound, Listener};
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{self, Scoreboard, State};
use crate::fleet::title;

/// Serves until told to stop. What went wrong is in the log; the result is the exit code.
pub fn run(mut config: Config) -> Exit {
    title::set("wshd: supervisor");
    crate::log::set_process("supervisor");
    raise_descriptors(&mut config);
    match Fleet::prepare(config) {
        Ok(mut fleet) => {
            let exit = fleet.serve();
            fleet.listeners.iter().for_each(Listener::remove_file);
            exit
        }
        Err((exit, why)) => {
            log::error!(target: crate::log::CRITICAL, "{why}");
            exit
        }
    }
}

/// Everything that the supervisor holds; a forked worker takes its share out of it.
struct Fleet {
    config: Arc<Config>,
    routes: Arc<Routes>,
    listeners: Vec<Listener>,
    scoreboard: &'static Scoreboard,
    /// By slot.
    workers: Vec<Option<Worker>>,
    /// By slot: where connections arrive from other workers.
    inboxes: Arc<Vec<Inbox>>,
    /// Processes that have been replaced, and are to end soon.
    replaced: Vec<Replaced>,
    /// What workers have died of.
    deaths: Deaths,
    /// Until when loads are looked at closely, because a worker has come new.
    balance_until: plan::Time,
    /// When workers are looked after next.
    look_at: plan::Time,
    /// None in a worker.
    signals: Option<SignalFd>,
}

struct Worker {
    pid: Pid,
    /// None after the worker's end was closed.
    control: Option<Channel>,
    /// Messages that earlier processes of the slot had received.
    messages_before: u64,
}

/// A process whose slot has another one, to which it hands its connections over.
struct Replaced {
    pid: Pid,
    slot: usize,
    /// When it is killed.
    kill_at: plan::Time,
    /// None if it has crashed: it does not listen.
    control: Option<Channel>,
}

/// How often (ns) loads are compared after a worker has come new, and for how long.
const BALANCE: (plan::Time, plan::Time) = (100_000_000, 60_000_000_000);
/// How often (ns) workers are asked whether they are worn.
const LOOK: plan::Time = 1_000_000_000;

/// A crashed process has this long (ns) to hand over its connections and write a core dump.
const LAST_WORDS: plan::Time = 30_000_000_000;

impl Fleet {
    /// Binds, finds the handlers and makes what is shared; all before the first fork of a worker.
    fn prepare(config: Config) -> Result<Self, (Exit, String)> {
        let listeners = listener::bind(&config.listen, config.backlog)
            .map_err(|error| (Exit::Bind, error.to_string()))?;
        let internal = |error: io::Error| (Exit::Internal, error.to_string());
        let prepared = || {
            let (routes, faults) =
                discover::discover(&config).map_err(|error| (Exit::Config, error.to_string()))?;
            if config.strict_handlers && faults > 0 {
                return Err((Exit::Config, format!("{faults} handlers or aliases are broken, see above")));
            }
            let scoreboard = Scoreboard::create(config.slots()).map_err(internal)?;
            let slots = scoreboard.slots().len();
            let deaths = Deaths::new(&config, routes.handlers().len(), slots).map_err(internal)?;
            let signals = watch_signals().map_err(internal)?;
            let inboxes: io::Result<Vec<Inbox>> = (0..config.slots()).map(|_| Inbox::new()).collect();
            Ok((routes, scoreboard, deaths, signals, inboxes.map_err(internal)?))
        };
        match prepared() {
            Ok((routes, scoreboard, deaths, signals, inboxes)) => Ok(Self {
                inboxes: Arc::new(inboxes),
                replaced: Vec::new(),
                deaths,
                balance_until: 0,
                look_at: 0,
                workers: (0..config.slots()).map(|_| None).collect(),
                config: Arc::new(config),
                routes: Arc::new(routes),
                listeners,
                scoreboard,
                signals: Some(signals),
            }),
            Err(error) => {
                listeners.iter().for_each(Listener::remove_file);
                Err(error)
            }
        }
    }

    fn serve(&mut self) -> Exit {
        let mut plan = Plan::new(self.config.slots(), Times { stop: self.config.stop_time });
        let mut events = VecDeque::from([Event::Start]);
        loop {
            while let Some(event) = events.pop_front() {
                for action in plan.on(event, scoreboard::now()) {
                    match action {
                        Action::Leave(exit) => {
                            self.see_off();
                            return exit;
                        }
                        Action::Announce => self.announce(),
                        Action::Spawn(slot) => events.extend(self.spawn(slot).err()),
                        Action::Stop(slot) => self.order(slot, Command::Stop),
                        Action::Quit(slot) => self.order(slot, Command::Quit),
                        Action::Kill(slot) => self.kill(slot),
                    }
                }
            }
            self.write_records();
            self.wait(plan.deadline(), &mut events);
            events.push_back(Event::Time);
        }
    }

    /// Waits for a signal, a report or the deadline, and says what has happened.
    fn wait(&mut self, deadline: Option<plan::Time>, events: &mut VecDeque<Event>) {
        let kills = self.replaced.iter().map(|replaced| replaced.kill_at);
        let deadline = kills.chain(deadline).chain(self.next_look()).min();
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let milliseconds = deadline.saturating_sub(scoreboard::now()).div_ceil(1_000_000);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        });
        let mut fds: Vec<PollFd> =
            self.signals.iter().map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)).collect();
        let channels = self.workers.iter().flatten().filter_map(|worker| worker.control.as_ref());
        fds.extend(channels.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => log::error!("poll: {error}"),
        }
        for slot in 0..self.workers.len() {
            self.read_reports(slot, events);
        }
        self.read_signals(events);
        self.kill_replaced();
        self.look_after_workers();
    }

    /// When loads or wear are to be looked at next, if at all.
    fn next_look(&self) -> Option<plan::Time> {
        let wanted = self.balance_until > scoreboard::now() || self.config.wear.is_bounded();
        wanted.then_some(self.look_at)
    }

    /// Has workers move connections to each other until they are balanced, and replaces those that are worn.
    fn look_after_workers(&mut self) {
        let now = scoreboard::now();
        if self.next_look().is_none_or(|at| at > now) {
            return;
        }
        let settled = self.replaced.is_empty() && self.workers.iter().all(|worker| worker.is_some());
        if self.balance_until > now {
            self.look_at = now.saturating_add(BALANCE.0);
            let running = |slot: &scoreboard::Slot| slot.state() == State::Running;
            let load = |slot: &scoreboard::Slot| slot.connections.load(Ordering::Relaxed);
            let slots = self.scoreboard.slots().iter();
            let loads: Vec<_> = slots.map(|slot| running(slot).then(|| load(slot))).collect();
            for pool in 0..self.config.pools.len() {
                let in_pool = |slot: usize| self.config.pool_of_slot(slot).0 == pool;
                let loads = loads.iter().enumerate().map(|(slot, load)| load.filter(|_| in_pool(slot)));
                if let Some((from, to, count)) = balance::next_move(&loads.collect::<Vec<_>>()) {
                    self.order(from, Command::Shed { to: to as u16, count: count as u16 });
                }
            }
        } else {
            self.look_at = now.saturating_add(LOOK);
        }
        // One at a time, so that there is always somebody to accept.
        let worn = (0..self.workers.len()).find_map(|slot| Some((slot, self.wear_of(slot, now)?)));
        if let Some((slot, why)) = worn.filter(|_| settled) {
            log::info!("{} is replaced: {why}", self.config.worker_name(slot));
            self.order(slot, Command::HandOver);
        }
    }

    /// Why a worker is to be replaced, if it is.
    fn wear_of(&self, slot: usize, now: plan::Time) -> Option<String> {
        let worker = self.workers.get(slot)?.as_ref()?;
        let record = self.scoreboard.slot(slot).filter(|record| record.state() == State::Running)?;
        let used = Wear {
            memory: if self.config.wear.memory == 0 { 0 } else { resident_memory(worker.pid) },
            age: now.saturating_sub(record.started.load(Ordering::Relaxed)),
            messages: record.messages_in.load(Ordering::Relaxed).saturating_sub(worker.messages_before),
        };
        balance::worn(&self.config.wear, &used)
    }

    /// Kills replaced processes that do not come to their end.
    fn kill_replaced(&mut self) {
        let now = scoreboard::now();
        for crashed in self.replaced.iter_mut().filter(|replaced| replaced.kill_at <= now) {
            log::error!(
                "{}[{}] was replaced, does not end and is killed",
                self.config.worker_name(crashed.slot),
                crashed.pid
            );
            // Not reaped yet, so the pid is still its own.
            let _ = kill(crashed.pid, Signal::SIGKILL);
            crashed.kill_at = plan::Time::MAX;
        }
    }

    /// Waits for processes that were replaced, so that none is left; not for long.
    fn see_off(&mut self) {
        let give_up = scoreboard::now().saturating_add(plan::GRACE);
        while !self.replaced.is_empty() && scoreboard::now() < give_up {
            self.wait(Some(give_up), &mut VecDeque::new());
        }
        for left in &self.replaced {
            // Not reaped yet, so the pid is still its own.
            let _ = kill(left.pid, Signal::SIGKILL);
        }
    }

    fn read_signals(&mut self, events: &mut VecDeque<Event>) {
        while let Some(Ok(Some(info))) = self.signals.as_ref().map(SignalFd::read_signal) {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            if signal != Signal::SIGCHLD {
                log::info!("{signal} received");
            }
            match signal {
                Signal::SIGCHLD => self.reap(events),
                Signal::SIGINT => events.push_back(Event::Interrupt),
                Signal::SIGQUIT => events.push_back(Event::Quit),
                _ => events.push_back(Event::Terminate),
            }
        }
    }

    fn read_reports(&mut self, slot: usize, events: &mut VecDeque<Event>) {
        let Some(Some(worker)) = self.workers.get_mut(slot) else { return };
        while let Some(control) = &worker.control {
            match control.recv_report() {
                Ok(Some(Report::Ready { loaded, broken })) => {
                    log::debug!("{} is ready with {loaded} handlers", self.config.worker_name(slot));
                    if broken > 0 && self.config.strict_handlers {
                        log::error!("{}: {broken} handlers are broken", self.config.worker_name(slot));
                        events.push_back(Event::Fail(Exit::Config));
                    }
                    events.push_back(Event::Ready(slot));
                }
                Ok(Some(Report::Crashed)) => {
                    let pid = worker.pid;
                    let kill_at = scoreboard::now().saturating_add(LAST_WORDS);
                    self.replaced.push(Replaced { pid, slot, kill_at, control: None });
                    self.workers[slot] = None;
                    self.on_crash(slot, pid);
                    return events.push_back(Event::Crashed(slot));
                }
                Ok(Some(Report::Leaving)) => {
                    let patience = self.config.stop_time.saturating_mul(2).saturating_add(plan::GRACE);
                    let (pid, control) = (worker.pid, worker.control.take());
                    let kill_at = scoreboard::now().saturating_add(patience);
                    self.replaced.push(Replaced { pid, slot, kill_at, control });
                    self.workers[slot] = None;
                    return events.push_back(Event::Crashed(slot));
                }
                Ok(None) => worker.control = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::warn!("{}: {error}", self.config.worker_name(slot));
                }
                Err(error) => {
                    log::error!("{}: {error}", self.config.worker_name(slot));
                    worker.control = None;
                }
            }
        }
    }

    /// Collects all children that have ended.
    fn reap(&mut self, events: &mut VecDeque<Event>) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { return };
            self.release_gates(pid);
            self.scoreboard.slots().iter().for_each(|record| record.crash.end_sending(pid.as_raw()));
            let is_in = |worker: &Option<Worker>| worker.as_ref().is_some_and(|worker| worker.pid == pid);
            if let Some(slot) = self.workers.iter().position(is_in) {
                self.read_reports(slot, events); // what it said before it died: it may have been replaced by that
            }
            if let Some(index) = self.replaced.iter().position(|replaced| replaced.pid == pid) {
                let replaced = self.replaced.swap_remove(index);
                match &replaced.control {
                    None => self.tell_rescue(&replaced),
                    Some(control) if matches!(control.recv_report(), Ok(Some(Report::Crashed))) => {
                        self.on_crash(replaced.slot, pid);
                        self.tell_rescue(&replaced);
                    }
                    Some(_) => {
                        log::info!("{}[{pid}] has left, replaced", self.config.worker_name(replaced.slot))
                    }
                }
                continue;
            }
            let Some(slot) = self.workers.iter().position(is_in) else { continue };
            self.workers[slot] = None;
            self.on_death(slot, pid, status);
            if let Some(record) = self.scoreboard.slot(slot) {
                record.end();
                self.scoreboard.changed();
            }
            events.push_back(Event::Died(slot));
        }
    }

    fn spawn(&mut self, slot: usize) -> Result<(), Event> {
        match spawn::spawn(self, slot) {
            Ok((pid, control)) => {
                log::debug!("{}[{pid}] is starting", self.config.worker_name(slot));
                let record = self.scoreboard.slot(slot);
                let messages_before = record.map_or(0, |record| record.messages_in.load(Ordering::Relaxed));
                self.workers[slot] = Some(Worker { pid, control: Some(control), messages_before });
                self.balance_until = scoreboard::now().saturating_add(BALANCE.1);
                self.look_at = 0;
                Ok(())
            }
            Err(error) => {
                log::error!("{} can not be forked: {error}", self.config.worker_name(slot));
                Err(Event::Died(slot))
            }
        }
    }

    fn order(&self, slot: usize, command: Command) {
        let Some(Some(Worker { control: Some(control), .. })) = self.workers.get(slot) else { return };
        if let Err(error) = control.send_command(command) {
            log::debug!("{}: {error}", self.config.worker_name(slot)); // it is gone, or will be killed
        }
    }

    fn kill(&self, slot: usize) {
        let Some(Some(worker)) = self.workers.get(slot) else { return };
        log::error!(
            "{}[{}] did not come back in time and is killed",
            self.config.worker_name(slot),
            worker.pid
        );
        // Not reaped yet, so the pid is still its own.
        let _ = kill(worker.pid, Signal::SIGKILL);
    }

    /// Prints the ready line. Who started the server may have closed its output: no reason not to serve.
    fn announce(&self) {
        let line = ready_line(&self.listeners, self.config.slots(), self.routes.resources().len());
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Resident memory of a process; bytes, 0 if it is gone.
fn resident_memory(pid: Pid) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages.saturating_mul(size as u64)
}

/// One line, stable for scripts.
fn ready_line(listeners: &[Listener], workers: usize, resources: usize) -> String {
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let mut line = format!(
        "wshd: ready on {}, {}, {}",
        addresses.join(" and "),
        plural(workers, "worker"),
        plural(resources, "resource")
    );
    if let Some(authority) = listeners.iter().find_map(|listener| Bound::local_authority(&listener.address)) {
        line += &format!(", console http://{authority}/console.html");
    }
    line
}

/// From here on these signals are read, not delivered.
fn watch_signals() -> io::Result<SignalFd> {
    let signals = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP];
    let signals = SigSet::from_iter(signals);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Raises the limit of open files as far as the connections need it; where that is not possible lowers the
/// number of connections.
fn raise_descriptors(config: &mut Config) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = u64::from(config.connections) + RESERVED_DESCRIPTORS;
    if soft >= wanted {
        return;
    }
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard) {
        Ok(()) => wanted.min(hard),
        Err(_) => soft,
    };
    if limit < wanted {
        let possible = u32::try_from(limit.saturating_sub(RESERVED_DESCRIPTORS).max(1)).unwrap_or(u32::MAX);
        log::warn!(
            "a worker can have {limit} open files only: --max-connections lowered from {} to {possible}",
            config.connections
        );
        config.connections = possible;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Listen;

    #[test]
    fn the_ready_line_names_addresses_numbers_and_console() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("s");
        let tcp = Listen::Tcp { host: "0.0.0.0".to_owned(), port: 0 };
        let both = listener::bind(&[Listen::Unix(path.clone()), tcp], 1).unwrap();
        let port = both[1].address.local_authority().unwrap().port();
        assert_eq!(
            ready_line(&both, 2, 1),
            format!(
                "wshd: ready on unix:{} and 0.0.0.0:{port}, 2 workers, 1 resource, \
                 console http://127.0.0.1:{port}/console.html",
                path.display()
            )
        );
        let expected = format!("wshd: ready on unix:{}, 1 worker, 0 resources", path.display());
        assert_eq!(ready_line(&both[..1], 1, 0), expected);
    }
}
