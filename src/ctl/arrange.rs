//! Lists of connections in an order that was asked for, and no longer than that.

use std::cmp::Ordering;
use std::str::FromStr;

use serde_json::Value;

/// What connections are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    member: &'static str,
    /// The largest comes first; otherwise it is a text, and those that have none come last.
    is_number: bool,
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (member, is_number) = match text {
            "age" => ("age", true),
            "queued" => ("queued", true),
            "state" => ("phase", false),
            "worker" => ("worker", false),
            "peer" => ("peer", false),
            "user" => ("user", false),
            "handler" => ("handler", false),
            "resource" => ("resource", false),
            _ => {
                return Err("expected age, queued, state, worker, peer, user, handler or resource".to_owned());
            }
        };
        Ok(Key { member, is_number })
    }
}

impl Key {
    fn compare(self, one: &Value, other: &Value) -> Ordering {
        let (one, other) = (&one[self.member], &other[self.member]);
        if self.is_number {
            return other.as_f64().unwrap_or_default().total_cmp(&one.as_f64().unwrap_or_default());
        }
        let (one, other) = (one.as_str(), other.as_str());
        (one.is_none(), one).cmp(&(other.is_none(), other))
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
