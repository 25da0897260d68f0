//! Static files below the document root: regular files only, no directory listings, and no symbolic links out of the
//! root.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use super::conditional::{Precondition, Validators};
use super::path::RequestPath;
use super::range::{Selection, select};
use super::response::{Body, Response};
use crate::proto::http1::head::Head;

/// Opening a FIFO must not block, and a terminal must not become the controlling one.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Attempts of openat2, which fails with EAGAIN after a race with a rename.
const LOOKUP_ATTEMPTS: usize = 8;

/// The document root, held open.
pub struct Root {
    directory: OwnedFd,
    /// There is openat2 (Linux 5.6), which refuses paths out of the root: links within it are followed, absolute ones
    /// are refused. Without it no links are followed.
    has_openat2: bool,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
            .open(path)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("document root {}: {error}", path.display()))
            })?;
        let directory = OwnedFd::from(directory);
        let has_openat2 = openat2(&directory, ".", beneath(OFlag::O_PATH | OFlag::O_CLOEXEC)).is_ok();
        Ok(Self { directory, has_openat2 })
    }

    /// Behaves as on a kernel without openat2.
    #[cfg(test)]
    pub fn follow_no_links(&mut self) {
        self.has_openat2 = false;
    }

    /// Opens `path`, which may be of any file type.
    fn find(&self, path: &RequestPath) -> Result<File, Errno> {
        if !self.has_openat2 {
            return self.find_without_links(path);
        }
        let mut relative: PathBuf = path.components().iter().collect();
        if path.components().is_empty() {
            relative.push(".");
        }
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..LOOKUP_ATTEMPTS {
            result = openat2(&self.directory, &relative, beneath(READ));
            if !matches!(result, Err(Errno::EAGAIN)) {
                break;
            }
        }
        result.map(File::from)
    }

    fn find_without_links(&self, path: &RequestPath) -> Result<File, Errno> {
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Some((last, parents)) = path.components().split_last() else {
            return openat(&self.directory, ".", READ, Mode::empty()).map(File::from);
        };
        let mut directory = self.directory.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        for name in parents {
            directory = openat(&directory, name.as_os_str(), step, Mode::empty())?;
        }
        openat(&directory, last.as_os_str(), READ | OFlag::O_NOFOLLOW, Mode::empty()).map(File::from)
    }
}

/// Responds to a GET or HEAD for a path below the root.
pub fn serve(root: &Root, path: &RequestPath, head: &Head, now: SystemTime) -> Response {
    let index = path.is_directory().then(|| path.join("index.html"));
    let is_index = index.is_some();
    let path = index.as_ref().unwrap_or(path);
    match root.find(path).and_then(|file| Ok((metadata(&file)?, file))) {
        Ok((metadata, file)) if metadata.is_file() => content(path, file, &metadata, head, now),
        Ok((metadata, _)) if metadata.is_dir() && !is_index => {
            let query = head.query().map(|query| format!("?{query}")).unwrap_or_default();
            Response::redirect(now, 301, &(path.to_directory_url() + &query))
        }
        Ok(_) => super::not_found(now),
        Err(Errno::EACCES | Errno::EPERM) => {
            Response::error(now, 403, "the server is not permitted to read this file", &[])
        }
        Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) => {
            Response::error(now, 503, "the server is busy", &[("Retry-After", "1")])
        }
        Err(Errno::EIO) => Response::error(now, 500, "cannot read the file", &[]),
        // The client does not learn whether it is missing, a link out of the root, or has too long a name.
        Err(_) => super::not_found(now),
    }
}

fn content(path: &RequestPath, file: File, metadata: &Metadata, head: &Head, now: SystemTime) -> Response {
    let size = metadata.len();
    let modified = metadata.modified().unwrap_or(now);
    let validators = Validators::new(metadata.ino(), size, modified, now);
    let etag = validators.etag();
    let last_modified = validators.last_modified();
    let media_type = media_type(Path::new(path.name()));
    let mut headers =
        vec![("ETag", etag.as_str()), ("Last-Modified", &last_modified), ("Accept-Ranges", "bytes")];
    match validators.evaluate(head) {
        Precondition::NotModified => return Response::new(now, 304, &headers, Body::Empty),
        Precondition::Failed => return Response::error(now, 412, "a precondition is not met", &headers),
        Precondition::Met => {}
    }
    let selection = match head.header("Range") {
        // RFC 9110 14.2: Range is for GET only.
        Some(range) if head.method() == "GET" && validators.allows_range(head) => select(range, size),
        _ => Selection::Whole,
    };
    headers.push(("Content-Type", &media_type));
    match selection {
        Selection::Whole => Response::new(now, 200, &headers, Body::File { file, offset: 0, length: size }),
        Selection::Part { offset, length } => {
            let range = format!("bytes {offset}-{}/{size}", offset + length - 1);
            headers.push(("Content-Range", &range));
            Response::new(now, 206, &headers, Body::File { file, offset, length })
        }
        Selection::Unsatisfiable => {
            let range = format!("bytes */{size}");
            Response::error(now, 416, "the range is outside the file", &[("Content-Range", &range)])
        }
    }
}

/// The media type for the extension; text is assumed to be UTF-8.
fn media_type(name: &Path) -> String {
    let guess = mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream");
    let charset = if guess.starts_with("text/") { "; charset=utf-8" } else { "" };
    format!("{guess}{charset}")
}

fn metadata(file: &File) -> Result<Metadata, Errno> {
    file.metadata().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
}

fn beneath(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}
