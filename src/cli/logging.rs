//! The options of the log and the access log.

use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::value::{count, memory_or_zero};
use crate::log::{AccessLog, Destination, Format, Level, Rotation, Settings};

/// Where a syslog daemon listens: `_PATH_LOG` of <syslog.h>.
const SYSLOG: &str = "/dev/log";
/// Where systemd-journald listens: systemd.io/JOURNAL_NATIVE_PROTOCOL.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// Stands for where the log goes.
const SAME: &str = "-";

#[derive(Args, Debug)]
#[command(next_help_heading = "Log")]
pub struct Logging {
    /// Append log lines to this file
    #[arg(short, long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Where log lines go; wins over --log-file [default: the file, else stderr]
    #[arg(long, value_name = "TARGET", value_enum)]
    log_target: Option<Target>,
    /// The socket of syslog or journald [default: where each listens]
    #[arg(long, value_name = "FILE")]
    log_socket: Option<PathBuf>,
    /// What lines look like
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Least level of the log lines
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// Rename a log file that is larger than this (0: never)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = memory_or_zero)]
    log_max: u64,
    /// How many renamed files are kept of each
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = count::<u32>(1000))]
    log_count: u32,
    /// Append a line for each connection that opens, closes or is refused to this file; - is where the log goes
    /// [default: none is written]
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    Stderr,
    Syslog,
    Journald,
}

impl ValueEnum for Level {
    fn value_variants<'a>() -> &'a [Self] {
        &Level::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        // As mod_pywebsocket has it.
        Some(if *self == Level::Warn { value.alias("warning") } else { value })
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Format::Text, Format::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Format::Text => "text",
            Format::Json => "json",
        }))
    }
}

impl Logging {
    /// The settings that the options make.
    pub fn settings(self) -> Settings {
        // Seen from where the server was started, also when it reads its options anew: a daemon goes elsewhere.
        static START: OnceLock<PathBuf> = OnceLock::new();
        let start = START.get_or_init(|| std::env::current_dir().unwrap_or_default());
        let absolute = |path: PathBuf| start.join(path);
        let socket = |default: &str| absolute(self.log_socket.clone().unwrap_or_else(|| default.into()));
        Settings {
            level: self.log_level,
            handlers: Default::default(),
            destination: match (self.log_target, self.log_file) {
                (None, Some(path)) => Destination::File(absolute(path)),
                (Some(Target::Stderr) | None, _) => Destination::Stderr,
                (Some(Target::Syslog), _) => Destination::Syslog(socket(SYSLOG)),
                (Some(Target::Journald), _) => Destination::Journald(socket(JOURNALD)),
            },
            format: self.log_format,
            access: self.access_log.map(|path| match path.as_os_str() == SAME {
                true => AccessLog::Log,
                false => AccessLog::File(absolute(path)),
            }),
            rotation: Rotation { size: self.log_max, count: self.log_count },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::file::tests::config;

    /// The settings of a configuration file and a command line.
    fn settings(text: &str, args: &[&str]) -> Settings {
        config(text, args).unwrap().log
    }

    #[test]
    fn without_options_the_log_is_text_on_standard_error() {
        let expected = Settings {
            level: Level::Info,
            handlers: Default::default(),
            destination: Destination::Stderr,
            format: Format::Text,
            access: None,
            rotation: Rotation { size: 0, count: 5 },
        };
        assert_eq!(settings("", &[]), expected);
    }

    #[test]
    fn a_target_wins_over_a_file() {
        let destination = |args: &[&str]| settings("log_file = 'l'", args).destination;
        assert_eq!(destination(&[]), Destination::File(std::path::absolute("l").unwrap()));
        assert_eq!(destination(&["--log-target", "stderr"]), Destination::Stderr);
        assert_eq!(destination(&["--log-target=syslog"]), Destination::Syslog("/dev/log".into()));
        let journald = Destination::Journald("/run/systemd/journal/socket".into());
        assert_eq!(destination(&["--log-target=journald"]), journald);
        assert_eq!(
            destination(&["--log-target=journald", "--log-socket", "/s"]),
            Destination::Journald("/s".into())
        );
    }

    #[test]
    fn options_of_mod_pywebsocket() {
        let settings = settings("", &["--log_max=1K", "--log_count", "7", "--log_level", "warning"]);
        assert_eq!(settings.rotation, Rotation { size: 1024, count: 7 });
        assert_eq!(settings.level, Level::Warn);
    }

    #[test]
    fn the_access_log() {
        let text = "access_log = '-'\nlog_format = 'json'\nlog_max = '1M'\nlog_count = 1\n\
                    [handler.'/a']\nlog_level = 'fine'\n[handler.'/b']\n";
        let found = settings(text, &[]);
        assert_eq!((found.access, found.format), (Some(AccessLog::Log), Format::Json));
        assert_eq!(found.rotation, Rotation { size: 1 << 20, count: 1 });
        assert_eq!(found.handlers, [("/a".to_owned(), Level::Fine)].into());
        let file = settings(text, &["--access-log", "/a"]).access;
        assert_eq!(file, Some(AccessLog::File("/a".into())));
    }
}
