//! The data of one connection and the table of them. Calls nobody.

pub mod handoff;
pub mod rate_limit;
pub mod receive;
pub mod record;
pub mod send_queue;
pub mod table;
pub mod watermarks;
