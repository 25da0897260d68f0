//! The host's table, and its functions that are not about one connection.

use std::ffi::c_char;
use std::fmt::Display;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use crate::bytes::Bytes;
use crate::raw::{self, ws_conn, ws_host};

/// Levels of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Finer than debug.
    Fine = 10,
    /// For those who look for a fault.
    Debug = 20,
    /// For the operator's interest.
    Info = 30,
    /// For the operator's attention.
    Warn = 40,
    /// Something has failed.
    Error = 50,
    /// The service is in danger.
    Critical = 60,
}

static HOST: AtomicPtr<ws_host> = AtomicPtr::new(ptr::null_mut());

/// Called once, by the entry point.
pub(crate) fn set_host(host: *const ws_host) {
    HOST.store(host.cast_mut(), Ordering::Release);
}

/// The host's table.
///
/// # Panics
/// If no host has loaded this handler: only a unit test can come here so.
pub(crate) fn host() -> &'static ws_host {
    let host = HOST.load(Ordering::Acquire);
    // SAFETY: null, or the table that a host has given, which lives as long as
    // the process.
    unsafe { host.as_ref() }.expect("no host has loaded this handler")
}

/// Writes a line to the server's log, marked with the handler's name.
pub fn log(level: Level, text: impl Display) {
    log_conn(0, level, &text.to_string());
}

pub(crate) fn log_conn(conn: ws_conn, level: Level, text: &str) {
    // The header's wrapper cuts here too.
    let size = (0..=text.len().min(1023)).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
    // SAFETY: the table is the host's own, the text is valid for the call.
    unsafe { (host().log)(host(), conn, level as u32, text.as_ptr().cast(), size) }
}

/// A clock that only goes forward; its start means nothing.
pub fn now() -> Duration {
    // SAFETY: takes nothing.
    Duration::from_nanos(unsafe { (host().now)() })
}

/// This worker's number in its pool, from 0.
pub fn worker() -> u32 {
    host().worker
}

/// A value of the handler's own section of the configuration.
pub fn config(key: &str) -> Option<Bytes<'static>> {
    // SAFETY: the key is valid for the call; the value lives as long as the process.
    unsafe { Bytes::from_raw((host().config)(host(), key.as_ptr().cast(), key.len())) }
}

/// All keys and values of that section.
pub fn settings() -> impl Iterator<Item = (Bytes<'static>, Bytes<'static>)> {
    (0..).map_while(|index| {
        // SAFETY: both places are writable; what is put there lives as long as
        // the process.
        unsafe { pair(|key, value| (host().config_at)(host(), index, key, value)) }
    })
}

/// The items of a list such as `a, b`.
pub fn list(text: Bytes<'_>) -> impl Iterator<Item = Bytes<'_>> {
    text.0.split(|byte| *byte == b',').map(|item| Bytes(item.trim_ascii())).filter(|item| !item.is_empty())
}

/// A name and value that the host writes to two places, if it returns 1.
///
/// # Safety
/// What the host writes is valid for `'a`.
pub(crate) unsafe fn pair<'a>(
    ask: impl FnOnce(*mut raw::ws_bytes, *mut raw::ws_bytes) -> i32,
) -> Option<(Bytes<'a>, Bytes<'a>)> {
    let mut name = raw::ws_bytes { data: ptr::null(), size: 0 };
    let mut value = name;
    if ask(&mut name, &mut value) != 1 {
        return None;
    }
    // SAFETY: by the caller's promise.
    unsafe { Some((Bytes::from_raw(name)?, Bytes::from_raw(value)?)) }
}

/// Pointer and length as the host takes them; absent is null.
pub(crate) fn optional(text: Option<&str>) -> (*const c_char, usize) {
    text.map_or((ptr::null(), 0), |text| (text.as_ptr().cast(), text.len()))
}
