//! What both sides of fork share. Holds no policy: the supervisor plans, the worker serves.

pub mod memory;
pub mod peer;
pub mod process;
pub mod refusal;
pub mod routes;
pub mod sockets;
