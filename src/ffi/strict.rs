//! Checks of a strict host: warnings about calls that break no rule but have no effect, and calls that fail on purpose,
//! to test a handler's error handling. Without `strict_abi` nothing here has an effect.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::ws_handler::raw::*;

use super::place::{error_name, note_without_effect};

/// Connections that a thread remembers in each list.
const MAX_KNOWN: usize = 64;

/// Whether `strict_abi` is set. A debug build aborts on a breach even without it, but makes none of these checks.
static IS_ON: AtomicBool = AtomicBool::new(false);
/// One call in this many fails, of those that can; 0: none.
static FAIL_EVERY: AtomicU32 = AtomicU32::new(0);

/// The last connections that were closed on this thread.
#[derive(Default)]
struct Known {
    /// Closed or aborted by the handler.
    closed: VecDeque<ws_conn>,
    /// Their `on_close` has returned.
    ended: VecDeque<ws_conn>,
    /// The one whose `on_close` runs.
    closing: Option<ws_conn>,
}

thread_local! {
    static KNOWN: RefCell<Known> = const { RefCell::new(Known { closed: VecDeque::new(), ended: VecDeque::new(), closing: None }) };
}

/// The Close frame for the connection whose callback broke the contract.
static BREACH_CLOSE: OnceLock<Vec<u8>> = OnceLock::new();

/// Records the breach for which the process is about to abort.
pub(super) fn note_breach(what: std::fmt::Arguments<'_>) {
    if is_on() {
        BREACH_CLOSE.get_or_init(|| close_frame(&what.to_string()));
    }
}

/// The Close frame for the connection whose callback broke the contract, with the breach as its reason.
/// Async-signal-safe.
pub fn breach_close() -> Option<&'static [u8]> {
    BREACH_CLOSE.get().map(Vec::as_slice)
}

/// Code 1011 and a reason of up to 123 bytes (RFC 6455 section 5.5).
fn close_frame(reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(123)).unwrap_or_default();
    [&[0x88, 2 + reason.len() as u8, 0x03, 0xf3], reason.as_bytes()].concat()
}

/// Turns the checks on.
pub(super) fn begin() {
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether the checks are on.
#[inline]
pub(super) fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// From now on one in `count` calls fails, of those that can fail for lack of room or memory. [kit]
pub fn fail_every(count: u32) {
    FAIL_EVERY.store(count, Ordering::Relaxed);
}

/// Whether this call must fail.
#[inline]
pub(super) fn fails() -> bool {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let every = FAIL_EVERY.load(Ordering::Relaxed);
    every != 0 && CALLS.fetch_add(1, Ordering::Relaxed) % every == every - 1
}

/// The handler closed or aborted a connection.
pub(super) fn closed(conn: ws_conn) {
    if is_on() {
        KNOWN.with_borrow_mut(|known| remember(&mut known.closed, conn));
    }
}

/// `on_close` of a connection is about to be called.
pub(super) fn closing(conn: ws_conn) {
    if is_on() {
        KNOWN.with_borrow_mut(|known| known.closing = Some(conn));
    }
}

/// A connection has ended, and its `on_close`, if any, has returned.
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
    if list.len() == MAX_KNOWN {
        list.pop_front();
    }
    list.push_back(conn);
}

/// Returns the result, and logs one that is an error of the handler. `size` is the size of the message.
#[inline]
pub(super) fn checked(function: &str, conn: ws_conn, size: usize, result: i32) -> i32 {
    if result < 0 && is_on() {
        warn_of(function, conn, size, result);
    }
    result
}

#[cold]
fn warn_of(function: &str, conn: ws_conn, size: usize, result: i32) {
    let error = error_name(result);
    match result {
        // If the peer ended the connection, the call is not an error.
        WS_E_GONE => KNOWN.with_borrow(|known| {
            let when = match known {
                known if known.closing == Some(conn) => "when the connection had ended",
                known if known.ended.contains(&conn) => "after on_close of the connection",
                known if known.closed.contains(&conn) => "after ws_close() or ws_abort() of the connection",
                _ => return,
            };
            note_without_effect(conn, format_args!("{function}() was called {when}: {error}"));
        }),
        WS_E_INVALID | WS_E_LIMIT if size > 0 => {
            note_without_effect(
                conn,
                format_args!("{function}() of {size} bytes returned {error}: nothing was sent"),
            );
        }
        WS_E_INVALID => {
            note_without_effect(conn, format_args!("{function}() returned {error}: it had no effect"))
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
