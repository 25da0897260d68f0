//! Loading a plugin: dlopen, the entry function, and the checks of its table. Runs code of the plugin, so only workers
//! and probes call it, never the supervisor. Nothing is ever unloaded.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{fmt, ptr};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use serde::{Deserialize, Serialize};
use ws_handler::raw;

/// Writes a log line of a handler: its name, the level (`WS_LOG_*`), the connection or 0, the text. Called on any
/// thread.
pub type Log = Box<dyn Fn(&str, u32, raw::ws_conn, &str) + Send + Sync>;

/// The host's side of a handler that is loaded.
pub struct LoadOptions {
    /// The handler's number in this process.
    pub number: u16,
    /// The worker's number in its pool.
    pub worker: u32,
    /// The handler's section of the configuration.
    pub settings: Vec<(String, String)>,
    /// Whether it may call `ws_send_raw`.
    pub raw: bool,
    /// Writes its log lines.
    pub log: Log,
}

/// How a handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// `on_message`, on the event loop.
    Event,
    /// `transfer_data`, on a thread for each connection.
    Blocking,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Style::Event => "event",
            Style::Blocking => "blocking",
        })
    }
}

/// A loaded handler.
pub struct Plugin {
    /// A copy of the handler's table at full size: members that the handler's own lacks are null or 0.
    pub table: &'static raw::ws_handler,
    /// The table's, or the file's without `_wsh.so`.
    pub name: String,
    /// The handler's version; may be empty.
    pub version: String,
    /// The subprotocols in order of preference; each a token.
    pub protocols: Vec<String>,
    /// Which of the two styles it is.
    pub style: Style,
    /// The file it was loaded from.
    pub path: PathBuf,
}

// SAFETY: the table and the strings it points to never change and live as long as the process (ws_handler.h).
unsafe impl Send for Plugin {}
// SAFETY: as above; the table is only read.
unsafe impl Sync for Plugin {}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}

/// Loads the handler in `path` into this process. Runs the plugin's constructors and its entry function. The object
/// stays loaded even on an error, which does not name the file: the caller knows it.
pub fn load(path: &Path, given: LoadOptions) -> Result<Plugin, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let path = path.canonicalize().map_err(unreadable)?; // dlopen would search for a name without a slash
    let start = start_of(&path).map_err(unreadable)?;
    if start != b"\x7fELF" {
        let expected = "expected 7f 45 4c 46 (ELF)";
        return Err(format!("not a shared object: got a file that begins with {start:02x?}, {expected}"));
    }
    let file_name = default_name(&path);
    // SAFETY: the caller is a worker or probe, which may crash in the constructors.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("cannot be loaded: {}", link_message(&error)))?;
    // SAFETY: the header defines this symbol as a function of this type.
    let entry = unsafe { library.get::<raw::ws_handler_entry>(raw::ENTRY_SYMBOL) };
    let entry = entry.map(|symbol| *symbol);
    let entry = entry.map_err(|_| format!("exports no {}: is WS_HANDLER(...) missing?", raw::ENTRY_SYMBOL));
    std::mem::forget(library); // never unloaded: its threads may run, and pointers into it may be in use
    let host = super::table::table(&file_name, given);
    // SAFETY: the symbol is the entry function, and the host's table lives as long as the process.
    let table = unsafe { entry?(host) };
    // SAFETY: the entry function returned this table, which lives as long as the process (ws_handler.h).
    let table = unsafe { copy_table(table) }?;
    let unknown = table.flags & MUST_BE_KNOWN & !KNOWN_FLAGS;
    if unknown != 0 {
        let what = "which this version does not know: it needs a newer wshd";
        return Err(format!("flags: got {unknown:#x}, {what}"));
    }
    let style = match (table.transfer_data.is_some(), table.on_message.is_some()) {
        (true, false) => Style::Blocking,
        (false, true) => Style::Event,
        (false, false) => {
            return Err(
                "neither transfer_data nor on_message is set, expected exactly one of them".to_owned()
            );
        }
        (true, true) => {
            return Err("transfer_data and on_message are both set, expected exactly one of them".to_owned());
        }
    };
    // SAFETY: the strings of the table are null or NUL-terminated and live as long as the process.
    let [name, version, protocols] =
        unsafe { [text(table.name), text(table.version), text(table.protocols)] };
    Ok(Plugin {
        table: Box::leak(Box::new(table)),
        name: name.filter(|name| !name.is_empty()).unwrap_or(file_name),
        version: version.unwrap_or_default(),
        protocols: split_protocols(&protocols.unwrap_or_default())?,
        style,
        path,
    })
}

/// Bits of the flags that a host must know to serve the handler; it may ignore the others.
const MUST_BE_KNOWN: u32 = 0xffff_0000;
const KNOWN_FLAGS: u32 = raw::WS_KEEP_REQUEST | raw::WS_STREAM | raw::WS_NO_EXTENSIONS;

/// The name of a handler whose table has none.
fn default_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix("_wsh.so").unwrap_or(&name).to_owned()
}

/// The members that every ABI has at the same place: size, abi and flags.
const PREFIX: usize = std::mem::offset_of!(raw::ws_handler, name);

/// A copy of the handler's table at our size.
///
/// # Safety
/// `table` must be null or point to as many readable bytes as its first member says.
unsafe fn copy_table(table: *const raw::ws_handler) -> Result<raw::ws_handler, String> {
    if table.is_null() {
        return Err(format!("{} returned NULL, expected a table", raw::ENTRY_SYMBOL));
    }
    // SAFETY: not null, and every table begins with its size.
    let size = unsafe { (*table).size };
    if size < PREFIX {
        let expected = format!("expected at least {PREFIX}; it must begin with its size");
        return Err(format!("table too small: got {size} bytes, {expected}"));
    }
    // SAFETY: the table has at least PREFIX bytes.
    let abi = unsafe { (*table).abi };
    if abi >> 16 != raw::WS_ABI_MAJOR {
        let got = format!("{}.{}", abi >> 16, abi & 0xffff);
        return Err(format!("made for another ABI: got {got}, expected {}.x", raw::WS_ABI_MAJOR));
    }
    // All members after the prefix are pointers; a truncated one counts as absent.
    let known = size.min(size_of::<raw::ws_handler>()) / size_of::<usize>() * size_of::<usize>();
    let mut copy = std::mem::MaybeUninit::<raw::ws_handler>::zeroed();
    // SAFETY: `known` is within both tables, which do not overlap; zeroed members are null, None or 0, all valid.
    unsafe {
        ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), known);
        Ok(copy.assume_init())
    }
}

/// # Safety
/// `string` must be null or NUL-terminated.
unsafe fn text(string: *const c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: promised by the caller; not null.
    Some(unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned())
}

/// The first bytes of a regular file.
fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut start = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(start)
}

/// The message of dlerror(), which libloading has as the source of its error.
fn link_message(error: &libloading::Error) -> String {
    match error {
        libloading::Error::DlOpen { source } => format!("{source:?}").trim_matches('"').to_owned(),
        other => other.to_string(),
    }
}

fn split_protocols(list: &str) -> Result<Vec<String>, String> {
    let mut protocols: Vec<String> = Vec::new();
    for protocol in list.split(',').map(|protocol| protocol.trim_matches([' ', '\t'])) {
        match protocol {
            "" => {}
            _ if is_token(protocol) && !protocols.iter().any(|p| p == protocol) => {
                protocols.push(protocol.to_owned());
            }
            // RFC 6455 4.2.2.
            _ => {
                return Err(format!(
                    "protocols: got {list:?}, expected tokens separated by commas, each once"
                ));
            }
        }
    }
    Ok(protocols)
}

/// RFC 9110 5.6.2.
fn is_token(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_tokens_each_once() {
        assert_eq!(split_protocols(" chat.v2 ,chat.v1,, ").unwrap(), ["chat.v2", "chat.v1"]);
        assert!(split_protocols("").unwrap().is_empty());
        for wrong in ["chat v2", "a,b,a", "a\r\nX: y", "caf\u{e9}", "a;q=1"] {
            assert!(split_protocols(wrong).unwrap_err().starts_with("protocols: got "), "{wrong}");
        }
    }

    #[test]
    fn a_handler_without_a_name_is_named_after_its_file() {
        assert_eq!(default_name(Path::new("/a/echo_wsh.so")), "echo");
        assert_eq!(default_name(Path::new("/a/other.so")), "other.so");
    }

    #[test]
    fn members_past_the_end_of_a_short_table_are_absent() {
        // The table ends in the middle of `version`; what follows must not be read.
        let mut table = std::mem::MaybeUninit::<raw::ws_handler>::zeroed();
        // SAFETY: zeroed is valid, see copy_table; the name points to a static string.
        let copy = unsafe {
            let raw = table.as_mut_ptr();
            (*raw).size = std::mem::offset_of!(raw::ws_handler, version) + 4;
            (*raw).abi = raw::WS_ABI + 9;
            (*raw).name = c"old".as_ptr();
            (*raw).version = c"garbage".as_ptr();
            copy_table(raw).unwrap()
        };
        assert!(!copy.name.is_null());
        assert!(copy.version.is_null());
    }
}
