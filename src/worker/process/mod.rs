//! What kind of process this is: handlers loaded, zygote, a process for one connection.

pub mod per_connection;
pub mod zygote;
