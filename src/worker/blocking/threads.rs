//! The threads of blocking handlers, as the event loop starts and counts them.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::ffi::call::Handler;
use crate::worker::blocking::thread::{self, Beginning, ThreadHost};
use crate::worker::conn::channel::ThreadChannel;

pub struct Threads {
    pub host: &'static ThreadHost,
    /// How many run: at most `most`.
    running: Cell<u32>,
    most: u32,
}

impl Threads {
    pub fn new(host: &'static ThreadHost, most: u32) -> Self {
        Self { host, running: Cell::new(0), most }
    }

    pub fn running(&self) -> u32 {
        self.running.get()
    }

    pub fn is_full(&self) -> bool {
        self.running.get() >= self.most
    }

    pub fn ended(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    pub fn new_channel(&self, id: u64, handler: Handler) -> Arc<ThreadChannel> {
        ThreadChannel::new(id, self.host.commands, handler.has_flag(WS_RESUMABLE))
    }

    pub fn start(&self, beginning: Beginning) -> io::Result<()> {
        thread::spawn(self.host, beginning)?;
        self.running.set(self.running.get() + 1);
        Ok(())
    }
}
