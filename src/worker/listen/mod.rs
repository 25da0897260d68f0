//! From the listening socket to an accepted one, and the limits that it has to pass.

pub mod acceptor;
pub mod admission;
pub mod orphan_watch;
pub mod share;
