//! Code that runs in a signal handler, and what it needs prepared.

pub mod modules;
pub mod report;
pub mod rescue;
pub mod signals;
pub mod start;
pub mod threads;
pub mod traps;
