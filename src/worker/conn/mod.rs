//! The data of one connection, and the table of all.

pub mod channel;
pub mod extents;
pub mod handler_timers;
pub mod handoff;
pub mod handshake;
pub mod info;
pub mod open;
pub mod owned;
pub mod rate_limit;
pub mod receive;
pub mod receive_budget;
pub mod record;
pub mod request;
pub mod send_queue;
pub mod table;
pub mod turn;
