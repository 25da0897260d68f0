//! An older host's table made complete: what it lacks answers `WS_E_UNSUPPORTED`, or nothing.

use std::ffi::{c_char, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::ptr;

use crate::raw::*;

/// What every host has (`WS_HOST_LEAST_`).
pub(crate) const LEAST: usize = offset_of!(ws_host, is_resumed) + size_of::<usize>();

/// A copy of the host's table in which no member is missing; `None` if it lacks what every host has.
///
/// # Safety
/// `given` points to as many readable bytes as its first member says.
pub(crate) unsafe fn complete(given: *const ws_host) -> Option<ws_host> {
    // SAFETY: promised by the caller; every table begins with its size.
    let size = unsafe { given.cast::<usize>().read() };
    if size < LEAST {
        return None;
    }
    // All members behind that are pointers: one that is there in part counts as absent.
    let known = size.min(size_of::<ws_host>()) / size_of::<usize>() * size_of::<usize>();
    let mut table = MaybeUninit::<ws_host>::uninit();
    // SAFETY: the stubs make every optional member valid, and the host's own members replace the first `known` bytes,
    // which reach beyond the required ones.
    unsafe {
        fill(table.as_mut_ptr());
        ptr::copy_nonoverlapping(given.cast::<u8>(), table.as_mut_ptr().cast::<u8>(), known);
        Some(table.assume_init())
    }
}

/// # Safety
/// `table` is writable.
unsafe fn fill(table: *mut ws_host) {
    // SAFETY: promised by the caller.
    unsafe {
        (&raw mut (*table).attach_user).write(attach_user);
        (&raw mut (*table).attach_state).write(attach_state);
        (&raw mut (*table).query_param).write(decode);
        (&raw mut (*table).cookie).write(decode);
        (&raw mut (*table).host_version).write(c"".as_ptr());
        (&raw mut (*table).workers).write(workers);
        (&raw mut (*table).watch_fd).write(watch_fd);
        (&raw mut (*table).unwatch_fd).write(unwatch_fd);
        (&raw mut (*table).get_extension).write(get_extension);
        (&raw mut (*table).send_raw).write(send_raw);
        (&raw mut (*table).subscribe).write(subscribe);
        (&raw mut (*table).unsubscribe).write(unsubscribe);
        (&raw mut (*table).publish).write(publish);
        (&raw mut (*table).subscribers).write(subscribers);
        (&raw mut (*table).missed).write(missed);
        (&raw mut (*table).remote_user).write(absent);
    }
}

unsafe extern "C" fn attach_user(
    _: *mut ws_handshake,
    user: *mut c_void,
    release: Option<unsafe extern "C" fn(arg: *mut c_void)>,
) -> i32 {
    if let Some(release) = release {
        // SAFETY: it is to be called exactly once, whatever the result.
        unsafe { release(user) };
    }
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn attach_state(_: *mut ws_handshake, _: *const c_void, _: usize) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn decode(_: ws_conn, _: *const c_char, _: usize, _: *mut c_char, _: usize) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn workers(_: *const ws_host) -> u32 {
    1
}

unsafe extern "C" fn watch_fd(_: *const ws_host, _: i32, _: u32, _: ws_ready, _: *mut c_void) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn unwatch_fd(_: *const ws_host, _: i32) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn get_extension(_: *const ws_host, _: *const c_char, _: usize) -> *const c_void {
    ptr::null()
}

unsafe extern "C" fn send_raw(_: *const ws_host, _: ws_conn, _: *const c_void, _: usize) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn subscribe(_: ws_conn, _: *const c_char, _: usize, _: u32) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn unsubscribe(_: ws_conn, _: *const c_char, _: usize) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn publish(
    _: *const ws_host,
    _: *const c_char,
    _: usize,
    _: u32,
    _: *const c_void,
    _: usize,
    _: u32,
) -> i32 {
    WS_E_UNSUPPORTED
}

unsafe extern "C" fn subscribers(_: *const ws_host, _: *const c_char, _: usize) -> u64 {
    0
}

unsafe extern "C" fn missed(_: ws_conn) -> u64 {
    0
}

unsafe extern "C" fn absent(_: ws_conn) -> ws_bytes {
    ws_bytes { data: ptr::null(), size: 0 }
}
