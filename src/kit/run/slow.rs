//! Reports callbacks that block a worker's event loop. Samples over the control socket what the worker executes: a
//! reported time is up to one interval too short.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::Event;
use crate::ctl::answer::{self, Executes, Status};
use crate::ctl::request::Request;
use crate::kit::control::ask;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(15);
/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a thread that sends a log line for each callback longer than `limit`. It ends with the server.
pub fn watch(control: PathBuf, limit: Duration, sender: SyncSender<Event>) {
    thread::spawn(move || {
        let mut seen: Option<Executes> = None;
        while let Ok(now) = executes(&control) {
            let (lines, next) = step(seen.take(), now, limit.as_secs_f64());
            seen = next;
            if lines.into_iter().any(|line| sender.send(Event::Log(line)).is_err()) {
                break;
            }
            thread::sleep(INTERVAL);
        }
    });
}

/// Compares two samples: returns a line if a callback over the limit has ended, and the sample to compare with the
/// next.
fn step(seen: Option<Executes>, now: Option<Executes>, limit: f64) -> (Option<String>, Option<Executes>) {
    let is_same = |a: &Executes, b: &Executes| {
        b.time >= a.time && a.callback == b.callback && a.connection == b.connection && a.handler == b.handler
    };
    match (&seen, &now) {
        (Some(before), Some(now)) if is_same(before, now) => {}
        (Some(before), _) if before.time > limit => return (Some(line(before)), now),
        _ => {}
    }
    (None, now)
}

fn line(executed: &Executes) -> String {
    let Executes { handler, callback, connection, time, .. } = executed;
    let connection = connection.as_ref().map_or(String::new(), |id| format!(" for connection {id}"));
    format!(
        "wshd: warn: {handler}: {callback}{connection} blocked the event loop for more than {:.0} ms; use the blocking \
         style or a thread",
        time * 1e3
    )
}

fn executes(control: &Path) -> io::Result<Option<Executes>> {
    let bytes = ask(control, &Request::Status {}, TIMEOUT)?;
    let result: Value = match answer::read(&bytes) {
        Some(Ok(result)) => result,
        Some(Err(error)) => return Err(io::Error::other(error)),
        None => return Err(io::ErrorKind::InvalidData.into()),
    };
    let status: Status = serde_json::from_value(result)?;
    Ok(status.workers.into_iter().chain(status.leaving).find_map(|worker| worker.executes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executing(callback: &str, time: f64) -> Option<Executes> {
        let (handler, resource) = ("chat".to_owned(), "/chat".to_owned());
        Some(Executes { handler, resource, callback: callback.to_owned(), connection: None, time })
    }

    #[test]
    fn a_callback_is_reported_once_when_it_has_ended() {
        let (line, seen) = step(None, executing("on_message", 0.06), 0.05);
        assert!(line.is_none());
        let (line, seen) = step(seen, executing("on_message", 0.08), 0.05);
        assert!(line.is_none());
        let (line, seen) = step(seen, None, 0.05);
        assert!(line.is_some_and(|line| {
            line.contains("chat: on_message blocked the event loop for more than 80 ms")
        }));
        assert!(seen.is_none());
    }

    #[test]
    fn short_calls_are_not_reported_and_two_calls_are_distinguished() {
        let (line, seen) = step(executing("on_open", 0.04), executing("on_message", 0.01), 0.05);
        assert!(line.is_none());
        let (line, _) = step(seen, None, 0.05);
        assert!(line.is_none());
        // The same callback, called again.
        let (line, _) = step(executing("on_message", 0.07), executing("on_message", 0.001), 0.05);
        assert!(line.is_some());
    }
}
