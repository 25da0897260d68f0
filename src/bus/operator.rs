//! `wshd ctl topics` and `wshd ctl publish`: the supervisor passes a file with each of these commands.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use super::engine::Engine;
use super::hub::Hub;
use crate::clock;
use crate::ctl::topics::{Engine as EngineState, Topic, Topics};
use crate::fleet::sockets::bus_wire::{Incoming, MAX_MESSAGE, MAX_NAME, Request, split_key};

/// Maximum topics in a list.
const MAX_TOPICS: usize = 20_000;
/// Maximum size of a file with a message; bytes.
const MAX_BYTES: usize = MAX_MESSAGE + 2 * MAX_NAME + 64;

/// Writes the topics to the file; if there are too many, those with the most subscribers. Returns how many.
pub fn list(hub: &Hub, engine: Option<&Engine>, mut file: File) -> io::Result<u64> {
    let topic = |(key, workers, subscribers)| {
        let (scope, topic) = split_key(key).unwrap_or((key, ""));
        Topic { scope: scope.into(), topic: topic.into(), subscribers, workers }
    };
    let mut topics: Vec<Topic<'_>> = hub.topics().map(topic).collect();
    let left_out = topics.len().saturating_sub(MAX_TOPICS);
    if left_out > 0 {
        topics.sort_by_key(|topic| std::cmp::Reverse(topic.subscribers));
        topics.truncate(MAX_TOPICS);
    }
    topics.sort();
    let engine =
        engine.map(|engine| EngineState { name: engine.name().into(), connected: engine.is_connected() });
    let listed = topics.len() as u64;
    let answer = Topics { topics, left_out: left_out as u64, engine };
    file.write_all(&serde_json::to_vec(&answer)?)?;
    Ok(listed)
}

/// Publishes the message in the file. Returns how many subscribers the topic has on this machine.
pub fn publish(hub: &mut Hub, engine: Option<&Engine>, mut file: File) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
    let mut frames = Incoming::of(bytes);
    let request = frames.next_frame().ok().flatten().and_then(Request::read);
    let Some(Request::Publish { key, message, .. }) = request else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    hub.publish(key, message, clock::now());
    engine.into_iter().for_each(|engine| engine.publish(key, message));
    Ok(hub.subscribers(key))
}
