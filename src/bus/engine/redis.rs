//! A connection to Redis or Valkey, in RESP3, which can publish and subscribe on one connection. A message is the plain
//! payload on the channel of the topic; a binary one goes to the channel with the suffix `.binary`.
//!
//! Redis echoes the messages of a connection on the channels it is subscribed to. For each of them, one equal message
//! is dropped on arrival. This is exact: Redis executes the commands of a connection in order, so it is known which
//! messages are echoed, and it does not matter which of two equal messages is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, RedisResult,
    Value,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::commands::{Key, Message};
use super::inbox::Inbox;
use super::session::{Broken, CLOSED, Link, broken};
use super::subject;
use crate::config::bus::{Credentials, Engine as Settings, Server};

/// Suffix of the channel of binary messages.
const BINARY: &str = ".binary";
/// Timeout of connecting to one server.
const CONNECT: Duration = Duration::from_secs(5);
/// Timeout of a reply.
const RESPONSE: Duration = Duration::from_secs(10);
/// Topics in one command.
const TOPICS: usize = 256;

/// See the module.
pub struct Redis {
    connection: MultiplexedConnection,
    prefix: String,
    channels: Arc<Channels>,
    broken: Broken,
    /// Whether a refused message has been logged.
    is_logged: bool,
}

/// The subscribed channels, and where their messages go.
struct Channels {
    state: Mutex<State>,
    inbox: Arc<Inbox>,
}

#[derive(Default)]
struct State {
    subscribed: HashMap<String, Channel>,
}

struct Channel {
    key: Key,
    is_binary: bool,
    /// Payloads published by this connection and not echoed yet.
    echoes: VecDeque<Bytes>,
}

impl Link for Redis {
    async fn connect(settings: &Settings, inbox: Arc<Inbox>) -> Result<Self, String> {
        let mut why = String::new();
        for server in &settings.servers {
            match timeout(CONNECT, Self::connect_to(settings, server, Arc::clone(&inbox))).await {
                Ok(Ok(redis)) => return Ok(redis),
                Ok(Err(error)) => why = error,
                Err(_) => why = "timeout".to_owned(),
            }
        }
        Err(why)
    }

    async fn subscribe(&mut self, topics: &[Key]) -> Result<(), String> {
        for topics in topics.chunks(TOPICS) {
            let names: Vec<[String; 2]> = topics.iter().map(|key| self.channels_of(key)).collect();
            match self.connection.subscribe(names.concat()).await {
                Ok(()) => self.channels.add(topics, names),
                Err(error) if is_refusal(&error) && topics.len() > 1 => {
                    // Redis may refuse only some of them.
                    for key in topics {
                        Box::pin(self.subscribe(std::slice::from_ref(key))).await?;
                    }
                }
                Err(error) if is_refusal(&error) => {
                    log::error!("bus: Redis refuses the channel {}: {error}", names.concat().concat());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, topics: &[Key]) -> Result<(), String> {
        for topics in topics.chunks(TOPICS) {
            let names: Vec<String> = topics.iter().flat_map(|key| self.channels_of(key)).collect();
            let done = self.connection.unsubscribe(names.clone()).await;
            done.map_err(|error| error.to_string())?;
            self.channels.remove(&names);
        }
        Ok(())
    }

    async fn publish(&mut self, messages: &[Message]) -> Result<usize, String> {
        let mut pipeline = redis::pipe();
        let mut names = Vec::new();
        for Message { key, is_text, payload } in messages {
            let [text, binary] = self.channels_of(key);
            let name = if *is_text { text } else { binary };
            pipeline.cmd("PUBLISH").arg(&name).arg(&payload[..]);
            self.channels.expect_echo(&name, payload);
            names.push(name);
        }
        let answers: RedisResult<Vec<RedisResult<i64>>> =
            pipeline.ignore_errors().query_async(&mut self.connection).await;
        let answers = answers.map_err(|error| error.to_string())?;
        let mut taken = 0;
        for ((answer, name), message) in answers.into_iter().zip(&names).zip(messages) {
            match answer {
                Ok(_) => taken += 1,
                Err(error) => {
                    self.channels.take_echo(name, &message.payload);
                    if !std::mem::replace(&mut self.is_logged, true) {
                        log::error!("bus: message not sent: Redis refuses the channel {name}: {error}");
                    }
                }
            }
        }
        Ok(taken)
    }

    async fn check(&mut self) -> Result<(), String> {
        let pong: RedisResult<Value> = redis::cmd("PING").query_async(&mut self.connection).await;
        pong.map(drop).map_err(|error| error.to_string())
    }

    async fn broken(&mut self) -> String {
        broken(&mut self.broken).await
    }
}

impl Redis {
    async fn connect_to(settings: &Settings, server: &Server, inbox: Arc<Inbox>) -> Result<Self, String> {
        let Server { host, port } = server;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let channels = Arc::new(Channels { state: Mutex::default(), inbox });
        let (set_broken, broken) = watch::channel(None);
        let receiver = Arc::clone(&channels);
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE)).set_push_sender(
            move |push: PushInfo| -> Result<(), ()> {
                match push.kind {
                    PushKind::Message => receiver.receive(push.data),
                    PushKind::Disconnection => drop(set_broken.send_replace(Some(CLOSED.to_owned()))),
                    _ => {}
                }
                Ok(())
            },
        );
        let mut info =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(Credentials::Password { user, secret }) = &settings.credentials {
            info = info.set_password(secret);
            if let Some(user) = user {
                info = info.set_username(user);
            }
        }
        let failed = |error: RedisError| error.to_string();
        let connection = if let Some(tls) = &settings.tls {
            let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
            let connector = TlsConnector::from(Arc::new(tls.client(tls.roots()?)?));
            let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
            let (connection, driver) =
                MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(failed)?;
            drop(tokio::spawn(driver));
            connection
        } else {
            let (connection, driver) =
                MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(failed)?;
            drop(tokio::spawn(driver));
            connection
        };
        Ok(Redis { connection, prefix: settings.prefix.clone(), channels, broken, is_logged: false })
    }

    /// The channels of text and of binary messages.
    fn channels_of(&self, key: &str) -> [String; 2] {
        let text = subject::of(&self.prefix, key);
        let binary = text.clone() + BINARY;
        [text, binary]
    }
}

impl Channels {
    fn add(&self, topics: &[Key], names: Vec<[String; 2]>) {
        let mut state = self.lock();
        for (key, names) in topics.iter().zip(names) {
            for (name, is_binary) in names.into_iter().zip([false, true]) {
                let channel = Channel { key: Key::clone(key), is_binary, echoes: VecDeque::new() };
                state.subscribed.entry(name).or_insert(channel);
            }
        }
    }

    fn remove(&self, names: &[String]) {
        let mut state = self.lock();
        names.iter().for_each(|name| drop(state.subscribed.remove(name)));
    }

    /// Records the echo of a message that is about to be published.
    fn expect_echo(&self, name: &str, payload: &Bytes) {
        if let Some(channel) = self.lock().subscribed.get_mut(name) {
            channel.echoes.push_back(payload.clone());
        }
    }

    /// Whether this is an expected echo; it is expected no longer then.
    fn take_echo(&self, name: &str, payload: &[u8]) -> bool {
        self.lock().subscribed.get_mut(name).is_some_and(|channel| channel.take_echo(payload))
    }

    /// Passes a message to the inbox, unless it is an echo.
    fn receive(&self, data: Vec<Value>) {
        let Ok([Value::BulkString(name), Value::BulkString(payload)]) = <[Value; 2]>::try_from(data) else {
            return;
        };
        let mut state = self.lock();
        let channel = std::str::from_utf8(&name).ok().and_then(|name| state.subscribed.get_mut(name));
        if let Some(channel) = channel
            && !channel.take_echo(&payload)
        {
            self.inbox.put(&channel.key, channel.is_binary, payload.into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    fn take_echo(&mut self, payload: &[u8]) -> bool {
        let index = self.echoes.iter().position(|echo| echo == payload);
        index.is_some_and(|index| self.echoes.remove(index).is_some())
    }
}

/// Whether this is an error reply of Redis: the connection can still be used.
fn is_refusal(error: &RedisError) -> bool {
    error.code().is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn channels() -> Channels {
        let inbox = Inbox::new(10_000, Box::leak(Box::default())).unwrap();
        let channels = Channels { state: Mutex::default(), inbox: Arc::new(inbox) };
        channels.add(&["/a\0b".into()], vec![["a".to_owned(), "a.binary".to_owned()]]);
        channels
    }

    fn receive(channels: &Channels, name: &str, payload: &str) -> Vec<bool> {
        channels.receive(vec![Value::BulkString(name.into()), Value::BulkString(payload.into())]);
        channels.inbox.take().iter().map(|message| message.is_text).collect()
    }

    #[test]
    fn each_echo_is_dropped_once() {
        let channels = channels();
        channels.expect_echo("a", &Bytes::from_static(b"one"));
        assert_eq!(receive(&channels, "a", "two"), [true]);
        assert!(receive(&channels, "a", "one").is_empty());
        assert_eq!(receive(&channels, "a", "one"), [true]);
        assert_eq!(receive(&channels, "a.binary", "one"), [false]);
    }

    #[test]
    fn channels_that_are_not_subscribed_expect_no_echo() {
        let channels = channels();
        channels.expect_echo("b", &Bytes::from_static(b"one"));
        assert!(!channels.take_echo("b", b"one") && receive(&channels, "b", "one").is_empty());
        channels.remove(&["a".to_owned()]);
        assert!(receive(&channels, "a", "one").is_empty());
    }
}
