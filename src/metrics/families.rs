//! The metrics of the server, documented in wshd-metrics(7). The labels name a handler by its resource, or a worker; no
//! metric has both, since their number would be the product.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use super::Start;
use super::text::{Family, Format, Kind, Labels, Text, seconds};
use super::{bus, gateways, processes};
use crate::clock;
use crate::ffi::callback_name;
use crate::fleet::memory::breakers::BreakerState;
use crate::fleet::memory::counters::handler::{CALLBACKS, CLOSE_CODES, CLOSERS, HandlerCounters, STATUSES};
use crate::fleet::memory::counters::{DEATHS, HandlerEntry, NONE, OTHER, PlaceCounters, Present};
use crate::fleet::memory::scoreboard::{Place, Slot, State};
use crate::fleet::routes::Route;

pub(super) const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, unit, help }
}

pub(super) const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, unit, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, unit: "seconds", help }
}

const fn info(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Info, unit: "", help }
}

const BUILD: Family = info("wshd_build", "The version of the server.");
const START_TIME: Family =
    gauge("wshd_start_time_seconds", "seconds", "When the supervisor started, since the Unix epoch.");
const READY: Family = gauge("wshd_ready", "", "Whether health checks succeed: 1, or 0.");
const RELOAD_SUCCESS: Family =
    gauge("wshd_last_reload_successful", "", "Whether the last reload, or the start, succeeded: 1, or 0.");
const RELOAD_TIME: Family = gauge(
    "wshd_last_reload_timestamp_seconds",
    "seconds",
    "When the last reload, or the start, ended, since the Unix epoch.",
);

const HANDLER: Family = info("wshd_handler", "A handler: name, version and pool.");
const OPEN: Family = gauge("wshd_connections_open", "", "Open WebSocket connections.");
const OPENED: Family = counter("wshd_connections_opened", "", "WebSocket connections opened.");
const CLOSED: Family =
    counter("wshd_connections_closed", "", "WebSocket connections closed, by the closing side and the code.");
const HANDSHAKES: Family = counter(
    "wshd_handshakes",
    "",
    "Requests by response status: 101 opened a WebSocket, other is another status or no response.",
);
const MESSAGES: [Family; 2] = [
    counter("wshd_messages_received", "", "Messages received."),
    counter("wshd_messages_sent", "", "Messages sent."),
];
const BYTES: [Family; 2] = [
    counter("wshd_received_bytes", "bytes", "Payload bytes of messages received."),
    counter("wshd_sent_bytes", "bytes", "Payload bytes of messages sent."),
];
const REFUSED: Family =
    counter("wshd_sends_refused", "", "Messages not sent because the send queue was full.");
const TOPIC_MESSAGES: [Family; 4] = [
    counter("wshd_topic_messages_published", "", "Messages published by a handler."),
    counter(
        "wshd_topic_messages_refused",
        "",
        "Messages not published because the queue to the bus was full.",
    ),
    counter("wshd_topic_messages_delivered", "", "Published messages sent to subscribers, once for each."),
    counter("wshd_topic_messages_dropped", "", "Published messages that subscribers missed, once for each."),
];
const CALLBACK: Family = histogram(
    "wshd_callback_duration_seconds",
    "Duration of calls of a handler; that of transfer_data includes the whole connection.",
);
const CRASHES: Family = counter("wshd_handler_crashes", "", "Workers that died in a handler.");
const QUARANTINES: Family = counter("wshd_handler_quarantines", "", "Quarantines of a handler.");
const QUARANTINED: Family =
    gauge("wshd_handler_quarantined", "", "Whether a handler is quarantined: 1, or 0 if it is served.");

const REFUSALS: Family =
    counter("wshd_refusals", "", "Clients refused by limits and by rules for origins and hosts, by reason.");
const UNCOUNTED: Family = counter(
    "wshd_connections_uncounted",
    "",
    "Connections not counted by address because the table was full.",
);

const WORKERS: Family = gauge("wshd_workers", "", "Workers by state.");
const SATURATED: Family =
    gauge("wshd_saturated", "", "Whether all workers have reached their maximum of connections: 1, or 0.");
const SATURATIONS: Family =
    counter("wshd_saturations", "", "How often all workers reached their maximum of connections.");
const CONNECTIONS: Family =
    gauge("wshd_worker_connections", "", "Connections of a worker, including those before the handshake.");
const CONNECTIONS_LIMIT: Family =
    gauge("wshd_worker_connections_limit", "", "Maximum connections of a worker.");
const THREADS: Family = gauge(
    "wshd_worker_threads",
    "",
    "Threads of a worker, each of which serves a connection of a blocking handler.",
);
const THREADS_LIMIT: Family = gauge("wshd_worker_threads_limit", "", "Maximum of these threads.");
const HEARTBEAT: Family = gauge(
    "wshd_worker_heartbeat_age_seconds",
    "seconds",
    "Time since the last turn of a worker's event loop, which turns at least once a second.",
);
const ACCEPTED: Family = counter("wshd_worker_connections_accepted", "", "Connections accepted by a worker.");
const MOVED: Family =
    counter("wshd_worker_connections_moved", "", "Connections moved from or to another process.");
const QUEUED: Family =
    gauge("wshd_worker_send_queue_bytes", "bytes", "Bytes queued for sending to the peers of a worker.");
const RECEIVING: Family =
    gauge("wshd_worker_receive_bytes", "bytes", "Memory of incomplete large messages received by a worker.");
const SUBSCRIPTIONS: Family =
    gauge("wshd_worker_topic_subscriptions", "", "Subscriptions of the connections of a worker to topics.");
const TOPICS_LOST: Family = counter(
    "wshd_worker_topic_messages_lost",
    "",
    "Messages published in a worker that may have been lost when it crashed or the bus died.",
);
const TURN: Family = histogram(
    "wshd_worker_loop_turn_seconds",
    "Duration of the turns of a worker's event loop: the delay that an event may have.",
);
const STARTS: Family = counter("wshd_worker_starts", "", "Processes started as this worker.");
const DEATHS_OF: Family = counter("wshd_worker_deaths", "", "Processes of this worker that died, by cause.");
const REPLACEMENTS: Family =
    counter("wshd_worker_replacements", "", "Processes of this worker that were replaced.");

/// The current report.
pub fn report(start: &Start, format: Format) -> String {
    let mut report = Report::new(start, format);
    report.processes();
    report.handlers();
    report.traffic();
    report.refusals();
    report.workers();
    if start.config.gateway.serves() {
        gateways::report(start.shared.gateways, &mut report.text);
    }
    if start.config.bus.is_some() {
        bus::report(start.shared.bus, &mut report.text);
    }
    report.text.finish()
}

/// A metric, and how to read its value.
type Source<T> = (&'static Family, fn(&T) -> u64);

struct Report<'a> {
    start: &'a Start,
    text: Text,
    handlers: Vec<Handler<'a>>,
}

/// A handler with counters of its own, or those that share an entry.
struct Handler<'a> {
    name: String,
    entry: &'a HandlerEntry,
    total: HandlerCounters,
}

/// A worker: the counters of its place, and the present state of the slots with this place.
struct Worker {
    name: String,
    counters: &'static PlaceCounters,
    connections: u64,
    /// Time since the last turn of its event loop.
    silence: Duration,
    present: Present,
}

fn workers(start: &Start) -> impl Iterator<Item = Worker> {
    let now = clock::now();
    // The parent of per-connection processes has no event loop.
    let silence = move |slot: &Slot| {
        let Place { pool, number } = slot.place();
        slot.silence(now).filter(|_| !start.config.is_parent(pool, number))
    };
    start.shared.counters.places().map(move |(place, counters)| {
        let slots = start.shared.scoreboard.slots().filter(|(_, slot)| slot.place() == place);
        let slots: Vec<(usize, Slot)> = slots.collect();
        let is_of_place = |slot| slots.iter().any(|(index, _)| *index == slot);
        Worker {
            name: start.name(place),
            counters,
            connections: slots.iter().map(|(_, slot)| u64::from(slot.connections.load(Relaxed))).sum(),
            silence: slots.iter().filter_map(|(_, slot)| silence(slot)).max().unwrap_or_default(),
            present: start.shared.counters.present(is_of_place),
        }
    })
}

impl<'a> Report<'a> {
    fn new(start: &'a Start, format: Format) -> Self {
        let all = start.shared.counters.entries().zip(0..);
        let all = all.map(|(entry, number)| (number, entry, start.shared.counters.total(number)));
        // The shared entry is reported only if it was used.
        let all =
            all.filter(|(number, _, total)| *number > OTHER || *number == OTHER && total.answered() > 0);
        let handlers = all.map(|(_, entry, total)| Handler { name: entry.name(), entry, total }).collect();
        Self { start, text: Text::new(format), handlers }
    }

    fn processes(&mut self) {
        let Self { start, text, .. } = self;
        text.family(&BUILD);
        text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        let started = start.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        text.family(&START_TIME);
        text.sample(&[], seconds(started.as_nanos().try_into().unwrap_or(u64::MAX)));
        text.family(&READY);
        text.sample(&[], u8::from(start.shared.scoreboard.is_ready().is_ok()));
        let (reloaded, is_successful) = start.shared.scoreboard.bulletin().reload();
        text.family(&RELOAD_SUCCESS);
        text.sample(&[], u8::from(is_successful));
        text.family(&RELOAD_TIME);
        text.sample(&[], reloaded);
        processes::report(start, text);
    }

    /// Refused clients.
    fn refusals(&mut self) {
        let Self { start, text, .. } = self;
        text.family(&REFUSALS);
        for (refusal, count) in start.shared.addresses.refusals() {
            text.sample(&[("reason", refusal.into())], count);
        }
        text.family(&UNCOUNTED);
        text.sample(&[], start.shared.addresses.uncounted());
    }

    /// Handlers and their state.
    fn handlers(&mut self) {
        let Self { start, text, handlers } = self;
        let breaker = |number: u16, route: &Route| {
            start.shared.breakers.get(start.config.pool_of(&route.resource), number)
        };
        let routes =
            || start.routes.in_service().filter_map(|(number, route)| Some((route, breaker(number, route)?)));
        text.family(&HANDLER);
        for (route, _) in routes() {
            let pool = pool_name(start, start.config.pool_of(&route.resource));
            let labels = [
                ("handler", &*route.resource),
                ("name", &*route.name),
                ("version", &*route.version),
                ("pool", pool),
            ];
            text.sample(&labels, 1);
        }
        text.family(&QUARANTINED);
        let now = clock::now();
        for (route, breaker) in routes() {
            let quarantined = breaker.state(now) != BreakerState::Closed;
            text.sample(&[("handler", &route.resource)], u8::from(quarantined));
        }
        let of_entry: [Source<HandlerEntry>; 2] =
            [(&CRASHES, |entry| entry.crashes.get()), (&QUARANTINES, |entry| entry.quarantines.get())];
        for (family, read) in of_entry {
            text.family(family);
            for handler in handlers.iter() {
                text.sample(&[("handler", &handler.name)], read(handler.entry));
            }
        }
    }

    /// Connections, messages and calls of handlers.
    fn traffic(&mut self) {
        let Self { start, text, handlers } = self;
        let with_pool: [Source<HandlerCounters>; 2] =
            [(&OPEN, |counters| counters.open.get()), (&OPENED, |counters| counters.status(101))];
        for (family, read) in with_pool {
            text.family(family);
            for Handler { name, total, .. } in handlers.iter() {
                let pool = pool_name(start, start.config.pool_of(name));
                text.sample(&[("handler", name), ("pool", pool)], read(total));
            }
        }
        let numbers: [Source<HandlerCounters>; 9] = [
            (&MESSAGES[0], |counters| counters.messages_in.get()),
            (&MESSAGES[1], |counters| counters.messages_out.get()),
            (&BYTES[0], |counters| counters.bytes_in.get()),
            (&BYTES[1], |counters| counters.bytes_out.get()),
            (&REFUSED, |counters| counters.refused.get()),
            (&TOPIC_MESSAGES[0], |counters| counters.topics.published.get()),
            (&TOPIC_MESSAGES[1], |counters| counters.topics.refused.get()),
            (&TOPIC_MESSAGES[2], |counters| counters.topics.delivered.get()),
            (&TOPIC_MESSAGES[3], |counters| counters.topics.dropped.get()),
        ];
        for (family, read) in numbers {
            text.family(family);
            for Handler { name, total, .. } in handlers.iter() {
                text.sample(&[("handler", name)], read(total));
            }
        }
        text.family(&HANDSHAKES);
        let none = start.shared.counters.total(NONE);
        let handled = handlers.iter().map(|handler| (&*handler.name, &handler.total));
        let all: Vec<(&str, &HandlerCounters)> = handled.chain([("none", &none)]).collect();
        for (name, total) in &all {
            for status in STATUSES.into_iter().chain([0]) {
                let label = if status == 0 { "other".to_owned() } else { status.to_string() };
                unless_zero(text, &[("handler", name), ("status", &label)], total.status(status));
            }
        }
        text.family(&CLOSED);
        for (name, total) in &all {
            for (closer, by) in CLOSERS.into_iter().enumerate() {
                for (index, code) in CLOSE_CODES.into_iter().enumerate() {
                    let labels = [("handler", *name), ("by", by), ("code", code)];
                    unless_zero(text, &labels, total.closed(closer, index));
                }
            }
        }
        text.family(&CALLBACK);
        for Handler { name, total, .. } in handlers.iter() {
            for callback in 0..CALLBACKS as u32 {
                if let Some(times) = total.times(callback).filter(|times| times.count() > 0) {
                    text.times(&[("handler", name), ("callback", callback_label(callback))], times);
                }
            }
        }
    }

    fn workers(&mut self) {
        let Self { start, text, .. } = self;
        text.family(&WORKERS);
        let states = [
            (State::Starting, false, "starting"),
            (State::Standby, false, "standby"),
            (State::Running, false, "running"),
            (State::Running, true, "faulty"),
            (State::Stopping, false, "stopping"),
        ];
        for (state, is_faulty, name) in states {
            let is_so = |(_, slot): &(usize, Slot)| {
                slot.state() == state && (state != State::Running || slot.fault().is_some() == is_faulty)
            };
            text.sample(&[("state", name)], start.shared.scoreboard.slots().filter(is_so).count());
        }
        let (is_saturated, saturations) = start.shared.scoreboard.saturation();
        text.family(&SATURATED);
        text.sample(&[], u8::from(is_saturated));
        text.family(&SATURATIONS);
        text.sample(&[], saturations);
        let workers: Vec<Worker> = workers(start).collect();
        let numbers: [Source<Worker>; 11] = [
            (&CONNECTIONS, |worker| worker.connections),
            (&CONNECTIONS_LIMIT, |worker| worker.present.connections_limit.get()),
            (&THREADS, |worker| worker.present.threads.get()),
            (&THREADS_LIMIT, |worker| worker.present.threads_limit.get()),
            (&ACCEPTED, |worker| worker.counters.accepted.get()),
            (&QUEUED, |worker| worker.present.queued.get()),
            (&RECEIVING, |worker| worker.present.receiving.get()),
            (&SUBSCRIPTIONS, |worker| worker.present.subscriptions.get()),
            (&TOPICS_LOST, |worker| worker.counters.topics_lost.get()),
            (&STARTS, |worker| worker.counters.starts.get()),
            (&REPLACEMENTS, |worker| worker.counters.replaced.get()),
        ];
        for (family, read) in numbers {
            text.family(family);
            for worker in &workers {
                text.sample(&[("worker", &worker.name)], read(worker));
            }
        }
        text.family(&HEARTBEAT);
        for worker in &workers {
            text.sample(&[("worker", &worker.name)], seconds(worker.silence.as_nanos() as u64));
        }
        text.family(&MOVED);
        for Worker { name, counters, .. } in &workers {
            for (direction, count) in [("in", &counters.moved_in), ("out", &counters.moved_out)] {
                text.sample(&[("worker", name), ("direction", direction)], count.get());
            }
        }
        text.family(&DEATHS_OF);
        for Worker { name, counters, .. } in &workers {
            for (cause, count) in DEATHS.into_iter().zip(&counters.deaths) {
                text.sample(&[("worker", name), ("cause", cause)], count.get());
            }
        }
        text.family(&TURN);
        for Worker { name, counters, .. } in &workers {
            text.times(&[("worker", name)], &counters.turns);
        }
    }
}

/// Adds a sample, unless it is 0: most of the possible series are.
fn unless_zero(text: &mut Text, labels: &Labels<'_>, count: u64) {
    if count > 0 {
        text.sample(labels, count);
    }
}

/// The name of a callback; "task" for posted functions and timers.
fn callback_label(callback: u32) -> &'static str {
    let name = callback_name(callback);
    if name.contains(' ') { "task" } else { name }
}

fn pool_name(start: &Start, pool: usize) -> &str {
    start.config.pools.get(pool).map_or("", |pool| &pool.name)
}
