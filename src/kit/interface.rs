//! The interface to handlers, as this executable carries it: what `wshd new` and `wshd run` compile with.

/// The headers, by name; that of C first.
pub const HEADERS: [(&str, &str); 2] = [
    ("ws_handler.h", include_str!("../../include/ws_handler.h")),
    ("ws_handler.hpp", include_str!("../../include/ws_handler.hpp")),
];

/// Makes pairs of a path within the crate ws-handler and the text there.
macro_rules! files_of_the_crate {
    ($($path:literal)*) => {
        &[$(($path, include_str!(concat!("../../include/rust/", $path)))),*]
    };
}

/// The crate ws-handler without its tests.
pub const CRATE: &[(&str, &str)] = files_of_the_crate! {
    "Cargo.toml"
    "src/bytes.rs"
    "src/conn.rs"
    "src/error.rs"
    "src/export.rs"
    "src/handshake.rs"
    "src/host.rs"
    "src/lib.rs"
    "src/raw.rs"
    "src/session.rs"
    "src/style.rs"
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn no_file_of_the_crate_is_missing() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/rust/src");
        let names =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let tests = ["fake.rs", "tests.rs"];
        let there: BTreeSet<String> = names.filter(|name| !tests.contains(&name.as_str())).collect();
        let carried = super::CRATE.iter().filter_map(|(path, _)| path.strip_prefix("src/"));
        assert_eq!(there, carried.map(str::to_owned).collect());
    }
}
