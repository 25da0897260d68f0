//! Lists of connections in an order that was asked for, and no longer than that.

use std::cmp::Ordering;
use std::str::FromStr;

use serde_json::Value;

/// What connections are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The oldest first.
    Age,
    /// The one for which most waits to be sent first.
    Queued,
    /// By a text, which is a member of this name.
    Text(&'static str),
}

/// The keys that are texts.
const TEXTS: [&str; 5] = ["worker", "peer", "user", "handler", "resource"];

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "age" => Ok(Key::Age),
            "queued" => Ok(Key::Queued),
            "state" => Ok(Key::Text("phase")),
            _ => TEXTS.into_iter().find(|name| *name == text).map(Key::Text).ok_or_else(|| {
                "expected age, queued, state, worker, peer, user, handler or resource".to_owned()
            }),
        }
    }
}

impl Key {
    fn compare(self, one: &Value, other: &Value) -> Ordering {
        let number = |value: &Value, name: &str| value[name].as_f64().unwrap_or_default();
        let largest_first = |name| number(other, name).total_cmp(&number(one, name));
        match self {
            Key::Age => largest_first("age"),
            Key::Queued => largest_first("queued"),
            // Those that have none come last.
            Key::Text(name) => {
                let text = |value: &Value| value[name].as_str().map(str::to_owned);
                let (one, other) = (text(one), text(other));
                one.is_none().cmp(&other.is_none()).then(one.cmp(&other))
            }
        }
    }
}

/// Sorts the result of a request for connections, and leaves out what is over the limit.
pub fn arrange(result: &mut Value, key: Option<Key>, limit: Option<usize>) {
    let Some(connections) = result["connections"].as_array_mut() else { return };
    if let Some(key) = key {
        connections.sort_by(|one, other| key.compare(one, other));
    }
    let before = connections.len();
    connections.truncate(limit.unwrap_or(usize::MAX));
    let cut = before - connections.len();
    let left_out = result["left_out"].as_u64().unwrap_or_default();
    result["left_out"] = (left_out + cut as u64).into();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sorted_and_cut() {
        let list = json!({"left_out": 1, "connections": [
            {"id": "a", "age": 1.5, "queued": 7, "user": null, "phase": "open"},
            {"id": "b", "age": 9.0, "queued": 0, "user": "zoe", "phase": "closing"},
            {"id": "c", "age": 3.0, "queued": 9, "user": "amy", "phase": "open"},
        ]});
        for (key, expected) in [
            ("age", ["b", "c", "a"]),
            ("queued", ["c", "a", "b"]),
            ("user", ["c", "b", "a"]),
            ("state", ["b", "a", "c"]),
        ] {
            let mut sorted = list.clone();
            arrange(&mut sorted, Some(key.parse().unwrap()), None);
            let ids: Vec<_> =
                sorted["connections"].as_array().unwrap().iter().map(|entry| &entry["id"]).collect();
            assert_eq!(
                (ids, sorted["left_out"].as_u64()),
                (expected.iter().map(|id| json!(id)).collect::<Vec<_>>().iter().collect(), Some(1)),
                "{key}"
            );
        }
        let mut cut = list;
        arrange(&mut cut, None, Some(1));
        assert_eq!((cut["connections"].as_array().unwrap().len(), &cut["left_out"]), (1, &json!(3)));
        assert!("phase".parse::<Key>().is_err() && "size".parse::<Key>().unwrap_err().contains("queued"));
    }
}
