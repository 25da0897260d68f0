//! From the listening socket to an admitted socket.

pub mod accept;
pub mod admission;
