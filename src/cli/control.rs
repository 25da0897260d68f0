//! The command line of `wshd ctl`, and the request that it becomes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Error;
use crate::ctl::arrange::Key;
use crate::ctl::filter::Filter;
use crate::ctl::publish::Payload;
use crate::ctl::record::{MAX_FILE, MAX_MESSAGE, Target};
use crate::ctl::request::{CLOSE_CODE, Change, Id, Request, Switch};
use crate::ctl::{Order, Show};
use crate::log::Level;
use crate::proto::ws::close;
use crate::settings::{self, file::File, value};

/// The default socket.
const DEFAULT_SOCKET: &str = "/run/wshd/control";

/// Inspect or control a running server
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Ctl {
    /// The server's control socket [default: /run/wshd/control]
    #[arg(long, value_name = "PATH", conflicts_with = "config", global = true)]
    control_socket: Option<PathBuf>,
    /// The server's configuration file, which names the socket
    #[arg(short = 'f', long, alias = "config-file", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show workers, the callback that each is running, pools and handlers
    Status {
        #[command(flatten)]
        form: OutputArgs,
        /// Repeat every so many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
            value_parser = interval)]
        watch: Option<Duration>,
    },
    /// Print the configuration in force, without secrets
    Config,
    /// List connections
    Connections {
        #[command(flatten)]
        filter: Filter,
        /// Sort by age, queued, state, worker, peer, user, handler or resource
        #[arg(long, value_name = "FIELD")]
        sort: Option<Key>,
        /// Show at most this many
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
        #[command(flatten)]
        form: OutputArgs,
    },
    /// Close a connection, or all of a peer, resource, handler or user
    Close {
        /// The id that connections lists
        #[arg(value_name = "ID", required_unless_present = "filter", conflicts_with = "filter")]
        id: Option<Id>,
        #[command(flatten)]
        filter: Filter,
        /// The close code
        #[arg(long, value_name = "CODE", default_value_t = close::GOING_AWAY, value_parser = close_code)]
        code: u16,
    },
    /// Record what the connections of a handler receive, as a script for wshd replay
    Record {
        /// A resource of the handler
        resource: String,
        /// The file to write, which must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Record for this time
        #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = time)]
        time: Duration,
        /// Maximum size of the file
        #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = file_size)]
        limit: u64,
        /// Record only the size of longer messages
        #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = message_size)]
        max_message: u32,
        /// Record only the sizes of messages
        #[arg(long, conflicts_with = "max_message")]
        no_payload: bool,
    },
    /// List all topics with their subscribers
    Topics {
        #[command(flatten)]
        form: OutputArgs,
    },
    /// Publish standard input to a topic
    Publish {
        /// Name of the topic
        topic: String,
        /// Its scope: a handler's resource, or the value of its setting topics [default: the only one]
        #[arg(long, value_name = "SCOPE")]
        scope: Option<String>,
        /// Publish a binary message
        #[arg(long)]
        binary: bool,
    },
    /// Show the state of handlers, quarantine one or put it back in service
    Quarantine {
        /// A resource of the handler
        resource: Option<String>,
        /// Quarantine it, or put it back in service
        #[arg(value_parser = switch, requires = "resource", value_name = "on|off")]
        state: Option<Switch>,
        /// Quarantine it for this time, then probe it [default: until turned off]
        #[arg(long, value_name = "TIME", value_parser = time, requires = "state")]
        time: Option<Duration>,
        #[command(flatten)]
        form: OutputArgs,
    },
    /// Stop the server
    Stop {
        /// Do not close connections first
        #[arg(long)]
        now: bool,
    },
    /// Fail health checks, close connections over a time, then stop
    Drain {
        /// Close connections over this time [default: drain_before_stop, or a minute]
        #[arg(long = "for", value_name = "TIME", value_parser = value::time)]
        time: Option<Duration>,
    },
    /// End a drain: serve again
    Resume,
    /// Reload the configuration and the handlers
    Reload,
    /// Replace the running program by the executable that is at its path now
    Upgrade,
    /// Cancel a reload or an upgrade whose new processes are not ready yet
    Cancel,
    /// Show or change the minimum severity to log, until the next reload
    LogLevel {
        /// fine, debug, info, warn, error or critical
        #[arg(value_name = "LEVEL")]
        level: Option<Level>,
    },
    /// Change the number of workers
    Workers {
        /// +COUNT, -COUNT or COUNT
        #[arg(value_name = "CHANGE", allow_negative_numbers = true)]
        change: Change,
        /// The pool
        #[arg(long, value_name = "POOL", default_value = "default")]
        pool: String,
    },
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Ctl {
    /// Converts the command line to a request, a socket and the form of the output.
    pub fn into_order(self) -> Result<Order, Error> {
        let socket = match (self.control_socket, self.config) {
            (Some(path), _) => path,
            (None, Some(file)) => socket_in(&file)?,
            (None, None) => DEFAULT_SOCKET.into(),
        };
        let (text, mut target) = (Show::default(), None);
        let (request, show) = match self.action {
            Action::Status { form, watch } => (Request::Status {}, Show { json: form.json, watch, ..text }),
            Action::Config => (Request::Config {}, text),
            Action::Connections { filter, sort, limit, form } => {
                let show = Show { json: form.json, sort, limit, ..text };
                (Request::Connections { filter }, show)
            }
            Action::Record { resource, file, time, limit, max_message, no_payload } => {
                target = Some(Target { file, time, limit });
                let longest = if no_payload { 0 } else { max_message };
                (Request::Record { resource, longest }, text)
            }
            Action::Topics { form } => (Request::Topics {}, Show { json: form.json, ..text }),
            Action::Publish { topic, scope, binary } => {
                (Request::Publish { scope, topic, binary, data: Payload::default() }, text)
            }
            Action::Close { id, filter, code } => (Request::Close { id, filter, code }, text),
            Action::Cancel => (Request::Cancel {}, text),
            Action::LogLevel { level } => (Request::LogLevel { level }, text),
            Action::Quarantine { resource, state, time, form } => {
                let request = Request::Quarantine { resource, state, seconds: time.map(whole_seconds) };
                (request, Show { json: form.json, ..text })
            }
            Action::Stop { now } => (Request::Stop { now }, text),
            Action::Drain { time } => (Request::Drain { seconds: time.map(whole_seconds) }, text),
            Action::Resume => (Request::Resume {}, text),
            Action::Reload => (Request::Reload {}, text),
            Action::Upgrade => (Request::Upgrade {}, text),
            Action::Workers { change, pool } => (Request::Workers { pool, change }, text),
        };
        Ok(Order { socket, request, show, target })
    }
}

/// The key `control_socket` of a configuration file, whose other keys are not checked.
fn socket_in(path: &std::path::Path) -> Result<PathBuf, settings::Error> {
    let file = File::read(path)?;
    let document = file.parse()?;
    let named = document.get("control_socket").and_then(|value| value.get_ref().as_str());
    named.map(PathBuf::from).ok_or_else(|| {
        settings::Error::Config(format!(
            "{}: expected control_socket = \"PATH\", or give --control-socket PATH",
            path.display()
        ))
    })
}

/// Rounds up.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn time(text: &str) -> Result<Duration, String> {
    match value::time(text)? {
        time if time.is_zero() => Err("expected a time above 0".to_owned()),
        time => Ok(time),
    }
}

fn file_size(text: &str) -> Result<u64, String> {
    value::size(text, &(1 << 10..=MAX_FILE))
}

fn message_size(text: &str) -> Result<u32, String> {
    let size = value::size(text, &(1..=MAX_MESSAGE))?;
    u32::try_from(size).map_err(|error| error.to_string())
}

fn close_code(text: &str) -> Result<u16, String> {
    let code = text.parse().ok().filter(|code| close::may_travel(*code));
    code.ok_or_else(|| CLOSE_CODE.to_owned())
}

fn switch(text: &str) -> Result<Switch, String> {
    match text {
        "on" => Ok(Switch::On),
        "off" => Ok(Switch::Off),
        _ => Err("expected on or off".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.1 to 86400".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::ffi::OsString;

    use super::super::{Command, parse};
    use super::*;

    fn order(args: &[&str]) -> Result<Order, String> {
        let line = ["wshd", "ctl"].iter().chain(args).map(OsString::from);
        match parse(line, None) {
            Ok(Command::Ctl(order)) => Ok(*order),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn subcommands_become_requests() {
        let request = |args: &[&str]| order(args).unwrap().request;
        assert_eq!(request(&["status"]), Request::Status {});
        assert_eq!(request(&["stop", "--now"]), Request::Stop { now: true });
        let id = Id { pid: 7, conn: 0x1_0000_0001 };
        let close = |code| Request::Close { id: Some(id), filter: Filter::default(), code };
        assert_eq!(request(&["close", "7:100000001"]), close(1001));
        assert_eq!(request(&["close", "7:100000001", "--code", "4000"]), close(4000));
        let filter = Filter {
            peer: Some("10.0.0.0/8".parse().unwrap()),
            handler: Some("chat".to_owned()),
            ..Filter::default()
        };
        let args = ["--peer", "10.0.0.0/8", "--handler", "chat"];
        let all = Request::Close { id: None, filter: filter.clone(), code: 1001 };
        assert_eq!(request(&[&["close"], &args[..]].concat()), all);
        assert_eq!(request(&[&["connections"], &args[..]].concat()), Request::Connections { filter });
        let workers = |change| Request::Workers { pool: "default".to_owned(), change };
        assert_eq!(request(&["workers", "+1"]), workers(Change::By(1)));
        assert_eq!(request(&["workers", "-2"]), workers(Change::By(-2)));
        assert_eq!(request(&["workers", "4"]), workers(Change::To(4)));
        assert_eq!(request(&["drain", "--for", "90s"]), Request::Drain { seconds: Some(90) });
        assert_eq!(request(&["drain", "--for", "0"]), Request::Drain { seconds: Some(0) });
        let record = order(&["record", "/chat", "x.test", "--for", "2m", "--no-payload"]).unwrap();
        assert_eq!(record.request, Request::Record { resource: "/chat".to_owned(), longest: 0 });
        let target = Target { file: "x.test".into(), time: Duration::from_secs(120), limit: 16 << 20 };
        assert_eq!(record.target, Some(target));
        let quarantine =
            |state, seconds| Request::Quarantine { resource: Some("/a".to_owned()), state, seconds };
        assert_eq!(request(&["quarantine", "/a"]), quarantine(None, None));
        assert_eq!(
            request(&["quarantine", "/a", "on", "--time", "1500ms"]),
            quarantine(Some(Switch::On), Some(2))
        );
    }

    #[test]
    fn where_the_socket_is() {
        let socket = |args: &[&str]| order(args).map(|order| order.socket);
        assert_eq!(socket(&["status"]), Ok("/run/wshd/control".into()));
        assert_eq!(socket(&["--control-socket", "/s", "status"]), Ok("/s".into()));
        assert_eq!(socket(&["status", "--control_socket=/s"]), Ok("/s".into()));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.conf");
        let file_name = file.to_str().unwrap();
        std::fs::write(&file, "port = 1\nno_such_key = 2\ncontrol_socket = '/run/s'\n").unwrap();
        assert_eq!(socket(&["-f", file_name, "status"]), Ok("/run/s".into()));
        std::fs::write(&file, "port = 1\n").unwrap();
        let error = socket(&["--config", file_name, "status"]).unwrap_err();
        assert!(error.contains("w.conf: expected control_socket"), "{error}");
        assert!(socket(&["-f", "/nowhere", "status"]).unwrap_err().contains("/nowhere"));
        assert!(socket(&["-f", file_name, "--control-socket", "/s", "status"]).is_err());
    }

    #[test]
    fn options_of_the_output() {
        let show = |args: &[&str]| order(args).unwrap().show;
        assert_eq!(show(&["status"]), Show::default());
        assert_eq!(show(&["status", "--watch"]).watch, Some(Duration::from_secs(2)));
        assert_eq!(show(&["status", "--json", "--watch=0.5"]).watch, Some(Duration::from_millis(500)));
        assert!(show(&["connections", "--json"]).json);
        let sorted = show(&["connections", "--sort", "queued", "--limit", "5"]);
        assert_eq!((sorted.sort, sorted.limit), ("queued".parse().ok(), Some(5)));
    }

    #[test]
    fn errors_say_what_was_expected() {
        for (args, expected) in [
            (&["close", "7"][..], "PID:ID"),
            (&["close", "7:1", "--code", "1005"], "3000-4999"),
            (&["quarantine", "/a", "maybe"], "on or off"),
            (&["workers", "+0"], "+1 or -1"),
            (&["status", "--watch=0"], "0.1"),
            (&["close"], "required"),
            (&["record", "/chat", "x", "--limit", "1"], "at least 1K"),
            (&["record", "/chat", "x", "--max-message", "5M"], "4M"),
            (&["close", "7:1", "--user", "x"], "cannot be used with"),
            (&["close", "--peer", "somebody"], "expected an address"),
            (&["connections", "--sort", "size"], "expected age"),
            (&["reboot"], "unrecognized"),
        ] {
            let error = order(args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
        assert!(order(&[]).is_err());
    }
}
