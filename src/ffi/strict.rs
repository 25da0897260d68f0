//! What a strict host tells of calls that break no rule and have no effect, and how it can have calls fail, so that a handler
//! shows what it does then. Nothing here does anything in a host that was not told to be strict.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::ws_handler::raw::*;

use super::place::{error_name, note_useless};

/// Connections that a thread remembers.
const MOST: usize = 64;

/// Whether this host was told to be strict: a debug build is by itself, and does nothing of this.
static IS_ON: AtomicBool = AtomicBool::new(false);
/// Every so many calls that can fail one does; 0: none.
static FAIL_EVERY: AtomicU32 = AtomicU32::new(0);

/// What was done to connections on this thread; the last ones.
#[derive(Default)]
struct Known {
    /// By the handler.
    closed: VecDeque<ws_conn>,
    /// Their `on_close` has returned.
    ended: VecDeque<ws_conn>,
    /// The one whose on_close runs.
    closing: Option<ws_conn>,
}

thread_local! {
    static KNOWN: RefCell<Known> = const { RefCell::new(Known { closed: VecDeque::new(), ended: VecDeque::new(), closing: None }) };
}

/// The Close frame of the connection whose callback has broken the contract.
static FAREWELL: OnceLock<Vec<u8>> = OnceLock::new();

/// The process is about to abort for this breach.
pub(super) fn note_breach(what: std::fmt::Arguments<'_>) {
    if is_on() {
        FAREWELL.get_or_init(|| close_frame(&what.to_string()));
    }
}

/// The Close frame for the connection whose callback has broken the contract, which says how. Async-signal-safe.
pub fn farewell() -> Option<&'static [u8]> {
    FAREWELL.get().map(Vec::as_slice)
}

/// Code 1011 and a reason of up to 123 bytes (RFC 6455 section 5.5).
fn close_frame(reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(123)).unwrap_or_default();
    [&[0x88, 2 + reason.len() as u8, 0x03, 0xf3], reason.as_bytes()].concat()
}

/// From now on all this is done.
pub(super) fn begin() {
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether it is.
#[inline]
pub(super) fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// From now on one in so many calls fails that can fail for want of room or memory. [kit]
pub fn fail_every(count: u32) {
    FAIL_EVERY.store(count, Ordering::Relaxed);
}

/// Whether this call is to fail.
#[inline]
pub(super) fn fails() -> bool {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let every = FAIL_EVERY.load(Ordering::Relaxed);
    every != 0 && CALLS.fetch_add(1, Ordering::Relaxed) % every == every - 1
}

/// The handler has closed or aborted a connection.
pub(super) fn closed(conn: ws_conn) {
    if is_on() {
        KNOWN.with_borrow_mut(|known| remember(&mut known.closed, conn));
    }
}

/// The handler is about to be told that a connection has ended.
pub(super) fn closing(conn: ws_conn) {
    if is_on() {
        KNOWN.with_borrow_mut(|known| known.closing = Some(conn));
    }
}

/// A connection has ended; the handler was told, if it wants to know.
pub fn ended(conn: ws_conn) {
    if is_on() {
        KNOWN.with_borrow_mut(|known| {
            known.closing = None;
            remember(&mut known.ended, conn);
        });
    }
}

fn remember(list: &mut VecDeque<ws_conn>, conn: ws_conn) {
    if list.contains(&conn) {
        return;
    }
    if list.len() == MOST {
        list.pop_front();
    }
    list.push_back(conn);
}

/// Passes a result on, and tells of one that is the handler's own mistake. `size` is that of what was to be sent.
#[inline]
pub(super) fn checked(function: &str, conn: ws_conn, size: usize, result: i32) -> i32 {
    if result < 0 && is_on() {
        tell(function, conn, size, result);
    }
    result
}

#[cold]
fn tell(function: &str, conn: ws_conn, size: usize, result: i32) {
    let error = error_name(result);
    match result {
        // Gone may be what the peer has done, and then nobody is to blame.
        WS_E_GONE => KNOWN.with_borrow(|known| {
            if known.closing == Some(conn) {
                note_useless(
                    conn,
                    format_args!("{function}() was called when the connection had ended: {error}"),
                );
            } else if known.ended.contains(&conn) {
                note_useless(
                    conn,
                    format_args!("{function}() was called after on_close of the connection: {error}"),
                );
            } else if known.closed.contains(&conn) {
                let what = "was called after ws_close() or ws_abort() of the connection";
                note_useless(conn, format_args!("{function}() {what}: {error}"));
            }
        }),
        WS_E_INVALID | WS_E_LIMIT if size > 0 => {
            note_useless(
                conn,
                format_args!("{function}() of {size} bytes returned {error}: nothing was sent"),
            );
        }
        WS_E_INVALID => {
            note_useless(conn, format_args!("{function}() returned {error}: it has done nothing"))
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_close_frame_is_whole_characters() {
        assert_eq!(close_frame("a"), [0x88, 3, 0x03, 0xf3, b'a']);
        let frame = close_frame(&"\u{e9}".repeat(62)); // 124 bytes
        assert_eq!((frame[1], frame.len()), (124, 126));
    }
}
