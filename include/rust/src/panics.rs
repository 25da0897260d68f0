//! The door through which panics do not leave: they are logged with file and line.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use crate::conn::Conn;
use crate::error::{Error, Outcome};
use crate::host::{Level, log_conn};
use crate::raw::{self, ws_conn};

thread_local! {
    /// How deep this thread is in [`contain`].
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Where the panic that is on its way has begun.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics are logged by the host, of threads that the handler has made itself, too.
pub(crate) fn set_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
            match DEPTH.try_with(Cell::get) {
                Ok(1..) => _ = PLACE.try_with(|kept| *kept.borrow_mut() = place),
                _ if cfg!(test) => before(info),
                _ => log_stray(info, place.as_deref()),
            }
        }));
    });
}

fn log_stray(info: &PanicHookInfo, place: Option<&str>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = place.unwrap_or("an unknown place");
    log_conn(0, Level::Error, &format!("panic in a thread {name} at {place}: {}", text(info.payload())));
}

/// Runs `body`, and logs a panic instead of passing it on.
pub(crate) fn contain<R>(conn: ws_conn, place: &str, body: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch(body) {
        Ok(result) => return Some(result),
        Err(payload) => payload,
    };
    let at = PLACE.take().map(|at| format!(" at {at}")).unwrap_or_default();
    log_conn(conn, Level::Error, &format!("panic in {place}{at}: {}", text(payload.as_ref())));
    // To drop it may panic again, without end: what it panics with is not dropped.
    catch(|| drop(payload)).unwrap_or_else(std::mem::forget);
    None
}

fn catch<R>(body: impl FnOnce() -> R) -> std::thread::Result<R> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    result
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or("of an unknown type")
}

/// Runs the body of a callback with a result: 0, or a negative one that was logged. What an error of the handler does
/// when it is shown or dropped is contained, too.
pub(crate) fn contain_result(conn: ws_conn, place: &str, body: impl FnOnce() -> Outcome<i32>) -> i32 {
    let result = contain(conn, place, || match body() {
        Ok(result) => result,
        Err(error) => {
            let code = error.downcast_ref::<Error>().map_or(raw::WS_E_FAILED, |error| error.code());
            if code != raw::WS_E_GONE {
                log_conn(conn, Level::Error, &format!("error in {place}: {error}"));
            }
            code
        }
    });
    result.unwrap_or(raw::WS_E_FAILED)
}

/// Runs the body of a callback without a result: a failure closes with 1011.
pub(crate) fn contain_and_close(conn: ws_conn, place: &str, body: impl FnOnce() -> Outcome) {
    let result = contain_result(conn, place, || body().map(|()| raw::WS_OK));
    if result < 0 && result != raw::WS_E_GONE && conn != 0 {
        let _ = Conn(conn).close(raw::WS_CLOSE_INTERNAL_ERROR, "");
    }
}
