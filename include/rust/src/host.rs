//! The host's table, and its functions that are not about one connection.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::Display;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::raw::{self, ws_conn, ws_host};
use crate::stubs;

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

/// The host that has loaded this handler.
struct Host {
    /// As it was given, to be given back; shorter, if the host is older.
    given: *const ws_host,
    /// The same with every member.
    table: ws_host,
}

// SAFETY: the host takes calls from any thread, and its table is never written.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

static HOST: OnceLock<Host> = OnceLock::new();

/// Called by the entry point; false if the host lacks what every host has.
///
/// # Safety
/// `host` is the host's table, which lives as long as the process.
pub(crate) unsafe fn set_host(given: *const ws_host) -> bool {
    // SAFETY: promised by the caller.
    let table = unsafe { stubs::complete(given) };
    table.map(|table| HOST.get_or_init(|| Host { given, table })).is_some()
}

/// The host's table.
///
/// # Panics
/// If no host has loaded this handler: only a unit test can come here so.
pub(crate) fn host() -> &'static ws_host {
    &HOST.get().expect("no host has loaded this handler").table
}

/// The table as its functions want it.
pub(crate) fn given() -> *const ws_host {
    HOST.get().map_or(ptr::null(), |host| host.given)
}

/// Writes a line to the server's log, marked with the handler's name.
pub fn log(level: Level, text: impl Display) {
    log_conn(0, level, &text.to_string());
}

pub(crate) fn log_conn(conn: ws_conn, level: Level, text: &str) {
    // The header's wrapper cuts here too.
    let size = (0..=text.len().min(1023)).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
    // SAFETY: the table is the host's own, the text is valid for the call.
    unsafe { (host().log)(given(), conn, level as u32, text.as_ptr().cast(), size) }
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

/// How many workers this worker's pool has.
pub fn workers() -> u32 {
    // SAFETY: the table is the host's own.
    unsafe { (host().workers)(given()) }
}

/// Name and version of the host, for people and logs.
pub fn host_version() -> &'static str {
    // SAFETY: NUL-terminated, and lives as long as the process.
    unsafe { CStr::from_ptr(host().host_version) }.to_str().unwrap_or_default()
}

/// An interface that is not a part of `ws_handler.h`, by its name; what it points to, the name's owner says.
pub fn extension(id: &str) -> Option<NonNull<c_void>> {
    // SAFETY: the table is the host's own, the name is valid for the call.
    NonNull::new(unsafe { (host().get_extension)(given(), id.as_ptr().cast(), id.len()) }.cast_mut())
}

/// A value of the handler's own section of the configuration.
pub fn config(key: &str) -> Option<Bytes<'static>> {
    // SAFETY: the key is valid for the call; the value lives as long as the process.
    unsafe { Bytes::from_raw((host().config)(given(), key.as_ptr().cast(), key.len())) }
}

/// All keys and values of that section.
pub fn settings() -> impl Iterator<Item = (Bytes<'static>, Bytes<'static>)> {
    (0..).map_while(|index| {
        // SAFETY: both places are writable; what is put there lives as long as
        // the process.
        unsafe { pair(|key, value| (host().config_at)(given(), index, key, value)) }
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
