//! Finding handlers: `a/b_wsh.so` below the root serves `/a/b`. Looks at names, links and permissions only, never into
//! a file. The walk is sorted and bounded, and follows no link to a directory.

use std::fmt::Display;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How the name of a handler ends.
pub const SUFFIX: &str = "_wsh.so";
/// Directories below this depth are not searched.
pub const MAX_DEPTH: usize = 16;
/// Files and directories beyond this number are not looked at.
pub const MAX_ENTRIES: usize = 100_000;
/// Handlers beyond this number are left out.
pub const MAX_HANDLERS: usize = 4096;

/// What to search, and how.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Resources are named from here.
    pub root: &'a Path,
    /// Search only this directory below the root.
    pub scan_dir: Option<&'a Path>,
    /// Take handlers whose real path is outside the root.
    pub allow_outside: bool,
    /// Refuse what another user owns or may write: set when running as root, since a handler's code would run as root.
    pub trusted_owner: Option<u32>,
}

/// A file that may be a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path of the requests it is for.
    pub resource: String,
    /// Its real path.
    pub file: PathBuf,
    /// Device and inode: the same file under another name is the same to the dynamic linker.
    pub identity: (u64, u64),
}

/// Searches for handlers: what was found, sorted by resource, and what was left out, each with the reason. An error:
/// nothing can be searched.
pub fn scan(scan: Scan<'_>) -> Result<(Vec<Found>, Vec<String>), String> {
    let root = directory("handler directory", scan.root)?;
    let start = match scan.scan_dir {
        Some(path) => directory("scan directory", path)?,
        None => root.clone(),
    };
    let Ok(below) = start.strip_prefix(&root) else {
        return Err(format!(
            "scan directory {}: expected a directory below the handler directory {}",
            start.display(),
            root.display()
        ));
    };
    let depth = below.components().count();
    let mut walk = Walk { scan, root: &root, found: Vec::new(), skipped: Vec::new(), entries: 0 };
    // The directories between the root and the one to search decide about it as well.
    let above: Vec<&Path> = start.ancestors().skip(1).take(depth).collect();
    if above.iter().rev().all(|dir| walk.is_trusted_path(dir)) {
        walk.directory(&start, depth);
    }
    let Walk { mut found, skipped, .. } = walk;
    found.sort_by(|a, b| a.resource.cmp(&b.resource));
    Ok((found, skipped))
}

fn directory(what: &str, path: &Path) -> Result<PathBuf, String> {
    let failed = |error: io::Error| format!("{what} {}: {error}", path.display());
    let real = path.canonicalize().map_err(failed)?;
    match real.metadata().map_err(failed)?.is_dir() {
        true => std::fs::read_dir(&real).map(|_| real).map_err(failed),
        false => Err(failed(io::ErrorKind::NotADirectory.into())),
    }
}

struct Walk<'a> {
    scan: Scan<'a>,
    /// Real path of the root.
    root: &'a Path,
    found: Vec<Found>,
    skipped: Vec<String>,
    entries: usize,
}

impl Walk<'_> {
    /// Searches a directory given by its real path.
    fn directory(&mut self, path: &Path, depth: usize) {
        if depth > MAX_DEPTH {
            return self.skip(path, format!("more than {MAX_DEPTH} directories deep"));
        }
        if !self.is_trusted_path(path) {
            return;
        }
        let entries = std::fs::read_dir(path).and_then(|dir| {
            let left = MAX_ENTRIES.saturating_sub(self.entries);
            dir.take(left.saturating_add(1)).collect::<io::Result<Vec<DirEntry>>>()
        });
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.skip(path, error),
        };
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return self.skip(path, format!("more than {MAX_ENTRIES} files, the rest is not searched"));
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.directory(&path, depth + 1),
                Ok(kind) if kind.is_symlink() && path.is_dir() => {
                    self.skip(&path, "a symbolic link to a directory is not followed");
                }
                Ok(_) => self.file(&path),
                Err(error) => self.skip(&path, error),
            }
        }
    }

    fn file(&mut self, path: &Path) {
        if !path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            return;
        }
        let Some(resource) = self.resource(path) else {
            let why = "no request can name it: expected letters, digits and -._~!$&'()*+,;=:@ only";
            return self.skip(path, why);
        };
        if self.found.len() == MAX_HANDLERS {
            return self.skip(path, format!("more than {MAX_HANDLERS} handlers"));
        }
        let (file, metadata) = match path.canonicalize().and_then(|file| Ok((file.metadata()?, file))) {
            Ok((metadata, file)) => (file, metadata),
            Err(error) => return self.skip(path, error),
        };
        if !metadata.is_file() {
            return self.skip(path, "expected a regular file");
        }
        let is_inside = file.starts_with(self.root);
        if !is_inside && !self.scan.allow_outside {
            let why = format!("its real path {} is outside the handler directory", file.display());
            return self.skip(path, why);
        }
        // The walk has been through the directories above `path`; a link may lead through others.
        if !self.is_trusted(&file, &metadata) || !file.parent().is_some_and(|dir| self.is_trusted_path(dir)) {
            return;
        }
        let identity = (metadata.dev(), metadata.ino());
        self.found.push(Found { resource, file, identity });
    }

    /// The resource of a file below the root, if a request can name it.
    fn resource(&self, path: &Path) -> Option<String> {
        let below = path.strip_prefix(self.root).ok()?.to_str()?.strip_suffix(SUFFIX)?;
        below.bytes().all(is_path_byte).then(|| format!("/{below}"))
    }

    fn is_trusted_path(&mut self, path: &Path) -> bool {
        match path.symlink_metadata() {
            Ok(metadata) => self.is_trusted(path, &metadata),
            Err(error) => {
                self.skip(path, error);
                false
            }
        }
    }

    /// Whether nobody else may change this. A sticky directory is no exception: others may add files to it.
    fn is_trusted(&mut self, path: &Path, metadata: &Metadata) -> bool {
        let Some(owner) = self.scan.trusted_owner else { return true };
        let who = match metadata.mode() {
            _ if metadata.uid() != owner => format!("user {}", metadata.uid()),
            mode if mode & 0o002 != 0 => "everybody".to_owned(),
            mode if mode & 0o020 != 0 => format!("group {}", metadata.gid()),
            _ => return true,
        };
        self.skip(path, format!("refused: {who} may write it, and its code would run as root"));
        false
    }

    fn skip(&mut self, path: &Path, why: impl Display) {
        let skipped = format!("{}: {why}", path.display());
        if !self.skipped.contains(&skipped) {
            self.skipped.push(skipped);
        }
    }
}

/// RFC 3986 3.3: what stands for itself in a path; "%" does not.
pub fn is_path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    /// A directory with these files in it.
    fn tree(files: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn plain(root: &Path) -> Scan<'_> {
        Scan { root, scan_dir: None, allow_outside: false, trusted_owner: None }
    }

    fn resources(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| found.resource.as_str()).collect()
    }

    /// The reasons, with the names below `dir`.
    fn reasons(skipped: &[String], dir: &Path) -> Vec<String> {
        let dir = format!("{}/", dir.canonicalize().unwrap().display());
        skipped.iter().map(|skipped| skipped.replace(&dir, "")).collect()
    }

    #[test]
    fn files_become_resources_in_order() {
        let dir = tree(&["b_wsh.so", "a/z_wsh.so", "a/b/c_wsh.so", "a_wsh.so", "_wsh.so", "a/_wsh.so"]);
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert_eq!(resources(&found), ["/", "/a", "/a/", "/a/b/c", "/a/z", "/b"]);
        assert!(found[3].file.ends_with("a/b/c_wsh.so"));
        assert!(skipped.is_empty());
    }

    #[test]
    fn other_files_are_passed_over_in_silence() {
        let dir = tree(&["a.so", "a_wsh.so.bak", "a_wsh.c", "wsh.so", "a_wsh.SO", "README"]);
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert!(found.is_empty() && skipped.is_empty());
    }

    #[test]
    fn names_that_no_request_can_have_are_skipped_with_a_warning() {
        let dir = tree(&[
            "a b_wsh.so",
            "a%20b_wsh.so",
            "caf\u{e9}_wsh.so",
            "x#_wsh.so",
            "x?_wsh.so",
            "ok~!$_wsh.so",
        ]);
        std::fs::write(dir.path().join(OsStr::from_bytes(b"\xff_wsh.so")), "").unwrap();
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert_eq!(resources(&found), ["/ok~!$"]);
        assert_eq!(skipped.len(), 6);
        assert!(skipped.iter().all(|skipped| skipped.contains("no request can name it")), "{skipped:?}");
    }

    #[test]
    fn a_scan_dir_limits_the_search_but_not_the_name() {
        let dir = tree(&["a_wsh.so", "sub/b_wsh.so", "sub/x/c_wsh.so", "subway/d_wsh.so"]);
        let sub = dir.path().join("sub");
        let (found, _) = scan(Scan { scan_dir: Some(&sub), ..plain(dir.path()) }).unwrap();
        assert_eq!(resources(&found), ["/sub/b", "/sub/x/c"]);
    }

    #[test]
    fn a_scan_dir_must_be_below_the_root_by_components() {
        let dir = tree(&["h/a_wsh.so", "handlers/b_wsh.so", "h/sub/c_wsh.so"]);
        let root = dir.path().join("h");
        for outside in ["handlers", ".", "h/../handlers"] {
            let scan_dir = dir.path().join(outside);
            let error = scan(Scan { scan_dir: Some(&scan_dir), ..plain(&root) }).unwrap_err();
            assert!(error.contains("expected a directory below"), "{outside}: {error}");
        }
        symlink(dir.path().join("handlers"), root.join("link")).unwrap();
        let scan_dir = root.join("link");
        assert!(scan(Scan { scan_dir: Some(&scan_dir), ..plain(&root) }).is_err());
        for inside in ["h", "h/sub", "h/sub/.."] {
            let scan_dir = dir.path().join(inside);
            scan(Scan { scan_dir: Some(&scan_dir), ..plain(&root) }).unwrap();
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tree(&["file"]);
        let error = scan(plain(&dir.path().join("nowhere"))).unwrap_err();
        assert!(error.starts_with("handler directory "), "{error}");
        assert!(error.contains("/nowhere: "), "{error}");
        let error = scan(plain(&dir.path().join("file"))).unwrap_err();
        assert!(error.contains("/file: "), "{error}");
    }

    #[test]
    fn a_handler_whose_real_path_leaves_the_root_is_skipped_unless_allowed() {
        let outside = tree(&["evil_wsh.so"]);
        let dir = tree(&["real/a_wsh.so"]);
        symlink(outside.path().join("evil_wsh.so"), dir.path().join("evil_wsh.so")).unwrap();
        symlink("real/a_wsh.so", dir.path().join("same_wsh.so")).unwrap();
        symlink("nowhere", dir.path().join("broken_wsh.so")).unwrap();
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert_eq!(resources(&found), ["/real/a", "/same"]);
        assert_eq!(found[0].file, found[1].file);
        assert_eq!(found[0].identity, found[1].identity);
        let reasons = reasons(&skipped, dir.path());
        assert!(reasons[0].starts_with("broken_wsh.so: "), "{reasons:?}");
        assert!(reasons[1].ends_with("/evil_wsh.so is outside the handler directory"), "{reasons:?}");
        let (found, _) = scan(Scan { allow_outside: true, ..plain(dir.path()) }).unwrap();
        assert_eq!(resources(&found), ["/evil", "/real/a", "/same"]);
    }

    #[test]
    fn a_root_that_is_a_link_is_no_escape() {
        let dir = tree(&["real/a_wsh.so"]);
        symlink("real", dir.path().join("link")).unwrap();
        let (found, skipped) = scan(plain(&dir.path().join("link"))).unwrap();
        assert_eq!(resources(&found), ["/a"]);
        assert!(skipped.is_empty());
    }

    #[test]
    fn a_link_to_a_directory_is_not_followed() {
        let dir = tree(&["sub/a_wsh.so"]);
        symlink(".", dir.path().join("sub/loop")).unwrap();
        symlink("sub", dir.path().join("other")).unwrap();
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert_eq!(resources(&found), ["/sub/a"]);
        assert_eq!(
            reasons(&skipped, dir.path()),
            [
                "other: a symbolic link to a directory is not followed",
                "sub/loop: a symbolic link to a directory is not followed"
            ]
        );
    }

    #[test]
    fn the_walk_has_a_bottom() {
        let deep = "d/".repeat(MAX_DEPTH);
        let dir = tree(&[&format!("{deep}a_wsh.so"), &format!("{deep}d/b_wsh.so")]);
        let (found, skipped) = scan(plain(dir.path())).unwrap();
        assert_eq!(resources(&found), [format!("/{deep}a")]);
        assert!(skipped[0].contains("16 directories deep"), "{skipped:?}");
    }

    #[test]
    fn what_others_may_write_is_refused_as_root() {
        let dir = tree(&["ok_wsh.so", "file_wsh.so", "group_wsh.so", "dir/a_wsh.so", "sticky/a_wsh.so"]);
        let mode = |path: &str, mode| {
            std::fs::set_permissions(dir.path().join(path), PermissionsExt::from_mode(mode)).unwrap();
        };
        for (path, bits) in [
            ("ok_wsh.so", 0o755),
            ("file_wsh.so", 0o757),
            ("group_wsh.so", 0o775),
            ("dir", 0o777),
            ("sticky", 0o1777),
            ("dir/a_wsh.so", 0o755),
            ("sticky/a_wsh.so", 0o755),
        ] {
            mode(path, bits);
        }
        let owner = dir.path().metadata().unwrap().uid();
        let as_root = Scan { trusted_owner: Some(owner), ..plain(dir.path()) };
        let (found, skipped) = scan(as_root).unwrap();
        assert_eq!(resources(&found), ["/ok"]);
        let names: Vec<String> = reasons(&skipped, dir.path());
        let names: Vec<&str> = names.iter().filter_map(|reason| reason.split(':').next()).collect();
        assert_eq!(names, ["dir", "file_wsh.so", "group_wsh.so", "sticky"]);
        assert!(skipped[1].contains("everybody may write it"), "{skipped:?}");

        mode(".", 0o777);
        let (found, skipped) = scan(as_root).unwrap();
        assert!(found.is_empty());
        assert_eq!(skipped.len(), 1, "{skipped:?}");
        let sub = dir.path().join("dir");
        mode("dir", 0o755);
        let (found, _) = scan(Scan { scan_dir: Some(&sub), ..as_root }).unwrap();
        assert!(found.is_empty(), "a directory between the root and the scanned one counts");

        let (found, _) = scan(plain(dir.path())).unwrap();
        assert_eq!(found.len(), 5, "as another user nothing is refused");
    }

    #[test]
    fn what_another_user_owns_is_refused_as_root() {
        let dir = tree(&["a_wsh.so"]);
        let somebody = dir.path().metadata().unwrap().uid() + 1;
        let (found, skipped) = scan(Scan { trusted_owner: Some(somebody), ..plain(dir.path()) }).unwrap();
        assert!(found.is_empty());
        assert!(skipped[0].contains(&format!("user {} may write it", somebody - 1)), "{skipped:?}");
    }

    #[test]
    fn a_link_to_what_others_may_write_is_refused_as_root() {
        let outside = tree(&["evil_wsh.so"]);
        std::fs::set_permissions(outside.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let dir = tree(&[]);
        symlink(outside.path().join("evil_wsh.so"), dir.path().join("evil_wsh.so")).unwrap();
        let owner = Some(dir.path().metadata().unwrap().uid());
        let as_root = Scan { allow_outside: true, trusted_owner: owner, ..plain(dir.path()) };
        let (found, skipped) = scan(as_root).unwrap();
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(skipped.len(), 1);
    }
}
