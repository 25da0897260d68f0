//! The tables `[[listener]]` of the configuration file: addresses with settings of their own.

use toml::de::{DeTable, DeValue};

use super::draft::Draft;
use super::effective::Effective;
use super::file::{File, kind};
use super::resolve::assign;
use super::{Error, Scope, tls};
use crate::config::{Config, Listen};

/// The key of these tables.
const KEY: &str = "listener";
/// The key whose default does not apply if there are such tables.
pub const HOSTS: &str = "server_host";

/// Reads the tables of all files into the configuration. With any, the server listens on `server_host` only if it is
/// given.
pub fn read(
    documents: &[(&File, DeTable<'_>)],
    server: &Draft,
    config: &mut Config,
    effective: &mut Effective,
) -> Result<(), Error> {
    for (file, document) in documents {
        let Some(value) = document.get(KEY) else { continue };
        let location = file.location(value.span(), KEY);
        let DeValue::Array(tables) = value.get_ref() else {
            return Err(location.wrong(format!("expected tables [[{KEY}]], not {}", kind(value))));
        };
        for table in tables.iter() {
            let location = file.location(table.span(), KEY);
            let given = file.values(file.table(KEY, table, "a table")?.iter(), Scope::Listener)?;
            let (listener, tls) = (server.listener.clone(), server.tls.clone());
            let mut draft = Draft { listener, tls, ..Draft::default() };
            assign(&given, Scope::Listener, &mut draft)?;
            let listen = draft.address.ok_or_else(|| location.wrong("expected an address"))?;
            if config.listener_of.iter().any(|(known, _)| *known == listen) {
                return Err(given.wrong("address", format!("{listen} already has a table")));
            }
            let of_files = ["mode", "owner", "group"];
            let of_file = of_files.into_iter().find(|name| given.get(name).is_some());
            if let (Listen::Tcp { .. }, Some(name)) = (&listen, of_file) {
                return Err(given.wrong(name, "needs an address unix:/PATH"));
            }
            tls::listener(draft.tls, &given, &listen, config)?;
            effective.tables.push((format!("[[{KEY}]]"), Scope::Listener, given));
            config.listener_of.push((listen, draft.listener));
        }
    }
    if !config.listener_of.is_empty() && effective.server.get(HOSTS).is_none() {
        config.listen.clear();
    }
    let listen = &config.listener_of;
    let has_table = |known: &Listen| listen.iter().any(|(listen, _)| listen == known);
    let is_listened_on = |known: &Listen| config.listen.contains(known) || has_table(known);
    config.gateway.listeners.retain(|known| is_listened_on(&known.listen));
    for (listen, _) in &config.listener_of {
        if !config.listen.contains(listen) {
            config.listen.push(listen.clone());
        }
    }
    Ok(())
}
