//! What plugins may call: from the event loop and from foreign threads.

pub mod event_loop;
pub mod foreign_thread;
pub mod info;
