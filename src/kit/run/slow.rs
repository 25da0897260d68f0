//! Reports callbacks that block a worker's event loop. Samples over the control socket what the worker executes: a
//! reported time is up to one interval too short.

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use super::Event;
use crate::ctl::answer::{Executes, Status};
use crate::ctl::ask;
use crate::ctl::request::Request;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(15);

/// Starts a thread that sends a log line for each callback longer than `limit`. It ends with this process.
pub fn watch(control: PathBuf, limit: Duration, sender: SyncSender<Event>) {
    thread::spawn(move || {
        let mut seen: Option<Executes> = None;
        loop {
            let (line, next) = step(seen, executes(&control), limit.as_secs_f64());
            seen = next;
            if line.is_some_and(|line| sender.send(Event::Log(line)).is_err()) {
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

/// The present call; none if the server does not answer, as while the machine sleeps.
fn executes(control: &Path) -> Option<Executes> {
    let status: Status = serde_json::from_value(ask(control, &Request::Status {}).ok()?).ok()?;
    status.workers.into_iter().chain(status.leaving).find_map(|worker| worker.executes)
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
