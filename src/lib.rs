//! wshd: a prefork WebSocket server daemon whose handlers are shared objects.
//!
//! `main.rs` parses the arguments to a configuration and runs the supervisor. wshd(7) describes the modules, and
//! follows a connection through them.

#![warn(missing_docs)]

pub mod auth;
pub mod bus;
mod cgi;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
mod control;
pub mod ctl;
pub mod exit;
pub mod ffi;
pub mod fleet;
pub mod gateway;
pub mod handlers;
pub mod http;
pub mod kit;
pub mod log;
pub mod metrics;
pub mod proto;
pub mod service;
pub mod settings;
pub mod supervisor;
pub mod time;
mod worker;
