//! The functions for topics: the trait that answers them, and the C functions of the table.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use ::ws_handler::raw::*;

use super::host::bytes;
use super::place::{AnyThread, place};
use super::strict::{checked, fails};
use super::table::number_of;

/// Answers the calls on any thread. Handlers are identified by number. Results are those of the functions in
/// `ws_handler.h`.
pub trait Topics: Sync {
    /// Subscribes a connection.
    fn subscribe(&self, conn: ws_conn, topic: &[u8], flags: u32) -> i32;
    /// Ends a subscription.
    fn unsubscribe(&self, conn: ws_conn, topic: &[u8]) -> i32;
    /// Sends a message to all subscribers; not to `this` with `WS_NOT_SELF`.
    fn publish(
        &self,
        handler: u16,
        this: ws_conn,
        topic: &[u8],
        kind: u32,
        payload: &[u8],
        flags: u32,
    ) -> i32;
    /// How many subscribers there are.
    fn subscribers(&self, handler: u16, topic: &[u8]) -> u64;
    /// How many messages a connection has missed since the last call.
    fn missed(&self, conn: ws_conn) -> u64;
}

static TOPICS: AnyThread<dyn Topics> = AnyThread::unset();

/// Sets the object that answers; the first call counts. Until then no handler has a connection.
pub fn set_topics(topics: &'static dyn Topics) {
    TOPICS.set(topics);
}

pub(super) unsafe extern "C" fn subscribe(
    conn: ws_conn,
    topic: *const c_char,
    size: usize,
    flags: u32,
) -> i32 {
    // SAFETY: the handler passes topic[0..size).
    let topic = unsafe { bytes(topic, size) };
    let result = if fails() {
        WS_E_LIMIT
    } else {
        TOPICS.ask(WS_E_GONE, |topics| topics.subscribe(conn, topic, flags))
    };
    checked("ws_subscribe", conn, 0, result)
}

pub(super) unsafe extern "C" fn unsubscribe(conn: ws_conn, topic: *const c_char, size: usize) -> i32 {
    // SAFETY: the handler passes topic[0..size).
    let topic = unsafe { bytes(topic, size) };
    TOPICS.ask(WS_E_GONE, |topics| topics.unsubscribe(conn, topic))
}

pub(super) unsafe extern "C" fn publish(
    host: *const ws_host,
    topic: *const c_char,
    topic_size: usize,
    kind: u32,
    data: *const c_void,
    size: usize,
    flags: u32,
) -> i32 {
    // SAFETY: the handler passes topic[0..topic_size), data[0..size) and the host's table.
    let (topic, payload, handler) =
        unsafe { (bytes(topic, topic_size), bytes(data.cast(), size), number_of(host)) };
    let (_, this) = place();
    TOPICS.ask(WS_E_PLACE, |topics| topics.publish(handler, this, topic, kind, payload, flags))
}

pub(super) unsafe extern "C" fn subscribers(host: *const ws_host, topic: *const c_char, size: usize) -> u64 {
    // SAFETY: the handler passes topic[0..size) and the host's table.
    let (topic, handler) = unsafe { (bytes(topic, size), number_of(host)) };
    TOPICS.ask(0, |topics| topics.subscribers(handler, topic))
}

pub(super) unsafe extern "C" fn missed(conn: ws_conn) -> u64 {
    TOPICS.ask(0, |topics| topics.missed(conn))
}
