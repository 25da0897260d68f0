//! Sends live connections to another process, and takes them up there.

pub mod detach;
pub mod receive;
pub mod send;
