//! The configuration of a host: the settings that it needs, the author's options, then the defaults.

use std::path::Path;

use super::Served;
use crate::config::Config;
use crate::settings::{Values, resolve};

/// What the host sets itself.
const OWN: [&str; 4] = ["server_host", "websock_handlers", "log_file", "log_target"];

/// Reads the configuration file of a server.
pub fn read(file: &Path) -> Result<Config, String> {
    let mut values = Values::default();
    // The handler directory is not used, but a configuration needs one.
    values.set("websock_handlers", "/".to_owned());
    resolve::load(values, Some(file), None).map(|(config, _)| config).map_err(|error| error.to_string())
}

/// The configuration for a handler in this directory.
pub fn config(dir: &Path, handlers: &Path, served: &Served<'_>) -> Result<Config, String> {
    let mut values = Values::default();
    for option in served.options {
        values.add_option(option).map_err(|error| error.to_string())?;
    }
    if let Some(name) = OWN.into_iter().find(|name| values.get(name).is_some()) {
        return Err(values.wrong(name, "it cannot be set here").to_string());
    }
    let path = |path: &Path| path.display().to_string();
    values.set("server_host", format!("unix:{}", path(&dir.join("socket"))));
    values.set("websock_handlers", path(handlers));
    values.set("log_file", path(&dir.join("log")));
    // A breakpoint may stop the worker for any time.
    let debugged = [("handler_timeout", "0"), ("worker_timeout", "0")];
    let defaults = [("workers", "1"), ("strict_abi", "true"), ("quarantine_deaths", "0")];
    for (name, value) in debugged.into_iter().filter(|_| served.is_debugged).chain(defaults) {
        values.set(name, value.to_owned());
    }
    let (mut config, _) = resolve::load(values, None, None).map_err(|error| error.to_string())?;
    let resource = format!("/{}", served.name);
    if let Some(server) = served.config {
        let settings = server.settings.get(&resource).cloned();
        config.settings.extend(settings.map(|settings| (resource.clone(), settings)));
        let handler = server.handler_of.get(&resource).cloned();
        config.handler_of.extend(handler.map(|handler| (resource, handler)));
    }
    Ok(config)
}
