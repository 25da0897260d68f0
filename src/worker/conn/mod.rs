//! The data of one connection and the table of them. Calls nobody.

pub mod channel;
pub mod handoff;
pub mod handshake;
pub mod info;
pub mod rate_limit;
pub mod receive;
pub mod record;
pub mod send_queue;
pub mod table;
pub mod turn;
