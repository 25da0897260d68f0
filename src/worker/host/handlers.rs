//! The handlers as a process has them: loaded, told that a worker starts, and called on the event loop.

use std::io;
use std::os::fd::RawFd;

use crate::clock;
use crate::config::Config;
use crate::ffi::call::{self, Handler};
use crate::ffi::host::Task;
use crate::ffi::place::{self, Callback, count_call};
use crate::ffi::plugin::{self, LoadOptions, Plugin};
use crate::ffi::raw;
use crate::fleet::memory::crash_report::CrashReport;
use crate::fleet::memory::current_call::CurrentCall;
use crate::fleet::memory::scoreboard::Slot;
use crate::fleet::peer::Peer;
use crate::fleet::routes::{Route, Routes};
use crate::fleet::sockets::control::Report;
use crate::log::{Level, write_for_handler};
use crate::proto::ws::deflate::negotiate;
use crate::worker::base::metrics::Timing;
use crate::worker::connections::Conns;
use crate::worker::crash::modules::Modules;
use crate::worker::crash::report::Collector;
use crate::worker::crash::signals;
use crate::worker::crash::start::StartWatch;
use crate::worker::host::handler_tasks::{LoopTasks, Posts};

/// A handler as this process has it.
pub struct Service {
    pub plugin: Plugin,
    pub handler: Handler,
    /// How permessage-deflate is negotiated unless the handler says otherwise.
    pub deflate: negotiate::Config,
}

/// All handlers of a pool, started.
pub struct Loaded {
    /// By index of the route; none where one is another pool's or could not be loaded.
    pub services: Vec<Option<Service>>,
    pub report: Report,
    pub modules: &'static Modules,
    pub tasks: &'static LoopTasks,
    pub posts: &'static Posts,
}

impl Loaded {
    /// Loads them, except those that are skipped, and tells them that the worker in this slot starts. Deaths meanwhile
    /// are noted in the slot and in `crash_report`, and told to the supervisor over `control`.
    pub fn load(
        config: &Config,
        routes: &Routes,
        skipped: &[u16],
        slot: &'static Slot,
        crash_report: CrashReport,
        control: RawFd,
    ) -> io::Result<Self> {
        if let Err(error) = signals::disarm_stray() {
            log::error!("cannot catch stray signals, which can end this process: {error}");
        }
        let place = slot.place();
        let names = routes.handlers().iter().map(|route| route.name.clone()).collect();
        let workers = config.pools.get(usize::from(place.pool)).map_or(1, |pool| pool.workers);
        let posts: &Posts =
            Box::leak(Box::new(Posts::new(names, u32::try_from(workers).unwrap_or(u32::MAX))));
        let tasks: &LoopTasks = Box::leak(Box::new(LoopTasks::new()));
        if config.strict_abi {
            place::be_strict();
        }
        place::set_worker(posts);
        place::set_event_loop(tasks);
        let is_ours = |number: u16, route: &Route| {
            let pool = config.pool_of(&route.resource);
            !route.retired && pool == usize::from(place.pool) && !skipped.contains(&number)
        };
        let ours = routes.handlers().iter().zip(0..).filter(|(route, number)| is_ours(*number, route));
        let files = ours.map(|(route, number)| (number, config.inside(&route.file).into_owned())).collect();
        let collector = Collector { modules: Modules::reserve()?, crash_report };
        let modules = Modules::reserve()?;
        let watch = StartWatch::begin(slot, collector, control, files)?;
        let mut wanted = 0;
        let services = routes.handlers().iter().zip(0..).map(|(route, number)| {
            if !is_ours(number, route) {
                return None;
            }
            wanted += 1;
            let limit = config.handler(&route.resource).timeout;
            posts.set_called(Some(number));
            let numbers = (number, place.number.into());
            load(config, route, numbers, |callback| watch.enter(number, callback, limit))
        });
        let services: Vec<_> = services.collect();
        watch.end(modules);
        posts.set_called(None);
        let loaded = services.iter().flatten().count() as u16;
        Ok(Self {
            services,
            report: Report::Ready { loaded, broken: wanted - loaded },
            modules,
            tasks,
            posts,
        })
    }

    /// Where there is no event loop. A death meanwhile has the scoreboard only to tell of it.
    pub fn stop(&self, current: &CurrentCall) {
        let call = |handler, callback: Callback, call: &dyn Fn()| {
            current.set_current(0, Peer::NONE, clock::now());
            current.begin(handler, callback as u32);
            call();
            current.end();
        };
        let posted = self.posts.close().into_iter();
        posted.for_each(|(handler, task)| call(handler, Callback::Task, &|| task.run(0)));
        stop(&self.services, self.posts, |number, handler| {
            call(number, Callback::WorkerStop, &|| handler.worker_stop());
        });
    }
}

/// The handlers of a worker's event loop.
pub struct Handlers {
    /// By index of the route; none if it could not be loaded.
    pub services: Vec<Option<Service>>,
    pub tasks: &'static LoopTasks,
    pub posts: &'static Posts,
    /// What they are called for is shown here.
    pub current: &'static CurrentCall,
    pub conns: &'static Conns,
}

impl Handlers {
    pub fn stop(&self) {
        self.run_all(self.posts.close());
        stop(&self.services, self.posts, |_, handler| handler.worker_stop());
    }

    /// Runs what they have posted about no connection.
    pub fn run_posted(&self) {
        self.run_all(self.posts.take());
    }

    fn run_all(&self, posted: impl IntoIterator<Item = (u16, Task)>) {
        posted.into_iter().for_each(|(handler, task)| self.run_task(handler, task));
    }

    /// Runs their timers that have expired; whether there were any.
    #[inline]
    pub fn run_timers(&self) -> bool {
        let is_due = self.tasks.next_timer() <= self.conns.now();
        if is_due {
            self.run_expired();
        }
        is_due
    }

    #[cold]
    fn run_expired(&self) {
        // One by one: a callback may clear the next one.
        while let Some((handler, task)) = self.tasks.pop_timer(self.conns.now()) {
            self.run_task(handler, task);
        }
    }

    fn run_task(&self, handler: u16, task: Task) {
        self.call_about_none(handler, Callback::Task, || task.run(0));
    }

    /// Tells them of a few descriptors that are ready; the others come in the next turn.
    pub fn serve_descriptors(&self) {
        for event in self.tasks.ready() {
            // One that was served before may have unwatched it.
            let Some((handler, ready)) = self.tasks.watcher(event) else { continue };
            self.call_about_none(handler, Callback::Ready, || ready.run(event.fd, event.events));
        }
    }

    /// Calls into a handler about no connection.
    fn call_about_none(&self, handler: u16, callback: Callback, call: impl FnOnce()) {
        self.posts.set_called(Some(handler));
        self.call_about(handler, callback, 0, call);
        self.posts.set_called(None);
    }

    pub fn service(&self, handler: u16) -> Option<&Service> {
        self.services.get(usize::from(handler)).and_then(Option::as_ref)
    }

    /// The pool that serves a handler.
    pub fn pool_of(&self, handler: u16) -> usize {
        let route = self.conns.routes.get(handler);
        route.map_or(0, |route| self.conns.config.pool_of(&route.resource))
    }

    pub fn handler_name(&self, handler: u16) -> &str {
        self.conns.routes.get(handler).map_or("a handler", |route| &route.name)
    }

    /// Calls a callback about a connection, if the handler has it.
    pub fn tell<R>(
        &self,
        number: u16,
        callback: Callback,
        id: u64,
        call: impl FnOnce(Handler) -> R,
    ) -> Option<R> {
        let handler = self.service(number)?.handler;
        handler.has(callback).then(|| self.call_about(number, callback, id, || call(handler)))
    }

    /// Calls into a handler about a connection, with the scoreboard saying so.
    pub fn call_about<R>(&self, handler: u16, callback: Callback, id: u64, call: impl FnOnce() -> R) -> R {
        self.set_current(id);
        self.call(handler, callback, call)
    }

    /// The scoreboard knows from now on which connection calls are about. Returns the number of its handler.
    pub fn set_current(&self, id: u64) -> Option<u16> {
        let core = &mut *self.conns.core.borrow_mut();
        let known = core.table.both(id).map(|(conn, record)| (conn.handler, record.peer));
        let (handler, peer) = known.unzip();
        self.current.set_current(id, peer.unwrap_or_default(), self.conns.now());
        handler
    }

    /// Calls into a handler about the connection turned to.
    pub fn call<R>(&self, handler: u16, callback: Callback, call: impl FnOnce() -> R) -> R {
        let timing = self.begin_call(handler, callback);
        let result = call();
        self.end_call(timing);
        result
    }

    /// Such a call begins. Without a closure, which would not be inlined on the path of a message.
    #[inline(always)]
    pub fn begin_call(&self, handler: u16, callback: Callback) -> Timing {
        count_call();
        self.current.begin(handler, callback as u32);
        self.conns.metrics.stopwatch(handler).start(callback)
    }

    /// It has returned.
    #[inline(always)]
    pub fn end_call(&self, timing: Timing) {
        timing.stop();
        self.current.end();
    }
}

/// Tells them that the worker stops, and writes what they have left in the buffers of stdio: the process ends without
/// exit(3).
fn stop(services: &[Option<Service>], posts: &Posts, stop: impl Fn(u16, &Handler)) {
    for (number, service) in (0..).zip(services) {
        if let Some(service) = service {
            posts.set_called(Some(number));
            stop(number, &service.handler);
        }
    }
    posts.set_called(None);
    call::flush_stdio();
}

/// `enter` is told what the handler is about to be called for.
fn load(
    config: &Config,
    route: &Route,
    (number, worker): (u16, u32),
    enter: impl Fn(Callback),
) -> Option<Service> {
    let settings = config.settings.get(&route.resource).cloned().unwrap_or_default();
    let served = config.handler(&route.resource);
    let (raw, least) = (served.raw, served.log_level);
    let log: plugin::Log = Box::new(move |handler, level, conn, text| {
        write_for_handler(least, level_of(level), handler, conn, text);
    });
    let (file, resource) = (route.file.display(), &route.resource);
    enter(Callback::Load);
    let options = LoadOptions { number, worker, settings, raw, log };
    let plugin = plugin::load(&config.inside(&route.file), options)
        .inspect_err(|error| log::error!("{file}: {error}; {resource} answers 503"))
        .ok()?;
    let handler = Handler::new(plugin.table);
    enter(Callback::WorkerStart);
    let result = handler.worker_start();
    if result < 0 {
        log::error!("{file}: on_worker_start returned {result}; {resource} answers 503");
        return None;
    }
    Some(Service { plugin, handler, deflate: served.deflate.clone() })
}

/// The level of a line by its number in `ws_handler.h`, where numbers between two levels count as the lower one.
fn level_of(number: u32) -> Level {
    match number {
        0..raw::WS_LOG_DEBUG => Level::Fine,
        raw::WS_LOG_DEBUG..raw::WS_LOG_INFO => Level::Debug,
        raw::WS_LOG_INFO..raw::WS_LOG_WARN => Level::Info,
        raw::WS_LOG_WARN..raw::WS_LOG_ERROR => Level::Warn,
        raw::WS_LOG_ERROR..raw::WS_LOG_CRITICAL => Level::Error,
        raw::WS_LOG_CRITICAL.. => Level::Critical,
    }
}
