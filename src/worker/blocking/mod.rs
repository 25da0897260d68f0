//! The threads of blocking handlers, and the watchdog.

pub mod thread;
pub mod watchdog;
