//! What plugins may call: from the event loop and from foreign threads.

pub mod foreign_host;
pub mod handlers;
pub mod loop_host;
