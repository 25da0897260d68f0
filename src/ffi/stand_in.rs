//! A stand-in for the worker in a probe: accepts timers, posts and watched descriptors, and never calls them.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI64, Ordering};

use ::ws_handler::raw::*;

use super::host::{EventLoop, Ready, Task, Worker};
use super::place::{set_event_loop, set_worker};

/// The last number given to a timer.
struct StandIn(AtomicI64);

static STAND_IN: StandIn = StandIn(AtomicI64::new(0));

/// Makes this thread that of an event loop which calls nothing.
pub fn set_stand_in() {
    set_worker(&STAND_IN);
    set_event_loop(&STAND_IN);
}

impl Worker for StandIn {
    fn post(&self, _: u16, _: Task) -> i32 {
        WS_OK
    }

    fn workers(&self) -> u32 {
        1
    }

    fn handler_name(&self, _: ws_conn) -> String {
        "the handler".to_owned()
    }
}

impl EventLoop for StandIn {
    fn set_timer(&self, _: u16, _: u64, _: u64, _: Task) -> i64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn clear_timer(&self, _: u16, _: i64) -> i32 {
        WS_OK
    }

    fn watch(&self, _: u16, _: RawFd, _: u32, _: Ready) -> i32 {
        WS_OK
    }

    fn unwatch(&self, _: u16, _: RawFd) -> i32 {
        WS_OK
    }
}
