//! `wshd ctl topics`: the answer, which the bus writes, and its text for people.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::log::Escaped;

/// The topics of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topics<'a> {
    /// Those with subscribers, by scope and name.
    pub topics: Vec<Topic<'a>>,
    /// Topics that are not listed, as there are too many.
    pub left_out: u64,
    /// The engine that joins them with those of other machines, if there is one.
    pub engine: Option<Engine<'a>>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topic<'a> {
    /// The resource of the handler, or the name that joins it with others.
    pub scope: Cow<'a, str>,
    /// Its name.
    pub topic: Cow<'a, str>,
    /// Connections of this server that are subscribed.
    pub subscribers: u64,
    /// Workers that have them.
    pub workers: usize,
}

/// An engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine<'a> {
    /// What it is, and where.
    pub name: Cow<'a, str>,
    /// Whether there is a connection.
    pub connected: bool,
}

impl Topics<'_> {
    /// The text for people.
    pub fn text(&self, bold: bool) -> String {
        let mut table = Table::new("SCOPE TOPIC SUBSCRIBERS> WORKERS>");
        for topic in &self.topics {
            let numbers = [topic.subscribers.to_string(), topic.workers.to_string()];
            let [subscribers, workers] = numbers;
            table.row([topic.scope.to_string(), topic.topic.to_string(), subscribers, workers], false);
        }
        let mut text = table.text(bold);
        if self.left_out > 0 {
            text += &format!("{} more are not listed\n", self.left_out);
        }
        if let Some(Engine { name, connected }) = &self.engine {
            let state = if *connected { "connected to" } else { "NOT connected to" };
            text += &format!("\n{state} {}\n", Escaped(name));
        }
        text
    }
}
