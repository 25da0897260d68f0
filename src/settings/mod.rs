//! The one table of settings. It feeds the command line, `-o`, the configuration file, `--help`, `wshd config` and the
//! generated parts of wshd(8) and wshd.conf(5).
//!
//! To add a setting, add one entry to a file of [`table`]. Its `kind` holds its type, its range and the function that
//! assigns it to a field of [`Config`](crate::config::Config) (or of
//! [`HandlerSettings`](crate::config::HandlerSettings) or `Pool`); if it depends on others, to a field of [`Draft`],
//! which [`resolve`] turns into a `Config`. Its `scopes` are the tables of the file that may have it; if they include
//! the server and the handler, the server's value is the default for handlers. With `Flag::No` it is a key of the file,
//! and `-o NAME=VALUE` on the command line. Then `UPDATE_MANUALS=1 cargo test --test manuals` writes it into the manual
//! pages.

pub mod account;
pub mod authentication;
pub mod bus;
pub mod draft;
pub mod effective;
pub mod file;
pub mod given;
mod include;
pub mod legacy;
mod listeners;
pub mod manual;
pub mod outside;
mod pools;
pub mod resolve;
pub mod table;
pub mod tls;
pub mod value;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use self::draft::Draft;
pub use self::given::{Error, Location, Values};

/// An entry of the table.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file; the option has `-` for `_`.
    pub name: &'static str,
    /// The tables that may have it; never empty.
    pub scopes: &'static [Scope],
    /// Type, range, and the function that assigns it.
    pub kind: Kind,
    /// Its value if it is not given.
    pub default: Default,
    /// How the command line spells it.
    pub flag: Flag,
    /// One sentence, without full stop.
    pub help: &'static str,
    /// Further text for the manual, in mdoc; may be empty.
    pub more: &'static str,
}

/// The tables of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The keys before the first table; the only ones that the command line can set.
    Server,
    /// `[handler."/RESOURCE"]`
    Handler,
    /// `[pool.NAME]`
    Pool,
    /// `[[listener]]`
    Listener,
}

/// How the command line spells a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// `-o NAME=VALUE` only.
    No,
    /// `--NAME`.
    Long,
    /// `--NAME` and a letter.
    Short(char),
}

/// A default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This value, as in the file.
    Is(&'static str),
    /// Nothing is assigned; the text says what that means.
    Unset(&'static str),
}

/// The type of a setting, and the function that assigns it. The string is the name of its value in help and manual.
#[derive(Debug)]
pub enum Kind {
    /// true or false.
    Flag(fn(&mut Draft, bool)),
    /// An integer.
    Count(&'static str, RangeInclusive<i64>, fn(&mut Draft, i64)),
    /// Bytes.
    Size(RangeInclusive<u64>, fn(&mut Draft, u64)),
    /// A time, with its unit.
    Time(Zero, fn(&mut Draft, Duration)),
    /// A file or directory.
    Path(&'static str, fn(&mut Draft, PathBuf)),
    /// One of these words; the function returns whether it knows the word.
    Choice(&'static str, &'static [&'static str], fn(&mut Draft, &str) -> bool),
    /// A text. The error says what was expected.
    Text(&'static str, fn(&mut Draft, &str) -> Result<(), String>),
    /// A text that is masked when the configuration is printed.
    Secret(&'static str, fn(&mut Draft, &str) -> Result<(), String>),
    /// A name or a number.
    NameOrNumber(&'static str, fn(&mut Draft, &str) -> Result<(), String>),
    /// Several texts.
    List(&'static str, fn(&mut Draft, &[String]) -> Result<(), String>),
}

/// Whether a time may be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// 0 disables the limit.
    Off,
    /// The limit cannot be disabled.
    Wrong,
}

impl Setting {
    /// The long option, without its dashes.
    pub fn option(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Whether it may stand in this table.
    pub fn is_in(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Assigns a value, which is not empty; the error says what was expected.
    pub fn assign(&self, texts: &[String], draft: &mut Draft) -> Result<(), String> {
        if let Kind::List(_, set) = self.kind {
            return set(draft, texts);
        }
        let [text] = texts else { return Err("expected one value".to_owned()) };
        match &self.kind {
            Kind::Flag(set) => match text.as_str() {
                "true" => set(draft, true),
                "false" => set(draft, false),
                _ => return Err("expected true or false".to_owned()),
            },
            Kind::Count(_, range, set) => set(draft, value::count(text, range)?),
            Kind::Size(range, set) => set(draft, value::size(text, range)?),
            Kind::Time(zero, set) => match value::time(text)? {
                Duration::ZERO if *zero == Zero::Wrong => {
                    return Err("expected a time above 0: this limit cannot be off".to_owned());
                }
                time => set(draft, time),
            },
            Kind::Path(..) if text.is_empty() => return Err("expected a path".to_owned()),
            Kind::Path(_, set) => set(draft, text.into()),
            Kind::Choice(_, words, set) => {
                if !set(draft, text) {
                    return Err(format!("expected one of {}", words.join(", ")));
                }
            }
            Kind::Text(_, set) | Kind::Secret(_, set) | Kind::NameOrNumber(_, set) => set(draft, text)?,
            Kind::List(..) => {}
        }
        Ok(())
    }

    /// Assigns the default, if there is one.
    pub fn assign_default(&self, draft: &mut Draft) -> Result<(), String> {
        match self.default {
            Default::Is(text) => self.assign(&[text.to_owned()], draft),
            Default::Unset(_) => Ok(()),
        }
    }
}

impl Kind {
    /// The name of its value in help and manual.
    pub fn value(&self) -> &'static str {
        match self {
            Kind::Flag(_) => "BOOLEAN",
            Kind::Size(..) => "SIZE",
            Kind::Time(..) => "TIME",
            Kind::Count(value, ..)
            | Kind::Path(value, _)
            | Kind::Choice(value, ..)
            | Kind::Text(value, _)
            | Kind::Secret(value, _)
            | Kind::NameOrNumber(value, _)
            | Kind::List(value, _) => value,
        }
    }
}

/// The setting of this name in this table.
pub fn find(scope: Scope, name: &str) -> Option<&'static Setting> {
    in_scope(scope).find(|setting| setting.name == name)
}

/// All settings of this table, in the order of the manual.
pub fn in_scope(scope: Scope) -> impl Iterator<Item = &'static Setting> {
    table::GROUPS.iter().flat_map(|group| group.settings).filter(move |setting| setting.is_in(scope))
}

/// Suggests a setting for an unknown name.
pub fn similar(scope: Scope, name: &str) -> String {
    let name = name.replace('-', "_");
    let known = in_scope(scope).map(|setting| (strsim::jaro_winkler(setting.name, &name), setting.name));
    match known.max_by(|one, other| one.0.total_cmp(&other.0)) {
        Some((likeness, known)) if likeness > 0.8 => format!("did you mean {known}?"),
        _ if in_scope(scope).count() <= 24 => {
            let all: Vec<&str> = in_scope(scope).map(|setting| setting.name).collect();
            format!("expected one of {}", all.join(", "))
        }
        _ => "wshd.conf(5) lists all".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
pub mod tests;
