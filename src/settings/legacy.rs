//! Compatibility with mod_pywebsocket: options that are ignored, with advice what to use instead, and its configuration
//! file, whose entries are read like options.

use std::path::Path;

use super::file::File;
use super::given::GivenValue;
use super::{Error, Kind, Location, Scope, Values, find, similar};

/// An option that is ignored.
#[derive(Debug)]
pub struct Ignored {
    /// Its name in the file.
    pub name: &'static str,
    /// Whether it has a value.
    pub takes_value: bool,
    /// What to do.
    advice: &'static str,
}

/// All ignored options.
pub const IGNORED: &[Ignored] = &[
    ignored("tls_module", true, "there is one TLS library; remove it"),
    ignored("strict", false, "frames and handshakes are always checked strictly; remove it"),
    ignored("allow_draft75", false, "RFC 6455 is the only protocol; such clients must be updated"),
    ignored("handler_encoding", true, "handlers are shared objects, not text; remove it"),
    ignored("thread_monitor_interval_in_sec", true, "use wshd ctl status, or --metrics"),
    ignored("deflate_log_level", true, "there is one level; use --log-level"),
];

const fn ignored(name: &'static str, takes_value: bool, advice: &'static str) -> Ignored {
    Ignored { name, takes_value, advice }
}

impl Ignored {
    /// The long option, without its dashes.
    pub fn option(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The warning about it; `location` is where it was given.
    pub fn warning(&self, location: &str) -> String {
        format!("{location} is ignored: {}", self.advice)
    }
}

/// The section of its configuration file.
const SECTION: &str = "[pywebsocket]";

/// A configuration file of mod_pywebsocket.
#[derive(Debug, Default)]
pub struct Legacy {
    /// Its values.
    pub values: Values,
    /// Warnings about ignored entries.
    pub warnings: Vec<String>,
}

impl Legacy {
    /// Reads such a file; `None`: it has another format.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let file = File::read(path)?;
        let is_blank = |line: &&str| line.is_empty() || line.starts_with(['#', ';']);
        let first = file.text().lines().map(str::trim).find(|line| !is_blank(line));
        if first != Some(SECTION) {
            return Ok(None);
        }
        let mut legacy = Self::default();
        for (number, line) in (1..).zip(file.text().lines()).filter(|(_, line)| !is_blank(&line.trim())) {
            if line.trim() != SECTION {
                legacy.add(&format!("{}:{number}", path.display()), line)?;
            }
        }
        Ok(Some(legacy))
    }

    fn add(&mut self, at: &str, line: &str) -> Result<(), Error> {
        let wrong = |why: &str| Error::Config(format!("{at}: {why}"));
        if line.starts_with(char::is_whitespace) || line.starts_with('[') {
            return Err(wrong("expected one section, [pywebsocket], and a line for each entry"));
        }
        let (name, value) = line.split_once(['=', ':']).ok_or_else(|| wrong("expected NAME = VALUE"))?;
        let name = name.trim().to_lowercase().replace('-', "_");
        let value = value.trim().replace("%%", "%");
        let location = Location::File(format!("{at}: {name}"));
        if let Some(ignored) = IGNORED.iter().find(|ignored| ignored.name == name) {
            self.warnings.push(ignored.warning(&location.to_string()));
            return Ok(());
        }
        let Some(setting) = find(Scope::Server, &name) else {
            return Err(location.wrong(format!("no such key, {}", similar(Scope::Server, &name))));
        };
        let text = match (&setting.kind, value.to_lowercase().as_str()) {
            (Kind::Flag(_), "false" | "no" | "off" | "0") => {
                let why = "mod_pywebsocket takes any value for true: remove the line, or write true";
                return Err(location.wrong(why));
            }
            (Kind::Flag(_), _) => "true".to_owned(),
            _ => value.clone(),
        };
        if self.values.get(setting.name).is_some() {
            return Err(location.wrong("it is already given"));
        }
        self.values.insert(setting.name, GivenValue { texts: vec![text], written: value, location });
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::settings::tests::config;

    #[test]
    fn its_configuration_file_is_read() {
        let text = "# comment\n\n[pywebsocket]\nPort = 81\nlog-level: debug\nallow_handlers_outside_root_dir=True\n\
                    ; more\nstrict = yes\ntls_module = ssl\nserver_host=::1\nauth_realm = 100%%\n\
                    basic_auth_credential = a:b:c\n";
        let found = config(text, &["port=82"]).unwrap();
        assert_eq!(found.listen[0].to_string(), "[::1]:82", "the command line overrides it");
        assert!(found.allow_outside);
        assert_eq!(found.authentication.all.as_ref().map(|policy| policy.realm.as_str()), Some("100%"));
        let ignored: Vec<&str> =
            found.ignored.iter().filter_map(|text| text.rsplit_once('/')).map(|(_, text)| text).collect();
        assert_eq!(
            ignored,
            [
                "w.conf:8: strict is ignored: frames and handshakes are always checked strictly; remove it",
                "w.conf:9: tls_module is ignored: there is one TLS library; remove it",
            ]
        );
        for (text, expected) in [
            ("[pywebsocket]\nprot = 1\n", "w.conf:2: prot: no such key, did you mean port?"),
            ("[pywebsocket]\nport\n", "w.conf:2: expected NAME = VALUE"),
            ("[pywebsocket]\nport=1\nport=2\n", "w.conf:3: port: it is already given"),
            (
                "[pywebsocket]\n[other]\n",
                "w.conf:2: expected one section, [pywebsocket], and a line for each entry",
            ),
            (
                "[pywebsocket]\nstrict_handlers = False\n",
                "w.conf:2: strict_handlers: mod_pywebsocket takes any value for true: remove the line, or write true",
            ),
            ("[pywebsocket]\nport = x\n", "w.conf:2: port = x: expected an integer from 0 to 65535"),
        ] {
            assert_eq!(config(text, &[]).unwrap_err(), expected);
        }
    }
}
