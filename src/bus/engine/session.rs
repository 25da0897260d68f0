//! The thread of the engine: connects, carries out commands, and reconnects when the connection breaks. Each attempt
//! has a runtime of its own; dropping it ends everything that the client library has started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::commands::{Command, CommandQueue, Key, Message};
use super::inbox::Inbox;
use super::nats::Nats;
use super::redis::Redis;
use crate::config::bus::{Engine as Settings, Kind};
use crate::fleet::memory::counters::bus::BusCounters;

/// Timeout of connecting, all servers together.
const CONNECT: Duration = Duration::from_secs(15);
/// Timeout of carrying out commands.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checks whether the engine still responds.
const CHECK: Duration = Duration::from_secs(10);
/// Shortest and longest delay between attempts.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A connection that lasted this long resets the delay.
const STABLE: Duration = Duration::from_secs(5);

/// Why a connection has broken, once it has.
pub type Broken = watch::Receiver<Option<String>>;
/// The reason if the engine gave none.
pub const CLOSED: &str = "closed by the server";

/// Waits until the connection breaks; returns the reason.
pub async fn broken(why: &mut Broken) -> String {
    let why = why.wait_for(Option::is_some).await;
    why.ok().and_then(|why| why.clone()).unwrap_or_default()
}

/// A connection to an engine. After an error it is unusable.
pub trait Link: Sized {
    /// Connects to the first server that responds.
    async fn connect(settings: &Settings, inbox: Arc<Inbox>) -> Result<Self, String>;
    /// Subscribes to topics.
    async fn subscribe(&mut self, topics: &[Key]) -> Result<(), String>;
    /// Unsubscribes.
    async fn unsubscribe(&mut self, topics: &[Key]) -> Result<(), String>;
    /// Sends messages, in order; returns how many were accepted.
    async fn publish(&mut self, messages: &[Message]) -> Result<usize, String>;
    /// Checks whether the engine still responds.
    async fn check(&mut self) -> Result<(), String>;
    /// Waits until the connection breaks; returns the reason.
    async fn broken(&mut self) -> String;
}

/// How an attempt ended.
enum End {
    /// The bus exits.
    Closed,
    /// Try again.
    Broken,
}

/// See the module.
pub struct Session {
    settings: Arc<Settings>,
    commands: Arc<CommandQueue>,
    inbox: Arc<Inbox>,
    counters: &'static BusCounters,
    /// Topics to be subscribed.
    wanted: BTreeSet<Key>,
    /// Consecutive failed attempts.
    failures: u32,
    was_connected: bool,
    /// Whether the present failure has been logged.
    is_logged: bool,
    /// Messages dropped since the connection broke.
    dropped: u64,
}

impl Session {
    pub fn new(
        settings: Settings,
        commands: Arc<CommandQueue>,
        inbox: Arc<Inbox>,
        counters: &'static BusCounters,
    ) -> Self {
        Session {
            settings: Arc::new(settings),
            commands,
            inbox,
            counters,
            wanted: BTreeSet::new(),
            failures: 0,
            was_connected: false,
            is_logged: false,
            dropped: 0,
        }
    }

    /// Runs until the bus exits.
    pub fn run(mut self) {
        loop {
            // The previous bus may have died while it was connected.
            self.counters.connected.set(0);
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    self.failed(&format!("cannot start a runtime for {}: {error}", self.settings.name()));
                    std::thread::sleep(delay(self.failures));
                    continue;
                }
            };
            let end = self.attempt(&runtime);
            // Without waiting for a slow name server.
            runtime.shutdown_background();
            if matches!(end, End::Closed) {
                return;
            }
        }
    }

    fn attempt(&mut self, runtime: &Runtime) -> End {
        match self.settings.kind {
            Kind::Nats => runtime.block_on(self.connect_and_serve::<Nats>()),
            Kind::Redis => runtime.block_on(self.connect_and_serve::<Redis>()),
        }
    }

    async fn connect_and_serve<L: Link>(&mut self) -> End {
        select! {
            () = sleep(delay(self.failures)) => {}
            () = self.drop_all() => return End::Closed,
        }
        let (settings, inbox) = (Arc::clone(&self.settings), Arc::clone(&self.inbox));
        let connected = select! {
            connected = timeout(CONNECT, L::connect(&settings, inbox)) => connected,
            () = self.drop_all() => return End::Closed,
        };
        let mut link = match connected.unwrap_or_else(|_| Err("timeout".to_owned())) {
            Ok(link) => link,
            Err(why) => {
                self.failed(&format!("cannot connect to {}: {why}", self.settings.name()));
                return End::Broken;
            }
        };
        self.connected();
        let since = Instant::now();
        match self.serve(&mut link).await {
            Ok(()) => End::Closed,
            Err(why) => {
                self.failures = if since.elapsed() < STABLE { self.failures } else { 0 };
                self.is_logged = false;
                self.failed(&format!("connection to {} lost: {why}", self.settings.name()));
                End::Broken
            }
        }
    }

    async fn serve<L: Link>(&mut self, link: &mut L) -> Result<(), String> {
        let late = |_| "timeout".to_owned();
        let wanted: Vec<Key> = self.wanted.iter().cloned().collect();
        timeout(TIMEOUT, link.subscribe(&wanted)).await.map_err(late)??;
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                why = link.broken() => return Err(why),
                commands = self.commands.next() => {
                    let Some(commands) = commands else { return Ok(()) };
                    self.carry_out(link, commands).await?;
                }
                _ = check.tick() => timeout(TIMEOUT, link.check()).await.map_err(late)??,
            }
        }
    }

    /// Carries out commands. If that fails, their topics are recorded and their messages counted all the same.
    async fn carry_out<L: Link>(&mut self, link: &mut L, commands: Vec<Command>) -> Result<(), String> {
        let mut unsent = commands.iter().map(|command| self.record(command)).sum();
        let carried_out = timeout(TIMEOUT, async {
            for same in
                commands.chunk_by(|one, other| std::mem::discriminant(one) == std::mem::discriminant(other))
            {
                unsent -= carry_out(link, same).await.inspect(|sent| self.counters.sent.add_shared(*sent))?;
            }
            Ok(())
        });
        let carried_out = carried_out.await.unwrap_or_else(|_| Err("timeout".to_owned()));
        self.counters.dropped_out.add_shared(unsent);
        carried_out
    }

    /// Updates the wanted topics; returns 1 if the command publishes a message.
    fn record(&mut self, command: &Command) -> u64 {
        match command {
            Command::Subscribe(key) => drop(self.wanted.insert(Key::clone(key))),
            Command::Unsubscribe(key) => drop(self.wanted.remove(key)),
            Command::Publish(_) => return 1,
        }
        0
    }

    /// Without a connection: drops messages until the commands end.
    async fn drop_all(&mut self) {
        while let Some(commands) = self.commands.next().await {
            let dropped = commands.iter().map(|command| self.record(command)).sum();
            self.dropped += dropped;
            self.counters.dropped_out.add_shared(dropped);
        }
    }

    fn connected(&mut self) {
        match std::mem::take(&mut self.dropped) {
            0 => log::info!("bus: connected to {}", self.settings.name()),
            dropped => {
                log::info!(
                    "bus: connected to {}; {dropped} messages were not sent meanwhile",
                    self.settings.name()
                )
            }
        }
        self.counters.connected.set(1);
        self.counters.reconnects.add_shared(self.was_connected.into());
        (self.was_connected, self.is_logged) = (true, false);
    }

    fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        match std::mem::replace(&mut self.is_logged, true) {
            false => log::error!("bus: {why}; retrying; topics are local to this machine until then"),
            true => log::debug!("bus: {why}"),
        }
    }
}

/// Carries out commands of one kind; returns how many messages were sent.
async fn carry_out<L: Link>(link: &mut L, commands: &[Command]) -> Result<u64, String> {
    let (mut subscribed, mut unsubscribed, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    for command in commands {
        match command {
            Command::Subscribe(key) => subscribed.push(Key::clone(key)),
            Command::Unsubscribe(key) => unsubscribed.push(Key::clone(key)),
            Command::Publish(message) => messages.push(message.clone()),
        }
    }
    if !subscribed.is_empty() {
        link.subscribe(&subscribed).await?;
    }
    if !unsubscribed.is_empty() {
        link.unsubscribe(&unsubscribed).await?;
    }
    match messages.is_empty() {
        true => Ok(0),
        false => link.publish(&messages).await.map(|sent| sent as u64),
    }
}

/// Delay before the next attempt: doubled after each failure, up to a bound, with jitter.
fn delay(failures: u32) -> Duration {
    let (first, longest) = DELAY;
    let delay = match failures {
        0 => return Duration::ZERO,
        _ => first.saturating_mul(1 << (failures - 1).min(16)).min(longest),
    };
    let mut random = [0];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()); // else without jitter
    delay.mul_f64(0.5 + f64::from(random[0]) / 512.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::bus::Server;

    /// A connection that accepts so many messages and then breaks.
    struct Fragile(usize);

    impl Link for Fragile {
        async fn connect(_: &Settings, _: Arc<Inbox>) -> Result<Self, String> {
            Ok(Fragile(2))
        }

        async fn subscribe(&mut self, _: &[Key]) -> Result<(), String> {
            Ok(())
        }

        async fn unsubscribe(&mut self, _: &[Key]) -> Result<(), String> {
            Ok(())
        }

        async fn publish(&mut self, messages: &[Message]) -> Result<usize, String> {
            self.0 = self.0.checked_sub(messages.len()).ok_or("it broke")?;
            Ok(messages.len())
        }

        async fn check(&mut self) -> Result<(), String> {
            Ok(())
        }

        async fn broken(&mut self) -> String {
            std::future::pending().await
        }
    }

    #[test]
    fn after_a_failure_unsent_messages_are_counted_and_wanted_topics_kept() {
        let counters: &BusCounters = Box::leak(Box::default());
        let commands = Arc::new(CommandQueue::new(1 << 20));
        let inbox = Arc::new(Inbox::new(1 << 20, counters).unwrap());
        let settings = Settings {
            kind: Kind::Nats,
            tls: None,
            servers: vec![Server { host: "a".to_owned(), port: 1 }],
            prefix: "p".to_owned(),
            credentials: None,
            queue: 1 << 20,
        };
        let mut session = Session::new(settings, Arc::clone(&commands), inbox, counters);
        let message = Message { key: "/a\0b".into(), is_text: true, payload: Default::default() };
        let (publish, subscribe) =
            (Command::Publish(message.clone()), |key: &str| Command::Subscribe(key.into()));
        let batch = [&publish, &publish, &subscribe("/a\0b"), &publish, &publish, &subscribe("/a\0c")];
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut link = Fragile(2);
        let carried_out = session.carry_out(&mut link, batch.map(Clone::clone).to_vec());
        assert_eq!(runtime.block_on(carried_out), Err("it broke".to_owned()));
        assert_eq!((counters.sent.get(), counters.dropped_out.get()), (2, 2));
        assert_eq!(session.wanted.len(), 2);
        assert!(commands.publish(message));
        commands.set_wanted("/a\0b".into(), false);
        commands.close();
        runtime.block_on(session.drop_all());
        assert_eq!((counters.dropped_out.get(), session.dropped, session.wanted.len()), (3, 1, 1));
    }

    #[test]
    fn delays_grow_to_a_bound() {
        assert_eq!(delay(0), Duration::ZERO);
        for (failures, longest) in [(1, 100), (2, 200), (5, 1600), (8, 10_000), (1000, 10_000)] {
            let longest = Duration::from_millis(longest);
            assert!((longest / 2..=longest).contains(&delay(failures)), "{failures}: {:?}", delay(failures));
        }
    }
}
