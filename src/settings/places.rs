//! Where a value was given, which every error about it begins with.

use std::collections::BTreeMap;
use std::fmt;

use super::{Kind, Scope, Setting, find, similar};
use crate::exit::Exit;

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Line(String),
    /// The configuration file is wrong, or something that is named does not exist.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// The status that the program ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Line(_) => Exit::Usage,
            Error::Config(_) => Exit::Config,
        }
    }
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `--option`, or `-o name`.
    Line(String),
    /// `FILE:LINE: key`.
    File(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Place::Line(text) | Place::File(text)) = self;
        f.write_str(text)
    }
}

impl Place {
    /// The error that what is written here is wrong.
    pub fn wrong(&self, why: impl fmt::Display) -> Error {
        match self {
            Place::Line(_) => Error::Line(format!("{self}: {why}")),
            Place::File(_) => Error::Config(format!("{self}: {why}")),
        }
    }
}

impl Given {
    /// A value of the command line.
    pub fn on_line(texts: Vec<String>, place: Place) -> Self {
        let quoted = |text: &String| match text.is_empty() || text.contains(char::is_whitespace) {
            true => format!("'{text}'"),
            false => text.clone(),
        };
        let written = texts.iter().map(quoted).collect::<Vec<_>>().join(" ");
        Given { texts, written, place }
    }

    /// The error that this value is wrong by itself.
    pub fn refused(&self, why: impl fmt::Display) -> Error {
        match self.place {
            Place::Line(_) => Error::Line(format!("{self}: {why}")),
            Place::File(_) => Error::Config(format!("{self}: {why}")),
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Given { place, written, .. } = self;
        match place {
            Place::Line(option) if option.starts_with("--") => write!(f, "{place} {written}"),
            Place::Line(_) => write!(f, "{place}={written}"),
            Place::File(_) => write!(f, "{place} = {written}"),
        }
    }
}

/// What was given in one table of the file, or on the command line: values as they were written.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<&'static str, Given>);

/// A value that was given.
#[derive(Clone, Debug)]
pub struct Given {
    /// Never empty; several for lists only.
    pub texts: Vec<String>,
    /// As it was written.
    pub written: String,
    /// Where.
    pub place: Place,
}

impl Places {
    /// Adds one; what was given before for the same name is returned.
    pub fn insert(&mut self, name: &'static str, given: Given) -> Option<Given> {
        self.0.insert(name, given)
    }

    /// Adds what another file says; no key may be in two.
    pub fn add(&mut self, others: Places) -> Result<(), Error> {
        for (name, given) in others.0 {
            if let Some(before) = self.0.get(name).filter(|_| name != super::include::KEY) {
                return Err(given.place.wrong(format!("it is already set at {}", before.place)));
            }
            self.0.insert(name, given);
        }
        Ok(())
    }

    /// Removes one.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Adds a value of the command line. Lists add up; whatever else is given twice is a mistake.
    pub fn add_on_line(&mut self, setting: &'static Setting, text: &str, place: Place) -> Result<(), Error> {
        let mut texts = vec![text.to_owned()];
        if let Some(before) = self.get(setting.name) {
            if !matches!(setting.kind, Kind::List(..)) {
                return Err(place.wrong(format!("it is already given by {}", before.place)));
            }
            texts.splice(0..0, before.texts.iter().cloned());
        }
        self.insert(setting.name, Given::on_line(texts, place));
        Ok(())
    }

    /// Adds what stands behind `-o`: `NAME=VALUE`.
    pub fn add_option(&mut self, text: &str) -> Result<(), Error> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Error::Line(format!("-o {text}: expected NAME=VALUE, with a setting of wshd.conf(5)"))
        })?;
        let (name, value) = (name.trim(), value.trim());
        let setting = find(Scope::Server, name).ok_or_else(|| {
            let similar = similar(Scope::Server, name);
            Error::Line(format!("-o {name}: no such setting, {similar}"))
        })?;
        self.add_on_line(setting, value, Place::Line(format!("-o {name}")))
    }

    /// Gives one a value if it has none.
    pub fn set(&mut self, name: &'static str, text: String) {
        let place = self.of(name);
        self.0.entry(name).or_insert_with(|| Given::on_line(vec![text], place));
    }

    /// What was given for this name.
    pub fn get(&self, name: &str) -> Option<&Given> {
        self.0.get(name)
    }

    /// All names with what was given.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Given)> {
        self.0.iter().map(|(name, given)| (*name, given))
    }

    /// These, and of `others` those that are not among them.
    pub fn over(mut self, others: Places) -> Places {
        for (name, given) in others.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    /// Where this was given; as an option where it was not.
    pub fn of(&self, name: &str) -> Place {
        let given = self.0.get(name).map(|given| given.place.clone());
        given.unwrap_or_else(|| Place::Line(format!("--{}", name.replace('_', "-"))))
    }

    /// The error that a value is wrong together with others.
    pub fn wrong(&self, name: &str, why: impl fmt::Display) -> Error {
        self.of(name).wrong(why)
    }

    /// The error that what a value names is not there, or cannot be used.
    pub fn unusable(&self, name: &str, why: impl fmt::Display) -> Error {
        match self.0.get(name) {
            Some(given) => Error::Config(format!("{given}: {why}")),
            None => Error::Config(format!("{}: {why}", self.of(name))),
        }
    }
}
