//! The interface to handlers, as this executable carries it: what `wshd new` and `wshd run` compile with.

/// The headers, by name; that of C first.
pub const HEADERS: [(&str, &str); 2] = [
    ("ws_handler.h", include_str!("../../include/ws_handler.h")),
    ("ws_handler.hpp", include_str!("../../include/ws_handler.hpp")),
];

/// The crate ws-handler: paths within it and texts. build.rs lists them.
pub const CRATE: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ws_handler_crate.rs"));
