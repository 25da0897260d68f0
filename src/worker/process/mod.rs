//! What kind of process this is.

pub mod start;
pub mod zygote;
