//! Given values and their locations, with which every error about them begins.

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
    /// The exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Line(_) => Exit::Usage,
            Error::Config(_) => Exit::Config,
        }
    }
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `--option`, or `-o name`.
    Line(String),
    /// `FILE:LINE: key`.
    File(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Location::Line(text) | Location::File(text)) = self;
        f.write_str(text)
    }
}

impl Location {
    /// The error that the setting at this location is wrong.
    pub fn wrong(&self, why: impl fmt::Display) -> Error {
        self.error(format!("{self}: {why}"))
    }

    fn error(&self, text: String) -> Error {
        match self {
            Location::Line(_) => Error::Line(text),
            Location::File(_) => Error::Config(text),
        }
    }
}

impl GivenValue {
    /// A value of the command line.
    pub fn on_line(texts: Vec<String>, location: Location) -> Self {
        let quoted = |text: &String| match text.is_empty() || text.contains(char::is_whitespace) {
            true => format!("'{text}'"),
            false => text.clone(),
        };
        let written = texts.iter().map(quoted).collect::<Vec<_>>().join(" ");
        GivenValue { texts, written, location }
    }

    /// The error that this value is invalid.
    pub fn refused(&self, why: impl fmt::Display) -> Error {
        self.location.error(format!("{self}: {why}"))
    }
}

impl fmt::Display for GivenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GivenValue { location, written, .. } = self;
        match location {
            Location::Line(option) if option.starts_with("--") => write!(f, "{location} {written}"),
            Location::Line(_) => write!(f, "{location}={written}"),
            Location::File(_) => write!(f, "{location} = {written}"),
        }
    }
}

/// The values given in one table of the file, or on the command line.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<&'static str, GivenValue>);

/// A value that was given.
#[derive(Clone, Debug)]
pub struct GivenValue {
    /// Never empty; several for lists only.
    pub texts: Vec<String>,
    /// As it was written.
    pub written: String,
    /// Where it was given.
    pub location: Location,
}

impl Values {
    /// Adds a value; returns the previous one of this name.
    pub fn insert(&mut self, name: &'static str, given: GivenValue) -> Option<GivenValue> {
        self.0.insert(name, given)
    }

    /// Adds the values of another file. It is an error if a key is in both, except `include`.
    pub fn add(&mut self, others: Values) -> Result<(), Error> {
        for (name, given) in others.0 {
            if let Some(before) = self.0.get(name).filter(|_| name != super::include::KEY) {
                return Err(given.location.wrong(format!("it is already set at {}", before.location)));
            }
            self.0.insert(name, given);
        }
        Ok(())
    }

    /// Removes a value.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Adds a value of the command line. Lists are joined; giving another setting twice is an error.
    pub fn add_on_line(
        &mut self,
        setting: &'static Setting,
        text: &str,
        location: Location,
    ) -> Result<(), Error> {
        let mut texts = vec![text.to_owned()];
        if let Some(before) = self.get(setting.name) {
            if !matches!(setting.kind, Kind::List(..)) {
                return Err(location.wrong(format!("it is already given by {}", before.location)));
            }
            texts.splice(0..0, before.texts.iter().cloned());
        }
        self.insert(setting.name, GivenValue::on_line(texts, location));
        Ok(())
    }

    /// Adds the argument of `-o`: `NAME=VALUE`.
    pub fn add_option(&mut self, text: &str) -> Result<(), Error> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Error::Line(format!("-o {text}: expected NAME=VALUE, with a setting of wshd.conf(5)"))
        })?;
        let (name, value) = (name.trim(), value.trim());
        let setting = find(Scope::Server, name).ok_or_else(|| {
            let similar = similar(Scope::Server, name);
            Error::Line(format!("-o {name}: no such setting, {similar}"))
        })?;
        self.add_on_line(setting, value, Location::Line(format!("-o {name}")))
    }

    /// Sets a value, unless one is given.
    pub fn set(&mut self, name: &'static str, text: String) {
        let location = self.of(name);
        self.0.entry(name).or_insert_with(|| GivenValue::on_line(vec![text], location));
    }

    /// The value of this name.
    pub fn get(&self, name: &str) -> Option<&GivenValue> {
        self.0.get(name)
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &GivenValue)> {
        self.0.iter().map(|(name, given)| (*name, given))
    }

    /// These values, and those of `others` whose names they lack.
    pub fn over(mut self, others: Values) -> Values {
        for (name, given) in others.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    /// Where this setting was given; if it was not, its option.
    pub fn of(&self, name: &str) -> Location {
        let given = self.0.get(name).map(|given| given.location.clone());
        given.unwrap_or_else(|| Location::Line(format!("--{}", name.replace('_', "-"))))
    }

    /// The error that a setting conflicts with others.
    pub fn wrong(&self, name: &str, why: impl fmt::Display) -> Error {
        self.of(name).wrong(why)
    }

    /// The error that the file or other object named by a setting is missing or unusable.
    pub fn unusable(&self, name: &str, why: impl fmt::Display) -> Error {
        match self.0.get(name) {
            Some(given) => Error::Config(format!("{given}: {why}")),
            None => Error::Config(format!("{}: {why}", self.of(name))),
        }
    }
}
