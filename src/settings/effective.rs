//! Prints the configuration in force as a configuration file: all settings of the server, and the tables.

use super::given::GivenValue;
use super::include::KEY as INCLUDE;
use super::listeners::HOSTS;
use super::{Default, Kind, Scope, Setting, Values, table};

/// Replaces secrets.
const MASKED: &str = "\"***\"";

/// The values of a configuration.
#[derive(Clone, Debug, std::default::Default)]
pub struct Effective {
    /// Given values of the server, and the defaults that depend on the machine.
    pub server: Values,
    /// The tables: heading, scope and values.
    pub tables: Vec<(String, Scope, Values)>,
    /// The handlers' own settings, by resource.
    pub own: Vec<(String, Vec<(String, String)>)>,
}

impl Effective {
    /// The configuration as TOML. Unless `with_secrets`, passwords and handlers' own settings are masked.
    pub fn to_toml(&self, with_secrets: bool) -> String {
        let mut text = String::new();
        let has_listeners = self.tables.iter().any(|(_, scope, _)| *scope == Scope::Listener);
        for group in table::GROUPS {
            let settings: Vec<_> = group
                .settings
                .iter()
                .filter(|setting| setting.is_in(Scope::Server) && setting.name != INCLUDE)
                .collect();
            if !settings.is_empty() {
                text += &format!("{}# {}\n", if text.is_empty() { "" } else { "\n" }, group.title);
            }
            for setting in settings {
                text += &match (self.server.get(setting.name), setting.default) {
                    (Some(given), _) => line(setting, given, with_secrets),
                    (None, _) if setting.name == HOSTS && has_listeners => {
                        format!("# {HOSTS}: none, as there are listeners\n")
                    }
                    (None, Default::Is(text)) => {
                        format!("{} = {}\n", setting.name, value(setting, &[text.to_owned()]))
                    }
                    (None, Default::Unset(meaning)) => format!("# {}: {meaning}\n", setting.name),
                };
            }
        }
        for (heading, scope, given) in &self.tables {
            text += &format!("\n{heading}\n");
            for setting in super::in_scope(*scope) {
                text += &given
                    .get(setting.name)
                    .map_or(String::new(), |given| line(setting, given, with_secrets));
            }
        }
        for (resource, settings) in self.own.iter().filter(|(_, settings)| !settings.is_empty()) {
            text += &format!("\n[handler.{}.settings]\n", string(resource));
            for (key, own) in settings {
                let own = if with_secrets { string(own) } else { MASKED.to_owned() };
                text += &format!("{} = {own}\n", string(key));
            }
        }
        text
    }
}

fn line(setting: &Setting, given: &GivenValue, with_secrets: bool) -> String {
    let value = match setting.kind {
        Kind::Secret(..) if !with_secrets => MASKED.to_owned(),
        _ => value(setting, &given.texts),
    };
    format!("{} = {value}\n", setting.name)
}

fn value(setting: &Setting, texts: &[String]) -> String {
    match (&setting.kind, texts) {
        (Kind::Flag(_) | Kind::Count(..), [text]) => text.clone(),
        (Kind::List(..), texts) => {
            let texts: Vec<String> = texts.iter().map(|text| string(text)).collect();
            format!("[{}]", texts.join(", "))
        }
        (_, texts) => string(&texts.concat()),
    }
}

/// A basic string of TOML: escaped as in JSON, and DEL.
pub fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use crate::config::Config;
    use crate::settings::tests::config;

    #[test]
    fn the_printed_configuration_reads_back_as_the_same() {
        for text in [
            "",
            "[[listener]]\naddress = '127.0.0.1:1'\nqueue = 7\nconsole = false\n[[listener]]\naddress = 'unix:/s'\nmode = '0600'\n",
            "server_host = ['::1', 'unix:/a b']\n[[listener]]\naddress = '[::1]:2'\n",
            "[handler.'/a b']\nisolation = 'connection'\nresources = ['/c/*']\ndrain_timeout = 'never'\npool = 'p'\n\
             [pool.p]\nprocesses = 3\nseccomp = true\nmax_cpu = '1m'\n",
            "landlock = true\nlandlock_read = ['/etc', '/usr']\nallow_origin = 'https://a.example'\n",
        ] {
            let first = config(text, &[]).unwrap();
            let again = config(&first.effective, &[]).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(again.effective, first.effective, "{text}");
            let file = first.file.clone();
            assert_eq!(format!("{:?}", Config { file, ..again }), format!("{first:?}"), "{text}");
        }
    }
}
