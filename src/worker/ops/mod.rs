//! What operators see.

pub mod connections;
