//! The threads of blocking handlers, what the loop exchanges with them, and the watchdog.

pub mod thread;
pub mod watchdog;
