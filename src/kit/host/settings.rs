//! The configuration of a host: what its author has given, over what the kit needs, over the defaults.

use std::path::Path;

use super::Served;
use crate::config::Config;
use crate::settings::{Places, resolve};

/// Of a handler in this directory.
pub fn config(dir: &Path, handlers: &Path, served: &Served<'_>) -> Result<Config, String> {
    let mut places = Places::default();
    for option in served.options {
        places.add_option(option).map_err(|error| error.to_string())?;
    }
    let path = |path: &Path| path.display().to_string();
    for (name, value) in [
        ("workers", "1".to_owned()),
        ("server_host", format!("unix:{}", path(&dir.join("socket")))),
        ("websock_handlers", path(handlers)),
        ("log_file", path(&dir.join("log"))),
        ("strict_abi", "true".to_owned()),
        ("quarantine_deaths", "0".to_owned()),
    ] {
        places.set(name, value);
    }
    let (mut config, _) = resolve::load(places, None, None).map_err(|error| error.to_string())?;
    config.settings.insert(format!("/{}", served.name), served.settings.to_vec());
    Ok(config)
}
