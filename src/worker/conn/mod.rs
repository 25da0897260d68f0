//! The data of one connection, the table of all, and what can be done with them without a handler.

pub mod access_log;
pub mod broadcasting;
pub mod channel;
pub mod closing;
pub mod connections;
pub mod contexts;
pub mod handler_timers;
pub mod handoff;
pub mod handshake;
pub mod info;
pub mod last_call;
pub mod memory;
pub mod open;
pub mod output;
pub mod rate_limit;
pub mod read_control;
pub mod receive;
pub mod receive_budget;
pub mod record;
pub mod request;
pub mod send_queue;
pub mod sending;
pub mod table;
pub mod topic_records;
pub mod turn;
pub mod turn_queue;
