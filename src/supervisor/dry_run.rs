//! A start without a server, for `wshd check`: what a start would read and resolve is, handlers are loaded in probes,
//! and what is wrong is told in the same words and with the same status. Nothing is bound or written, nobody is served.

use super::plural;
use super::prepare::{find_handlers, not_bound};
use crate::config::{Config, Listen};
use crate::confine;
use crate::exit::{Exit, Failure};
use crate::fleet::sockets::listener;
use crate::gateway;
use crate::log::{Destination, Settings as LogSettings};
use crate::service::start_signals::StartSignals;

/// Tests the configuration. What handlers log while they are probed goes to standard error.
pub fn dry_run(config: &Config) -> Exit {
    match test(config) {
        Ok(resources) => {
            let file = config.file.as_ref().map(|file| format!("{}: ", file.display()));
            let (file, resources) = (file.unwrap_or_default(), plural(resources, "resource"));
            println!("{file}the configuration is valid, {resources}");
            Exit::Ok
        }
        Err(Failure(exit, why)) => {
            eprintln!("wshd: {why}");
            exit
        }
    }
}

fn test(config: &Config) -> Result<usize, Failure> {
    confine::check(config).map_err(|why| Failure(Exit::Config, why))?;
    let log = LogSettings { destination: Destination::Stderr, access: None, ..config.log.clone() };
    crate::log::start(&log).map_err(|error| Failure(Exit::Config, error.to_string()))?;
    crate::log::set_process("check");
    let control = config.control.socket.iter().cloned().map(Listen::Unix);
    for listen in config.listen.iter().cloned().chain(config.metrics.clone()).chain(control) {
        listener::check(&listen).map_err(not_bound)?;
    }
    let signals = StartSignals::watch()?;
    let (routes, _) = find_handlers(config, &signals)?;
    gateway::check(config).map_err(|why| Failure(Exit::Config, why))?;
    Ok(routes.resources().len())
}
