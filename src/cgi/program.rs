//! Finds the program of a request, and builds its environment (RFC 3875 section 4). Starts nothing.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::handover::RequestFacts;
use crate::http::{self, RequestPath, Response};
use crate::proto::http1::head::Head;

/// PATH of programs.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Fields that get no variable HTTP_...: they concern the connection, have a variable of their own, are secret, or
/// would be taken for a setting (HTTP_PROXY).
const HIDDEN: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "keep-alive",
    "proxy",
    "proxy-authorization",
    "sec-websocket-protocol", // may have a token, see jwt_protocol
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A program that can be started.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its real path.
    pub file: PathBuf,
    /// The part of the request's path that names it.
    script_name: OsString,
    /// The rest of the path; empty, or it begins with a slash.
    path_info: OsString,
}

/// Whether a request is for a program: its path is one of these directories or below one. Directories are relative to
/// the document root.
pub fn covers(directories: &[PathBuf], path: &str) -> bool {
    let Ok(path) = RequestPath::parse(path) else { return false };
    directory_of(directories, &path).is_some()
}

/// The number of components of the directory that a path is in.
fn directory_of(directories: &[PathBuf], path: &RequestPath) -> Option<usize> {
    let names = path.components();
    let of = |directory: &PathBuf| {
        let mut wanted = directory.components().map(|component| component.as_os_str());
        let count = directory.components().count();
        (names.len() >= count && names.iter().zip(&mut wanted).all(|(name, wanted)| name == wanted))
            .then_some(count)
    };
    directories.iter().filter_map(of).max()
}

impl Program {
    /// Finds the program of a path: below a directory of programs, the first component that is a file. The error is the
    /// response.
    pub fn find(root: &Path, directories: &[PathBuf], path: &str) -> Result<Self, Response> {
        let missing = || http::error(404, "no such program", &[]);
        let path = RequestPath::parse(path).map_err(|_| missing())?;
        let first = directory_of(directories, &path).ok_or_else(missing)?;
        let names = path.components();
        let root = root.canonicalize().map_err(|_| missing())?;
        let mut file: PathBuf = root.clone();
        file.extend(names.iter().take(first));
        for (at, name) in names.iter().enumerate().skip(first) {
            file.push(name);
            let known = file.metadata().map_err(|_| missing())?;
            if known.is_dir() {
                continue;
            }
            let file = file.canonicalize().ok().filter(|real| real.starts_with(&root)).ok_or_else(missing)?;
            if !known.is_file() || access(&file, AccessFlags::X_OK).is_err() {
                return Err(http::error(403, "this file cannot be executed", &[]));
            }
            let (script, rest) = names.split_at(at + 1);
            let mut path_info = joined(rest);
            if path.is_directory() {
                path_info.push("/");
            }
            return Ok(Self { file, script_name: joined(script), path_info });
        }
        Err(http::error(403, "this is a directory of programs", &[]))
    }

    /// Its name in the log.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        self.script_name.to_string_lossy()
    }

    /// All variables of the program. `local` is the server's end, if it has an address.
    pub fn environment(
        &self,
        root: &Path,
        head: &Head,
        facts: &RequestFacts,
        local: Option<SocketAddr>,
    ) -> Vec<(OsString, OsString)> {
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        let mut set = |name: &str, value: &OsStr| all.push((name.into(), value.to_owned()));
        set("GATEWAY_INTERFACE", "CGI/1.1".as_ref());
        set("SERVER_SOFTWARE", concat!("wshd/", env!("CARGO_PKG_VERSION")).as_ref());
        set("SERVER_PROTOCOL", if head.minor_version() == 0 { "HTTP/1.0" } else { "HTTP/1.1" }.as_ref());
        set("REQUEST_METHOD", head.method().as_ref());
        let resource = facts.resource.as_deref().unwrap_or(head.resource());
        set("REQUEST_URI", resource.as_ref());
        set("QUERY_STRING", resource.split_once('?').map_or("", |(_, query)| query).as_ref());
        set("SCRIPT_NAME", &self.script_name);
        set("SCRIPT_FILENAME", self.file.as_os_str());
        set("DOCUMENT_ROOT", root.as_os_str());
        set("PATH", PATH.as_ref());
        if facts.is_tls {
            set("HTTPS", "on".as_ref());
        }
        if !self.path_info.is_empty() {
            set("PATH_INFO", &self.path_info);
            let translated = [root.as_os_str().as_bytes(), self.path_info.as_bytes()].concat();
            set("PATH_TRANSLATED", &OsString::from_vec(translated));
        }
        let asked = head.host_and_port();
        let local_ip = local.map(|local| local.ip().to_canonical().to_string());
        let name = asked.as_ref().map(|asked| asked.host.to_owned()).or(local_ip);
        set("SERVER_NAME", name.unwrap_or_else(|| "localhost".to_owned()).as_ref());
        let port = asked.and_then(|asked| asked.port).or(local.map(|local| local.port()));
        let port = port.unwrap_or(if facts.is_tls { 443 } else { 80 });
        set("SERVER_PORT", port.to_string().as_ref());
        if let Some(peer) = facts.peer {
            let ip = peer.ip().to_canonical().to_string();
            set("REMOTE_ADDR", ip.as_ref());
            set("REMOTE_HOST", ip.as_ref());
            set("REMOTE_PORT", peer.port().to_string().as_ref());
        } else {
            set("REMOTE_ADDR", "127.0.0.1".as_ref());
        }
        if let Some(user) = &facts.user {
            set("REMOTE_USER", user.as_ref());
            set("AUTH_TYPE", auth_type(head).as_ref());
        }
        if let Some(length) = head.content_length().filter(|_| head.has_body()) {
            set("CONTENT_LENGTH", length.to_string().as_ref());
        }
        if let Some(value) = head.header("content-type") {
            set("CONTENT_TYPE", OsStr::from_bytes(value));
        }
        for (name, value) in fields(head) {
            set(&name, &OsString::from_vec(value));
        }
        all
    }
}

/// The authentication scheme of the request.
fn auth_type(head: &Head) -> &'static str {
    let value = head.header("authorization").unwrap_or_default();
    if value.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic")) {
        "Basic"
    } else {
        "Bearer"
    }
}

/// The variables HTTP_...; the values of a repeated field are joined. Fields with an underscore are omitted: their
/// variable would be that of a field with a hyphen.
fn fields(head: &Head) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in (0..).map_while(|index| head.header_at(index)) {
        if name.contains('_') || HIDDEN.iter().any(|hidden| name.eq_ignore_ascii_case(hidden)) {
            continue;
        }
        let variable = format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_"));
        match found.iter_mut().find(|(known, _)| *known == variable) {
            Some((_, all)) => {
                let comma: &[u8] = if variable == "HTTP_COOKIE" { b"; " } else { b", " };
                all.extend_from_slice(comma);
                all.extend_from_slice(value);
            }
            None => found.push((variable, value.to_vec())),
        }
    }
    found
}

fn joined(names: &[OsString]) -> OsString {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    OsString::from_vec(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{Permissions, create_dir_all, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::proto::http1::head::{HeadLimits, Parsed, parse};

    fn head(text: &str) -> Head {
        match parse(text.as_bytes(), &HeadLimits { bytes: 16_384, headers: 100 }) {
            Ok(Parsed::Head { head, .. }) => head,
            other => panic!("{other:?}"),
        }
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        create_dir_all(root.join("cgi/deep")).unwrap();
        for (name, mode) in [("cgi/a", 0o755), ("cgi/deep/b", 0o755), ("cgi/text", 0o644), ("page", 0o755)] {
            write(root.join(name), "").unwrap();
            set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
        }
        symlink("/bin/sh", root.join("cgi/out")).unwrap();
        dir
    }

    #[test]
    fn paths_below_the_directories_are_programs() {
        let directories = ["cgi".into(), "bin/x".into()];
        for path in ["/cgi", "/cgi/", "/cgi/a", "/c%67i/a/b", "/bin/x/y"] {
            assert!(covers(&directories, path), "{path}");
        }
        for path in ["/", "/cgi2/a", "/bin/xy", "/bin", "/a/cgi/a", "/cgi/.a", "/cgi/../x", "cgi/a", "*"] {
            assert!(!covers(&directories, path), "{path}");
        }
    }

    #[test]
    fn the_first_file_of_a_path_is_the_program() {
        let dir = tree();
        let find = |path: &str| Program::find(dir.path(), &["cgi".into()], path);
        let parts = |path: &str| {
            let found = find(path).unwrap();
            let text = |text: OsString| text.into_string().unwrap();
            (text(found.script_name), text(found.path_info))
        };
        for (path, script, info) in [
            ("/cgi/a", "/cgi/a", ""),
            ("/cgi/a/", "/cgi/a", "/"),
            ("/cgi/a/b%20c/d/", "/cgi/a", "/b c/d/"),
            ("/cgi/deep/b/x", "/cgi/deep/b", "/x"),
        ] {
            assert_eq!(parts(path), (script.to_owned(), info.to_owned()), "{path}");
        }
        for (path, status) in [
            ("/cgi/", 403),
            ("/cgi/deep", 403),
            ("/cgi/none", 404),
            ("/cgi/text", 403),
            ("/cgi/out", 404),
            ("/page", 404),
        ] {
            assert_eq!(find(path).unwrap_err().status(), status, "{path}");
        }
    }

    #[test]
    fn the_environment_of_a_program() {
        let dir = tree();
        let root = dir.path().canonicalize().unwrap();
        let program = Program::find(&root, &["cgi".into()], "/cgi/a/x").unwrap();
        let head = head(
            "POST /cgi/a/x?q=1&r HTTP/1.1\r\nHost: example.com:81\r\nAuthorization: basic YQ==\r\nProxy: evil\r\n\
             Content-Type: text/plain\r\nContent-Length: 3\r\nX-One: 1\r\nx-one: 2\r\nX_One: 3\r\nCookie: a\r\n\
             Cookie: b\r\nSec-WebSocket-Protocol: bearer.secret\r\nConnection: close\r\n\r\n",
        );
        let peer = Some("[::ffff:192.0.2.1]:4000".parse().unwrap());
        let facts = RequestFacts { peer, user: Some("ann".to_owned()), ..RequestFacts::default() };
        let mut all: Vec<String> = program
            .environment(&root, &head, &facts, None)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.to_str().unwrap(), value.to_str().unwrap()))
            .collect();
        all.sort();
        let root = root.to_str().unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "AUTH_TYPE=Basic CONTENT_LENGTH=3 CONTENT_TYPE=text/plain DOCUMENT_ROOT={root} GATEWAY_INTERFACE=CGI/1.1 \
             HTTP_COOKIE=a;_b HTTP_HOST=example.com:81 HTTP_X_ONE=1,_2 PATH={PATH} PATH_INFO=/x PATH_TRANSLATED={root}/x \
             QUERY_STRING=q=1&r REMOTE_ADDR=192.0.2.1 REMOTE_HOST=192.0.2.1 REMOTE_PORT=4000 REMOTE_USER=ann \
             REQUEST_METHOD=POST REQUEST_URI=/cgi/a/x?q=1&r SCRIPT_FILENAME={root}/cgi/a SCRIPT_NAME=/cgi/a \
             SERVER_NAME=example.com SERVER_PORT=81 SERVER_PROTOCOL=HTTP/1.1 SERVER_SOFTWARE=wshd/{version}"
        );
        let all: Vec<String> = all.into_iter().map(|line| line.replace(' ', "_")).collect();
        assert_eq!(all.join(" "), expected);
    }

    #[test]
    fn a_program_learns_of_tls() {
        let dir = tree();
        let program = Program::find(dir.path(), &["cgi".into()], "/cgi/a").unwrap();
        let head = head("GET /cgi/a HTTP/1.1\r\nHost: example.com\r\n\r\n");
        let of = |is_tls, local: Option<&str>| {
            let local = local.map(|local| local.parse().unwrap());
            let all = program.environment(
                dir.path(),
                &head,
                &RequestFacts { is_tls, ..RequestFacts::default() },
                local,
            );
            ["HTTPS", "SERVER_PORT"].map(|wanted| {
                let found = all.iter().find(|(name, _)| name == wanted);
                found.map_or(String::new(), |(_, value)| value.to_str().unwrap().to_owned())
            })
        };
        assert_eq!(of(true, None), ["on", "443"]);
        assert_eq!(of(true, Some("127.0.0.1:8443")), ["on", "8443"]);
        assert_eq!(of(false, None), ["", "80"]);
    }
}
