//! The configuration of a host: the author's options, then the settings that the host needs, then the defaults.

use std::path::Path;

use super::Served;
use crate::config::Config;
use crate::settings::{Values, resolve};

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
    let path = |path: &Path| path.display().to_string();
    if served.is_debugged {
        // A breakpoint may stop the worker for any time.
        ["handler_timeout", "worker_timeout"].into_iter().for_each(|name| values.set(name, "0".to_owned()));
    }
    for (name, value) in [
        ("workers", "1".to_owned()),
        ("server_host", format!("unix:{}", path(&dir.join("socket")))),
        ("websock_handlers", path(handlers)),
        ("log_file", path(&dir.join("log"))),
        ("strict_abi", "true".to_owned()),
        ("quarantine_deaths", "0".to_owned()),
    ] {
        values.set(name, value);
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
