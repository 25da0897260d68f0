//! The threads of blocking handlers, as the event loop starts and counts them.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::ffi::call::Handler;
use crate::worker::blocking::thread::{self, Beginning, ThreadHost};
use crate::worker::conn::channel::ThreadChannel;

/// See the module.
pub struct Threads {
    /// What those threads call.
    pub host: &'static ThreadHost,
    /// How many run: at most `most`.
    running: Cell<u32>,
    most: u32,
}

impl Threads {
    /// None; at most so many.
    pub fn new(host: &'static ThreadHost, most: u32) -> Self {
        Self { host, running: Cell::new(0), most }
    }

    /// How many run.
    pub fn running(&self) -> u32 {
        self.running.get()
    }

    /// Whether no further one may run.
    pub fn is_full(&self) -> bool {
        self.running.get() >= self.most
    }

    /// A thread has ended.
    pub fn ended(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    /// The channel of a blocking connection.
    pub fn new_channel(&self, id: u64, handler: Handler) -> Arc<ThreadChannel> {
        ThreadChannel::new(id, self.host.commands, handler.has_flag(WS_RESUMABLE))
    }

    /// Starts the thread of a blocking connection.
    pub fn start(
        &self,
        handler: Handler,
        channel: Arc<ThreadChannel>,
        beginning: Beginning,
    ) -> io::Result<()> {
        thread::spawn(self.host, handler, channel, beginning)?;
        self.running.set(self.running.get() + 1);
        Ok(())
    }
}
