//! Handlers, and what they may call: on the event loop and from threads of their own.

pub mod handler_tasks;
pub mod handlers;
pub mod loop_host;
