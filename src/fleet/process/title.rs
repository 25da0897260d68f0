//! The title of a process, as `ps` shows it: written over the memory of the arguments, which is where the kernel reads
//! `/proc/PID/cmdline` from. A title may be longer than the arguments were: the environment, which lies behind them, is
//! moved away first. Where the kernel does not tell the places there are no titles, nor under valgrind, which goes on
//! reading there.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::OnceLock;

use super::proc::is_under_valgrind;

/// Makes room for titles. Call it first thing in `main`, after reading the arguments: the process must have one
/// thread only, and `std::env::args` means nothing after the first [`set`].
pub fn prepare() {
    let Some(places) = read_places().filter(|_| !is_under_valgrind()) else { return };
    // SAFETY: the process has one thread, so nobody reads or changes the environment meanwhile.
    unsafe { move_environment() };
    let _ = PLACES.set(places);
}

/// From now on titles name this instance of the server. Before the first fork; the first call counts.
pub fn set_instance(name: &str) {
    let _ = INSTANCE.set(format!("wshd@{name}"));
}

/// The server's own name, which its titles begin with.
static INSTANCE: OnceLock<String> = OnceLock::new();

/// Changes the title of this process to its part in the server. Cut to what there is room for.
pub fn set(part: &str) {
    let Some(Places { start, arguments, room }) = PLACES.get() else { return };
    let title = format!("{}: {part}", INSTANCE.get().map_or("wshd", String::as_str));
    let length = title.len().min(room - 1);
    // SAFETY: [start, start + room) is the writable memory of the arguments and the environment, which prepare()
    // has taken over: nothing else refers to it. `title` is elsewhere.
    unsafe {
        let start = *start as *mut u8;
        ptr::copy_nonoverlapping(title.as_ptr(), start, length);
        start.add(length).write_bytes(0, room - length);
        // The kernel takes the arguments for one title, reaching into the environment, if they do not end in
        // NUL; a shorter title is read as the arguments, whose trailing NULs programs drop.
        if length >= *arguments {
            debug_assert_ne!(start.add(*arguments - 1).read(), 0);
        }
    }
}

/// Where titles are written.
struct Places {
    start: usize,
    /// Bytes of the arguments alone.
    arguments: usize,
    /// Bytes of arguments and environment.
    room: usize,
}

static PLACES: OnceLock<Places> = OnceLock::new();

/// proc(5): in /proc/self/stat arg_start, arg_end, env_start, env_end are fields 48 to 51.
fn read_places() -> Option<Places> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the program's name in parentheses, may contain anything; the third follows its last ")".
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3).map(|field| field.parse::<usize>().ok());
    let [start, arguments_end, environment, end] = [(); 4].map(|()| fields.next().flatten());
    let (start, arguments_end, environment, end) = (start?, arguments_end?, environment?, end?);
    let is_usable = start != 0 && start < arguments_end && arguments_end == environment && environment <= end;
    is_usable.then_some(Places { start, arguments: arguments_end - start, room: end - start })
}

/// Gives the environment new memory.
///
/// # Safety
/// No other thread may run.
unsafe fn move_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: one thread, as promised; `environ` is null or an array that ends in null, of NUL-terminated strings.
    // The copies are never freed, as is the rule for the environment.
    unsafe {
        if environ.is_null() {
            return;
        }
        let mut copies: Vec<*mut c_char> = Vec::new();
        let mut entry = environ;
        while !(*entry).is_null() {
            copies.push(CStr::from_ptr(*entry).to_owned().into_raw());
            entry = entry.add(1);
        }
        copies.push(ptr::null_mut());
        environ = Box::leak(copies.into_boxed_slice()).as_mut_ptr();
    }
}
