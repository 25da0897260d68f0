//! Parses configuration files: TOML, with the location of each key. The table says which keys there are; an error has
//! file, line, key and what was expected.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeInteger, DeString, DeTable, DeValue};

use super::given::GivenValue;
use super::{Error, Kind, Location, Scope, Setting, Values, find, outside, similar};

/// The text of a configuration file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    text: String,
}

/// A key and its value, with their spans in the file.
pub type Entry<'t, 'f> = (&'t Spanned<DeString<'f>>, &'t Spanned<DeValue<'f>>);

impl File {
    /// Reads the file. The error names it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::Config(format!("{}: {why}", path.display()));
        Ok(Self { path: path.to_owned(), text: outside::read_text(path).map_err(wrong)? })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses it.
    pub fn parse(&self) -> Result<DeTable<'_>, Error> {
        let document = DeTable::parse(&self.text).map_err(|error| {
            let span = error.span().unwrap_or_default();
            let message = error.message().replace('\n', ", ");
            // The message of the parser lacks the key.
            let key = self.text.get(span.clone()).filter(|_| message.starts_with("duplicate key"));
            let key = key.map_or(String::new(), |key| format!(" {key}"));
            Error::Config(format!("{}: {message}{key}", self.line(span)))
        })?;
        Ok(document.into_inner())
    }

    /// The location of a key.
    pub fn location(&self, span: Range<usize>, key: &str) -> Location {
        Location::File(format!("{}: {key}", self.line(span)))
    }

    fn line(&self, span: Range<usize>) -> String {
        let before = self.text.bytes().take(span.start);
        format!("{}:{}", self.path.display(), before.filter(|b| *b == b'\n').count() + 1)
    }

    /// The tables in a table, such as all `[pool.NAME]`: names and entries.
    pub fn tables<'t, 'f>(
        &self,
        document: &'t DeTable<'f>,
        key: &str,
    ) -> Result<Vec<(&'t Spanned<DeString<'f>>, &'t DeTable<'f>)>, Error> {
        let Some(value) = document.get(key) else { return Ok(Vec::new()) };
        let inner = self.table(key, value, &format!("tables such as [{key}.\"NAME\"]"))?;
        let inner = inner.iter().map(|(name, value)| {
            let table = self.table(&format!("{key}.\"{}\"", name.get_ref()), value, "a table")?;
            Ok((name, table))
        });
        inner.collect()
    }

    /// The value, which must be a table.
    pub fn table<'t, 'f>(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'f>>,
        expected: &str,
    ) -> Result<&'t DeTable<'f>, Error> {
        let wrong =
            || self.location(value.span(), key).wrong(format!("expected {expected}, not {}", kind(value)));
        value.get_ref().as_table().ok_or_else(wrong)
    }

    /// The values of these keys, which must be settings of this scope. Checks their types, not their texts.
    pub fn values<'t, 'f: 't>(
        &self,
        entries: impl IntoIterator<Item = Entry<'t, 'f>>,
        scope: Scope,
    ) -> Result<Values, Error> {
        let mut values = Values::default();
        for (key, value) in entries {
            let name: &str = key.get_ref();
            let Some(setting) = find(scope, name) else {
                if scope == Scope::Server && matches!(value.get_ref(), DeValue::Table(_)) {
                    let why = "no such table, expected [handler.\"/RESOURCE\"], [pool.NAME] or [[listener]]";
                    return Err(self.location(key.span(), name).wrong(why));
                }
                let why = format!("no such key, {}", similar(scope, name));
                return Err(self.location(key.span(), name).wrong(why));
            };
            let texts = texts(setting, value).map_err(|expected| {
                // In an array, the element of a wrong type.
                let elements = value.get_ref().as_array().into_iter().flat_map(|array| array.iter());
                let element = elements.filter(|_| matches!(setting.kind, Kind::List(..)));
                let wrong = element.into_iter().find(|element| element.get_ref().as_str().is_none());
                let wrong = wrong.unwrap_or(value);
                self.location(wrong.span(), name).wrong(format!("expected {expected}, not {}", kind(wrong)))
            })?;
            let written = self.text.get(value.span()).unwrap_or_default().to_owned();
            values.insert(
                setting.name,
                GivenValue { texts, written, location: self.location(key.span(), name) },
            );
        }
        Ok(values)
    }
}

/// The text of a value, or of each element of a list; the error says what was expected.
fn texts(setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, &'static str> {
    let text = match (&setting.kind, value.get_ref()) {
        (Kind::Flag(_), DeValue::Boolean(is_on)) => is_on.to_string(),
        (
            Kind::Count(..) | Kind::Size(..) | Kind::Time(..) | Kind::NameOrNumber(..),
            DeValue::Integer(number),
        ) => decimal(number),
        // So that 0 is a time here, too.
        (Kind::Text("TIME", _), DeValue::Integer(number)) => decimal(number),
        (Kind::Flag(_), _) => return Err("true or false"),
        (Kind::Count(..), _) => return Err("an integer"),
        (Kind::List(..), DeValue::Array(values)) if !values.is_empty() => {
            let text = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(str::to_owned);
            let texts = values.iter().map(text).collect::<Option<Vec<_>>>();
            return texts.ok_or("strings");
        }
        (_, DeValue::String(text)) => text.to_string(),
        (Kind::List(..), _) => return Err("a string or an array of strings"),
        (Kind::Size(..) | Kind::Time(..) | Kind::NameOrNumber(..) | Kind::Text("TIME", _), _) => {
            return Err("a string or an integer");
        }
        _ => return Err("a string"),
    };
    Ok(vec![text])
}

/// A number in decimal notation; unchanged if it is too large.
pub fn decimal(number: &DeInteger<'_>) -> String {
    let value = i128::from_str_radix(number.as_str(), number.radix());
    value.map_or_else(|_| number.to_string(), |value| value.to_string())
}

/// The type of a value, for errors.
pub fn kind(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::Array(values) if values.is_empty() => "an empty array".to_owned(),
        DeValue::Integer(_) | DeValue::Array(_) => format!("an {}", value.get_ref().type_str()),
        other => format!("a {}", other.type_str()),
    }
}
