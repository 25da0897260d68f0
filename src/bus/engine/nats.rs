//! A connection to NATS, without echo (`no_echo`). A message is the plain payload; a header marks binary ones.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client, ConnectOptions, Event, ServerAddr, ServerError, Subscriber};
use futures_util::StreamExt;
use tokio::select;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::commands::{Key, Message};
use super::inbox::Inbox;
use super::session::{Broken, CLOSED, Link, broken};
use super::subject;
use crate::config::bus::{Credentials, Engine as Settings};

/// The header with the type of a message; without it, UTF-8 is text.
const TYPE: &str = "Wshd-Type";
const BINARY: &str = "binary";
/// Timeout of connecting to one server.
const CONNECT: Duration = Duration::from_secs(5);
/// Interval of pings of the client library, which gives up after two without a reply.
const PING: Duration = Duration::from_secs(10);
/// Messages queued in the client library, which does not bound them by size.
const CAPACITY: usize = 16;

/// See the module.
pub struct Nats {
    client: Client,
    prefix: String,
    inbox: Arc<Inbox>,
    broken: Broken,
    /// Tasks that pass messages to the inbox, by topic.
    subscriptions: HashMap<Key, AbortHandle>,
    /// Whether a message that was too long has been logged.
    is_logged: bool,
}

impl Link for Nats {
    async fn connect(settings: &Settings, inbox: Arc<Inbox>) -> Result<Self, String> {
        let (set_broken, broken) = watch::channel(None);
        let (has_error, events) = (AtomicBool::new(false), Arc::clone(&inbox));
        let mut options = ConnectOptions::new()
            .name("wshd")
            .no_echo()
            .connection_timeout(CONNECT)
            .ping_interval(PING)
            .client_capacity(CAPACITY)
            .event_callback(move |event| {
                on_event(event, &set_broken, &has_error, &events);
                std::future::ready(())
            });
        options = match settings.credentials.clone() {
            None => options,
            Some(Credentials::Password { user: Some(user), secret }) => {
                options.user_and_password(user, secret)
            }
            Some(Credentials::Password { user: None, secret }) => options.token(secret),
            Some(Credentials::Jwt(text)) => options.credentials(&text).map_err(|error| error.to_string())?,
            Some(Credentials::Nkey(seed)) => options.nkey(seed),
        };
        if let Some(tls) = &settings.tls {
            options = options.require_tls(true).tls_client_config(tls.client(tls.roots()?)?);
        }
        let scheme = if settings.tls.is_some() { "tls" } else { "nats" };
        let addresses = settings.servers.iter().map(|server| format!("{scheme}://{server}").parse());
        let addresses: Result<Vec<ServerAddr>, _> = addresses.collect();
        let addresses = addresses.map_err(|error| error.to_string())?;
        let client = options.connect(addresses).await.map_err(|error| with_causes(&error))?;
        let (prefix, subscriptions) = (settings.prefix.clone(), HashMap::new());
        Ok(Nats { client, prefix, inbox, broken, subscriptions, is_logged: false })
    }

    async fn subscribe(&mut self, topics: &[Key]) -> Result<(), String> {
        for key in topics {
            let subscriber = self.client.subscribe(subject::of(&self.prefix, key));
            let subscriber = until(&mut self.broken, subscriber).await?;
            let task = tokio::spawn(pass_on(subscriber, Key::clone(key), Arc::clone(&self.inbox)));
            if let Some(before) = self.subscriptions.insert(Key::clone(key), task.abort_handle()) {
                before.abort();
            }
        }
        self.flush().await
    }

    async fn unsubscribe(&mut self, topics: &[Key]) -> Result<(), String> {
        // The subscriber, which the task owns, unsubscribes when it is dropped.
        topics.iter().filter_map(|key| self.subscriptions.remove(key)).for_each(|task| task.abort());
        Ok(())
    }

    async fn publish(&mut self, messages: &[Message]) -> Result<usize, String> {
        let mut taken = messages.len();
        for Message { key, is_text, payload } in messages {
            if payload.len() + HEADER > self.client.max_payload() {
                if !std::mem::replace(&mut self.is_logged, true) {
                    let size = payload.len();
                    log::warn!("bus: message of {size} bytes not sent: above max_payload of NATS");
                }
                taken -= 1;
                continue;
            }
            let subject = subject::of(&self.prefix, key);
            if *is_text {
                until(&mut self.broken, self.client.publish(subject, payload.clone())).await?;
            } else {
                let mut headers = HeaderMap::new();
                headers.insert(TYPE, BINARY);
                let publish = self.client.publish_with_headers(subject, headers, payload.clone());
                until(&mut self.broken, publish).await?;
            }
        }
        self.flush().await.map(|()| taken)
    }

    async fn check(&mut self) -> Result<(), String> {
        Ok(()) // the client library sends pings
    }

    async fn broken(&mut self) -> String {
        broken(&mut self.broken).await
    }
}

impl Nats {
    /// Waits until everything was written to the socket.
    async fn flush(&mut self) -> Result<(), String> {
        until(&mut self.broken, self.client.flush()).await
    }
}

/// Waits for `done`, unless the connection breaks.
async fn until<T, E: Error>(why: &mut Broken, done: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    select! {
        biased;
        why = broken(why) => Err(why),
        done = done => done.map_err(|error| with_causes(&error)),
    }
}

fn on_event(event: Event, broken: &watch::Sender<Option<String>>, has_error: &AtomicBool, inbox: &Inbox) {
    match event {
        Event::Disconnected | Event::Closed => {
            broken.send_if_modified(|why| why.is_none() && why.replace(CLOSED.to_owned()).is_none());
        }
        Event::SlowConsumer(_) => inbox.count_dropped(),
        Event::ServerError(ServerError::Other(error)) => match has_error.swap(true, Ordering::Relaxed) {
            false => log::error!("bus: NATS reports an error: {error}"),
            true => log::debug!("bus: NATS reports an error: {error}"),
        },
        Event::ServerError(error) => {
            broken.send_replace(Some(error.to_string()));
        }
        _ => {}
    }
}

async fn pass_on(mut subscriber: Subscriber, key: Key, inbox: Arc<Inbox>) {
    while let Some(message) = subscriber.next().await {
        let header = message.headers.as_ref().and_then(|headers| headers.get(TYPE));
        let is_binary = header.is_some_and(|value| value.as_str() == BINARY);
        inbox.put(&key, is_binary, message.payload);
    }
}

/// Maximum bytes of the header of a message.
const HEADER: usize = 64;

/// The text of an error and of its causes.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}
