//! What operators see: access log, metrics, the list of connections.

pub mod access_log;
pub mod connections;
