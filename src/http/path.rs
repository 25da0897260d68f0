//! Translates the path of a request to the name of a file below the document root.
//!
//! It is split first and each component decoded once, so that a decoded slash is not a separator. Hidden files, `.`,
//! `..` and handlers are refused.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The characters to encode in a path segment: all except the unreserved ones (RFC 3986 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path that may name a file: relative to the root, free of `.`, `..` and empty components.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestPath {
    components: Vec<OsString>,
    directory: bool,
}

/// Why a path names no file.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Malformed: 400, with the reason.
    Malformed(&'static str),
    /// Not served, whether it exists or not: 404.
    Hidden,
}

impl RequestPath {
    /// `path` is the target without the query, as sent.
    pub fn parse(path: &str) -> Result<Self, Refused> {
        let path =
            path.strip_prefix('/').ok_or(Refused::Malformed("the path does not begin with a slash"))?;
        if path.is_empty() {
            return Ok(Self { components: Vec::new(), directory: true });
        }
        let (path, directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let components = path.split('/').map(component).collect::<Result<_, _>>()?;
        Ok(Self { components, directory })
    }

    /// Whether it ends in a slash: it can only be a directory.
    pub fn is_directory(&self) -> bool {
        self.directory
    }

    /// The components from the root down.
    pub fn components(&self) -> &[OsString] {
        &self.components
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &str) -> Self {
        let mut components = self.components.clone();
        components.push(name.into());
        Self { components, directory: false }
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &OsStr {
        self.components.last().map_or(OsStr::new(""), |name| name)
    }

    /// The encoded path for a URL, with a slash at its end.
    pub fn to_directory_url(&self) -> String {
        let mut url = String::from("/");
        for name in &self.components {
            url.extend(percent_encode(name.as_bytes(), SEGMENT));
            url.push('/');
        }
        url
    }
}

fn component(segment: &str) -> Result<OsString, Refused> {
    if has_bad_escape(segment) {
        return Err(Refused::Malformed("a percent sign is not followed by two hexadecimal digits"));
    }
    let name: Cow<[u8]> = percent_decode_str(segment).into();
    if name.contains(&0) {
        return Err(Refused::Malformed("the path contains a NUL"));
    }
    let is_separator = name.is_empty() || name.contains(&b'/');
    let is_private = name.starts_with(b".") || name.ends_with(b"_wsh.so");
    if is_separator || is_private {
        return Err(Refused::Hidden);
    }
    Ok(OsStr::from_bytes(&name).to_owned())
}

/// RFC 3986 2.1: a percent sign and two hexadecimal digits, nothing else.
fn has_bad_escape(segment: &str) -> bool {
    segment
        .split('%')
        .skip(1)
        .any(|rest| !matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<String> {
        RequestPath::parse(path)
            .unwrap()
            .components
            .iter()
            .map(|name| name.to_str().unwrap().into())
            .collect()
    }

    #[test]
    fn splits_and_decodes_once() {
        assert_eq!(names("/"), [""; 0]);
        assert_eq!(names("/a/b.txt"), ["a", "b.txt"]);
        assert_eq!(names("/a%20b/%C3%A9"), ["a b", "é"]);
        assert_eq!(names("/%252e%252e/x"), ["%2e%2e", "x"]);
        assert!(RequestPath::parse("/").unwrap().is_directory());
        assert!(RequestPath::parse("/a/").unwrap().is_directory());
        assert!(!RequestPath::parse("/a").unwrap().is_directory());
    }

    #[test]
    fn keeps_names_that_are_not_utf8() {
        let path = RequestPath::parse("/%ff").unwrap();
        assert_eq!(path.name(), OsStr::from_bytes(b"\xff"));
        assert_eq!(path.to_directory_url(), "/%FF/");
    }

    #[test]
    fn hides_traversal_hidden_files_and_handlers() {
        for path in [
            "/..",
            "/../x",
            "/a/../x",
            "/.",
            "/./x",
            "/%2e%2e/x",
            "/.%2E/x",
            "/%2e/x",
            "/..%2fx",
            "/a%2Fb",
            "/a%2f",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.git/config",
            "/a/.htaccess",
            "/%2ehidden",
            "/echo_wsh.so",
            "/a/b_wsh%2Eso",
            "/_wsh.so",
            "/...",
        ] {
            assert_eq!(RequestPath::parse(path), Err(Refused::Hidden), "{path}");
        }
    }

    #[test]
    fn refuses_malformed_paths() {
        for path in ["", "*", "a", "/%", "/%2", "/%zz", "/a%2/b", "/%00", "/a%00.txt", "/%+1", "/%é"] {
            assert!(matches!(RequestPath::parse(path), Err(Refused::Malformed(_))), "{path}");
        }
    }

    #[test]
    fn a_directory_url_is_a_path_on_this_server() {
        let path = RequestPath::parse("/%5cevil.example").unwrap();
        assert_eq!(path.to_directory_url(), "/%5Cevil.example/");
        assert_eq!(RequestPath::parse("/a%20b/c").unwrap().to_directory_url(), "/a%20b/c/");
        assert_eq!(RequestPath::parse("/").unwrap().to_directory_url(), "/");
    }
}
