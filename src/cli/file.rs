//! The configuration file without what its tables mean: TOML whose keys are the long options of a clap command with
//! `_` for `-`, and whose values are theirs, so that there is one list of names, ranges and defaults. Refuses what it
//! does not know, with file, line, key and what was expected.

use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use toml::Spanned;
use toml::de::{DeInteger, DeString, DeTable, DeValue};

/// The largest file that is read; bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Options that cannot be in the file.
const LINE_ONLY: [&str; 1] = ["config"];

/// The text of a configuration file.
pub struct File {
    path: PathBuf,
    text: String,
}

/// A key, as arguments.
#[derive(Debug)]
pub struct Setting {
    /// Of the option, in its command.
    pub id: String,
    /// File, line and key, for what is found to be wrong later.
    pub place: String,
    /// `--option=value`, once for each value; `--option` for true, nothing for false.
    pub args: Vec<OsString>,
}

/// A key and its value where they stand in the file.
pub type Entry<'t, 'f> = (&'t Spanned<DeString<'f>>, &'t Spanned<DeValue<'f>>);

impl File {
    /// Reads the file. The error names it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut text = String::new();
        let read = |file: std::fs::File| file.take(MAX_BYTES + 1).read_to_string(&mut text);
        std::fs::File::open(path).and_then(read).map_err(|error| format!("{}: {error}", path.display()))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(format!("{}: expected at most {MAX_BYTES} bytes", path.display()));
        }
        Ok(Self { path: path.to_owned(), text })
    }

    /// As errors name it.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The whole of it. The error names file and line.
    pub fn parse(&self) -> Result<DeTable<'_>, String> {
        let document = DeTable::parse(&self.text).map_err(|error| {
            let message = error.message().replace('\n', ", ");
            format!("{}: {message}", self.line(error.span().unwrap_or_default()))
        })?;
        Ok(document.into_inner())
    }

    /// What errors about a key begin with: `FILE:LINE: KEY`.
    pub fn place(&self, span: Range<usize>, key: &str) -> String {
        format!("{}: {key}", self.line(span))
    }

    fn line(&self, span: Range<usize>) -> String {
        let before = self.text.bytes().take(span.start);
        format!("{}:{}", self.path.display(), before.filter(|b| *b == b'\n').count() + 1)
    }

    /// The tables in a table, such as all `[pool.NAME]`: their names and entries. None is fine.
    pub fn tables<'t, 'f>(
        &self,
        document: &'t DeTable<'f>,
        key: &str,
    ) -> Result<Vec<(&'t Spanned<DeString<'f>>, &'t DeTable<'f>)>, String> {
        let Some(value) = document.get(key) else { return Ok(Vec::new()) };
        let inner = self.table(key, value, &format!("tables such as [{key}.\"NAME\"]"))?;
        let inner = inner.iter().map(|(name, value)| {
            let table = self.table(&format!("{key}.\"{}\"", name.get_ref()), value, "a table")?;
            Ok((name, table))
        });
        inner.collect()
    }

    /// The table that a value must be.
    pub fn table<'t, 'f>(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'f>>,
        expected: &str,
    ) -> Result<&'t DeTable<'f>, String> {
        let wrong = || format!("{}: expected {expected}, not {}", self.place(value.span(), key), kind(value));
        value.get_ref().as_table().ok_or_else(wrong)
    }

    /// The arguments of a command that these keys stand for. Each has been parsed by the command: it is right taken
    /// by itself.
    pub fn settings<'t, 'f: 't>(
        &self,
        entries: impl IntoIterator<Item = Entry<'t, 'f>>,
        command: &Command,
    ) -> Result<Vec<Setting>, String> {
        entries.into_iter().map(|entry| self.setting(entry, command)).collect()
    }

    /// These keys as the type that a command parses its arguments into, and for later errors, the keys.
    pub fn structure<'t, 'f: 't, T: CommandFactory + FromArgMatches>(
        &self,
        entries: impl IntoIterator<Item = Entry<'t, 'f>>,
    ) -> Result<(T, Vec<Setting>), String> {
        let command = T::command();
        let settings = self.settings(entries, &command)?;
        let args = settings.iter().flat_map(|setting| setting.args.clone());
        let args = [OsString::new()].into_iter().chain(args);
        let parsed = command.try_get_matches_from(args).and_then(|matches| T::from_arg_matches(&matches));
        Ok((parsed.map_err(|error| format!("{}: {error}", self.path.display()))?, settings))
    }

    fn setting(&self, (key, value): Entry<'_, '_>, command: &Command) -> Result<Setting, String> {
        let name: &str = key.get_ref();
        let place = self.place(key.span(), name);
        let Some(arg) = options(command).find(|arg| key_of(arg).as_deref() == Some(name)) else {
            return Err(format!("{place}: there is no such key, expected {}", known(command, name)));
        };
        let option = format!("--{}", arg.get_long().unwrap_or_default());
        let values = match value.get_ref() {
            DeValue::Array(values) if is_list(arg) && !values.is_empty() => values.iter().collect(),
            _ => vec![value],
        };
        let mut args: Vec<OsString> = Vec::new();
        for value in values {
            match (value.get_ref(), Shape::of(arg)) {
                (DeValue::Boolean(true), Shape::Flag) => args.push(option.clone().into()),
                (DeValue::Boolean(false), Shape::Flag) => {}
                (DeValue::String(text), Shape::Text | Shape::TextOrInteger) => {
                    args.push(format!("{option}={text}").into());
                }
                (DeValue::Integer(number), Shape::Integer | Shape::TextOrInteger) => {
                    args.push(format!("{option}={}", decimal(number)).into());
                }
                (_, shape) => {
                    let place = self.place(value.span(), name);
                    return Err(format!("{place}: expected {}, not {}", shape.expected(arg), kind(value)));
                }
            }
        }
        // Each by itself, so that an error is of this one.
        for arg in &args {
            if let Err(error) = command.clone().try_get_matches_from([OsString::new(), arg.clone()]) {
                let value = self.text.get(value.span()).unwrap_or_default();
                return Err(format!("{place} = {value}: {}", what_is_wrong(&error)));
            }
        }
        Ok(Setting { id: arg.get_id().to_string(), place, args })
    }
}

/// The keys that a command's options make.
pub fn keys(command: &Command) -> impl Iterator<Item = String> {
    options(command).filter_map(key_of)
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let is_action = matches!(arg.get_action(), ArgAction::Help | ArgAction::Version);
        !is_action && arg.get_long().is_some() && !LINE_ONLY.contains(&arg.get_id().as_str())
    })
}

fn key_of(arg: &Arg) -> Option<String> {
    arg.get_long().map(|long| long.replace('-', "_"))
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// However the number is written in the file; as it is there if it is larger than any.
pub fn decimal(number: &DeInteger<'_>) -> String {
    let value = i128::from_str_radix(number.as_str(), number.radix());
    value.map_or_else(|_| number.to_string(), |value| value.to_string())
}

/// A value's type, for errors.
pub fn kind(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::Array(values) if values.is_empty() => "an empty array".to_owned(),
        DeValue::Integer(_) | DeValue::Array(_) => format!("an {}", value.get_ref().type_str()),
        other => format!("a {}", other.type_str()),
    }
}

/// What the value of an option may be in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// true or false.
    Flag,
    Integer,
    Text,
    /// What has a unit, or both a name and a number.
    TextOrInteger,
}

impl Shape {
    fn of(arg: &Arg) -> Self {
        if !arg.get_action().takes_values() {
            return Self::Flag;
        }
        let value = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        if ["SIZE", "TIME", "USER", "GROUP"].contains(&value) {
            return Self::TextOrInteger;
        }
        let parsed = arg.get_value_parser().type_id();
        let is_number = [
            TypeId::of::<u8>(),
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i32>(),
        ];
        if is_number.iter().any(|number| parsed == *number) { Self::Integer } else { Self::Text }
    }

    fn expected(self, arg: &Arg) -> &'static str {
        match self {
            Self::Flag => "true or false",
            Self::Integer => "an integer",
            Self::TextOrInteger => "a string or an integer",
            Self::Text if is_list(arg) => "a string or an array of strings",
            Self::Text => "a string",
        }
    }
}

/// What a key could have been that is not one.
fn known(command: &Command, key: &str) -> String {
    let all: Vec<String> = keys(command).collect();
    if all.len() <= 12 {
        return format!("one of {}", all.join(", "));
    }
    let option = format!("--{}", key.replace('_', "-"));
    let similar = command.clone().try_get_matches_from([String::new(), option]).err().and_then(|error| {
        match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(option)) => Some(option.trim_start_matches('-').replace('-', "_")),
            _ => None,
        }
    });
    let similar = similar.filter(|similar| all.contains(similar));
    similar
        .map_or("one of wshd.conf(5)".to_owned(), |similar| format!("one of wshd.conf(5), such as {similar}"))
}

fn what_is_wrong(error: &clap::Error) -> String {
    if let Some(source) = error.source() {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("expected one of {}", values.join(", "))
        }
        _ => "expected a value".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;
    use crate::cli::{self, Command, Error};
    use crate::config::{Config, Listen};

    /// The configuration of a file with this text, called `w.conf` in errors, and a command line.
    pub fn config(text: &str, args: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.conf");
        std::fs::write(&path, text).unwrap();
        let line = ["wshd", "-w", "/h", "-c", path.to_str().unwrap()];
        match cli::parse(line.iter().chain(args).map(OsString::from), None) {
            Ok(Command::Serve(config)) => Ok(*config),
            Ok(other) => panic!("{other:?}"),
            Err(Error::Config(why)) => Err(why.replace(&format!("{}/", dir.path().display()), "")),
            Err(Error::Usage(why)) => panic!("{why}"),
        }
    }

    /// Holds the whole message of an error against what is expected.
    #[track_caller]
    pub fn fails(text: &str, expected: &str) {
        assert_eq!(config(text, &[]).err().as_deref(), Some(expected));
    }

    #[test]
    fn every_type_of_value() {
        let text = r#"
            server_host = ["::1", "unix:/run/s"]
            port = 1_0
            log_file = "l"
            log_level = "warn"
            max_message = 0x10_000
            max_frame = "2k"
            idle_timeout = "2m"
            ping_interval = 0
            max_pings = 7
            deflate_level = 9
            no_deflate = true
            strict_handlers = false
        "#;
        let config = config(text, &[]).unwrap();
        let hosts: Vec<String> = config.listen.iter().map(Listen::to_string).collect();
        assert_eq!(hosts, ["[::1]:10", "unix:/run/s"]);
        let log_file = std::path::absolute("l").unwrap();
        assert_eq!(config.log.destination, crate::log::Destination::File(log_file));
        assert_eq!(config.log.level, crate::log::Level::Warn);
        assert_eq!((config.limits.message, config.limits.frame), (65_536, 2_048));
        assert_eq!((config.limits.idle.as_secs(), config.limits.ping_interval.as_secs()), (120, 0));
        assert_eq!((config.limits.pings_per_second, config.deflate.level), (7, 9));
        assert!(!config.deflate.enabled && !config.strict_handlers);
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let bare = cli::parse(["wshd", "-w", "/h"].map(OsString::from), None);
        let Ok(Command::Serve(bare)) = bare else { panic!("{bare:?}") };
        let read = config("# nothing\n", &[]).unwrap();
        assert!(read.file.as_ref().is_some_and(|file| file.ends_with("w.conf")));
        assert_eq!(format!("{:?}", Config { file: None, ..read }), format!("{bare:?}"));
    }

    #[test]
    fn the_command_line_wins() {
        let text = "server_host = [\"::1\", \"::2\"]\nport = 1\nmax_message = \"1K\"\nsend_high = 100\n";
        let line = ["-p", "2", "--server_host=::3", "--max-message", "16M"];
        let config = config(text, &line).unwrap();
        assert_eq!(config.listen, [Listen::Tcp { host: "::3".into(), port: 2 }]);
        assert_eq!(config.limits.message, 16 << 20, "also with a value that is the default");
        assert_eq!((config.sending.high, config.sending.low), (100, 25));
    }

    #[test]
    fn a_key_that_does_not_exist() {
        fails(
            "\nport = 1\nprot = 1\n",
            "w.conf:3: prot: there is no such key, expected one of wshd.conf(5), such as port",
        );
        fails("max-message = 1", "w.conf:1: max-message: there is no such key, expected one of wshd.conf(5)");
        for line_only in ["config", "version", "help", "check", "xyzzy"] {
            let expected =
                format!("w.conf:1: {line_only}: there is no such key, expected one of wshd.conf(5)");
            let error = config(&format!("{line_only} = 'x'"), &[]).unwrap_err();
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_value_of_a_wrong_type() {
        for (line, expected) in [
            ("port = '80'", "port: expected an integer, not a string"),
            ("workers = 1.5", "workers: expected an integer, not a float"),
            ("log_file = 1", "log_file: expected a string, not an integer"),
            ("max_head = true", "max_head: expected a string or an integer, not a boolean"),
            ("no_deflate = 1", "no_deflate: expected true or false, not an integer"),
            ("server_host = []", "server_host: expected a string or an array of strings, not an empty array"),
            ("scan_dir = ['a']", "scan_dir: expected a string, not an array"),
            ("idle_timeout = 10:00:00", "idle_timeout: expected a string or an integer, not a datetime"),
            ("port.x = 1", "port: expected an integer, not a table"),
        ] {
            fails(&format!("# one\n\n{line}\n"), &format!("w.conf:3: {expected}"));
        }
        fails(
            "server_host = [\n  'a',\n  2,\n]\n",
            "w.conf:3: server_host: expected a string or an array of strings, not an integer",
        );
    }

    #[test]
    fn a_value_that_is_wrong() {
        for (line, expected) in [
            ("max_message = '16Q'", "expected a size such as 65536, 64K, 16M or 1G"),
            ("idle_timeout = 30", "expected a time with its unit, such as 500ms, 30s or 2m"),
            ("pong_timeout = 0", "expected a time above 0: this limit can not be off"),
            ("port = 65536", "65536 is not in 0..=65535"),
            ("workers = 0", "0 is not in 1..=1024"),
            ("log_level = 'loud'", "expected one of fine, debug, info, warn, error, critical"),
            ("log_file = ''", "expected a value"),
            (
                "server_host = ['a:80']",
                "expected an address, a host name (the port is --port), or unix:/PATH",
            ),
        ] {
            fails(&format!("{line}\n"), &format!("w.conf:1: {line}: {expected}"));
        }
    }

    #[test]
    fn values_that_do_not_go_together() {
        fails("document_root = '/nowhere'", "w.conf:1: document_root /nowhere: expected a directory");
        let error = config("\nsend_low = 2000", &["--send-high", "1K"]).unwrap_err();
        assert_eq!(error, "w.conf:2: send_low 2000 is above --send-high 1024: expected at most that");
    }

    #[test]
    fn what_is_no_toml() {
        for (text, line) in
            [("port = 1\nport = 2\n", 2), ("a = \n", 1), ("\n\n[handler\n", 3), ("= 1", 1), ("x\ny\n", 1)]
        {
            let error = config(text, &[]).unwrap_err();
            assert!(error.starts_with(&format!("w.conf:{line}: ")) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn files_that_can_not_be_read() {
        let error = |path: &str| File::read(Path::new(path)).err().unwrap();
        assert!(error("/nowhere").starts_with("/nowhere: No such file"));
        assert!(error("/").starts_with("/: Is a directory"));
        assert!(error("/dev/zero").contains("expected at most 1048576 bytes"), "{}", error("/dev/zero"));
    }
}
