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
use toml::de::{DeString, DeTable, DeValue};

/// The largest file that is read; bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Options that can not be in the file.
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
        let command = T::command().no_binary_name(true);
        let settings = self.settings(entries, &command)?;
        let args = settings.iter().flat_map(|setting| setting.args.clone());
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
        let wrong = |value: &Spanned<DeValue<'_>>| {
            let place = self.place(value.span(), name);
            format!("{place}: expected {}, not {}", Shape::of(arg).expected(arg), kind(value))
        };
        let mut args = Vec::new();
        match value.get_ref() {
            DeValue::Boolean(is_on) if Shape::of(arg) == Shape::Flag => {
                args.extend(is_on.then(|| OsString::from(&option)));
            }
            DeValue::Array(values) if is_list(arg) && !values.is_empty() => {
                for value in values.iter() {
                    args.push(self.argument(arg, &option, value).ok_or_else(|| wrong(value))?);
                }
            }
            _ => args.push(self.argument(arg, &option, value).ok_or_else(|| wrong(value))?),
        }
        // Each by itself, so that an error is of this one.
        for arg in &args {
            let line = [OsString::new(), arg.clone()];
            let line = line.into_iter().skip(command.is_no_binary_name_set().into());
            if let Err(error) = command.clone().try_get_matches_from(line) {
                let value = self.text.get(value.span()).unwrap_or_default();
                return Err(format!("{place} = {value}: {}", what_is_wrong(&error)));
            }
        }
        Ok(Setting { id: arg.get_id().to_string(), place, args })
    }

    /// One value as an argument; None if it has the wrong type.
    fn argument(&self, arg: &Arg, option: &str, value: &Spanned<DeValue<'_>>) -> Option<OsString> {
        let text = match (value.get_ref(), Shape::of(arg)) {
            (DeValue::String(text), Shape::Text | Shape::TextOrInteger) => text.to_string(),
            (DeValue::Integer(_), Shape::Integer | Shape::TextOrInteger) => integer(value.get_ref())?,
            _ => return None,
        };
        Some(format!("{option}={text}").into())
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

/// A whole number in decimal, however it is written in the file.
pub fn integer(value: &DeValue<'_>) -> Option<String> {
    let number = value.as_integer()?;
    i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
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
    similar.map_or("one of wshd.conf(5)".to_owned(), |similar| format!("one of wshd.conf(5), such as {similar}"))
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
