//! All settings, in the order and under the headings of wshd.conf(5).

// Allows `Ok(field = value)` in setters that may fail.
#![allow(clippy::unit_arg)]

mod admission;
mod authentication;
mod compression;
mod connections;
mod daemon;
mod handler;
mod listener;
pub mod log;
pub mod pool;
mod programs;
mod serving;
mod tls;
mod topics;
pub mod workers;

// For all files.
use super::Default::{Is, Unset};
use super::Flag::{Long, No, Short};
use super::Kind::{Choice, Count, Flag, List, NameOrNumber, Path, Secret, Size, Text, Time};
use super::{Scope, Setting, Zero};

const SERVER: &[Scope] = &[Scope::Server];
const HANDLER: &[Scope] = &[Scope::Handler];
const POOL: &[Scope] = &[Scope::Pool];
const LISTENER: &[Scope] = &[Scope::Listener];
/// The server's value is the default for handlers, pools or listeners.
const HANDLERS: &[Scope] = &[Scope::Server, Scope::Handler];
const POOLS: &[Scope] = &[Scope::Server, Scope::Pool];
const LISTENERS: &[Scope] = &[Scope::Server, Scope::Listener];

/// Settings under a heading.
#[derive(Debug)]
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// In the order of the manual.
    pub settings: &'static [Setting],
}

/// The whole table.
pub const GROUPS: &[Group] = &[
    Group { title: "What is served", settings: serving::TABLE },
    Group { title: "TLS and HTTP/2", settings: tls::TABLE },
    Group { title: "Log", settings: log::TABLE },
    Group { title: "Connections", settings: connections::TABLE },
    Group { title: "Compression", settings: compression::TABLE },
    Group { title: "Workers", settings: workers::TABLE },
    Group { title: "Admission", settings: admission::TABLE },
    Group { title: "Authentication", settings: authentication::TABLE },
    Group { title: "Topics", settings: topics::TABLE },
    Group { title: "Programs", settings: programs::TABLE },
    Group { title: "System", settings: daemon::TABLE },
    Group { title: "Listeners", settings: listener::TABLE },
    Group { title: "Handlers", settings: handler::TABLE },
    Group { title: "Pools", settings: pool::TABLE },
];
