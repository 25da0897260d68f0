//! What both sides of fork share. Holds no policy: the supervisor plans, the worker serves.

pub mod memory;
pub(crate) mod peer;
pub mod process;
pub(crate) mod refusal;
pub mod routes;
pub(crate) mod sockets;
