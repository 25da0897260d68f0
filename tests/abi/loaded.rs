//! A handler driven through its table, as a host drives it.

use std::path::Path;
use std::ptr;

use ws_handler::raw;

use crate::fake::{HOST, fake, release_user, reset};
use crate::fixtures::fixture;

/// The recorded calls, without source locations in panic messages.
pub fn calls() -> Vec<String> {
    let without_place =
        |call: String| match call.split_once(" at ").filter(|(before, _)| before.contains("panic in")) {
            Some((before, after)) => format!("{before}:{}", after.splitn(3, ':').nth(2).unwrap()),
            None => call,
        };
    crate::fake::calls().into_iter().map(without_place).collect()
}

/// A handler loaded from its library into the fake host of this thread.
pub struct Loaded {
    table: *const raw::ws_handler,
}

impl Loaded {
    pub fn new(name: &str) -> Loaded {
        Loaded::from(&fixture(name))
    }

    pub fn from(path: &Path) -> Loaded {
        reset();
        // SAFETY: a handler of ours; and as in the server, never unloaded.
        unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(path).unwrap()));
            let entry = library.get::<raw::ws_handler_entry>(raw::ENTRY_SYMBOL.as_bytes()).unwrap();
            Loaded { table: entry(&HOST) }
        }
    }

    pub fn table(&self) -> &raw::ws_handler {
        // SAFETY: it lives as long as the process.
        unsafe { &*self.table }
    }

    pub fn handshake(&self) -> i32 {
        // SAFETY: as a host does; the handle is never dereferenced.
        unsafe { self.table().do_extra_handshake.unwrap()(1, ptr::null_mut()) }
    }

    pub fn open(&self) -> i32 {
        // SAFETY: as a host does.
        self.table().on_open.map_or(raw::WS_OK, |on_open| unsafe { on_open(1) })
    }

    pub fn message(&self, text: &str) -> Vec<String> {
        let text = std::ffi::CString::new(text).unwrap();
        let msg = raw::ws_message {
            type_: raw::WS_TEXT,
            flags: raw::WS_FIRST | raw::WS_LAST,
            data: text.as_ptr(),
            size: text.as_bytes().len(),
        };
        calls();
        // SAFETY: as a host does.
        unsafe { self.table().on_message.unwrap()(1, &msg) };
        calls()
    }

    pub fn passive_closing_handshake(&self) -> i32 {
        // SAFETY: as a host does.
        unsafe { self.table().passive_closing_handshake.unwrap()(1) }
    }

    pub fn close(&self) -> Vec<String> {
        calls();
        if let Some(on_close) = self.table().on_close {
            // SAFETY: as a host does.
            unsafe { on_close(1, raw::WS_BY_PEER, 1000) };
        }
        release_user(1);
        calls()
    }

    pub fn run_timers(&self) -> Vec<String> {
        for (_, task, arg) in fake(|fake| std::mem::take(&mut fake.timers)) {
            // SAFETY: as a host does, once.
            unsafe { task.unwrap()(1, arg) };
        }
        calls()
    }

    pub fn run_posts(&self) -> Vec<String> {
        for (conn, task, arg) in fake(|fake| std::mem::take(&mut fake.posts)) {
            // SAFETY: as a host does, exactly once.
            unsafe { task.unwrap()(conn, arg) };
        }
        calls()
    }
}
