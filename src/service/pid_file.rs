//! The pid file: while a server serves it is there, whole and locked, so that a second server with the same file does
//! not start. The locks are those of fcntl(2), which belong to the supervisor alone: not to its workers, nor to what a
//! handler starts.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{AccessFlags, eaccess};
use tempfile::{Builder, NamedTempFile};

use crate::exit::{Exit, Failure};

/// The pid file of a server that serves.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Locked, and under this name unless somebody has replaced it.
    file: File,
}

/// How often a file that comes and goes is looked at.
const TRIES: u32 = 8;

impl PidFile {
    /// Whether no other server holds the file, and one can be made in its directory. Leaves nothing there.
    pub fn check(path: &Path) -> Result<(), Failure> {
        match open(path).and_then(|file| try_lock(&file)).map_err(|error| not_written(path, &error))? {
            Some(holder) => Err(held(path, holder)),
            None => Self::check_directory(path),
        }
    }

    /// Whether a file can be made in its directory.
    pub fn check_directory(path: &Path) -> Result<(), Failure> {
        let check = |directory| Ok(eaccess(directory, AccessFlags::W_OK | AccessFlags::X_OK)?);
        directory(path).and_then(check).map_err(|error| not_written(path, &error))
    }

    /// Puts the file there, whole and locked. One that a server has left behind is replaced, one that is held is not.
    pub fn place(path: &Path) -> Result<Self, Failure> {
        let failed = |error| not_written(path, &error);
        let mut draft = draft(path).map_err(failed)?;
        for _ in 0..TRIES {
            draft = match draft.persist_noclobber(path) {
                Ok(file) => return Ok(Self { path: path.to_owned(), file }),
                Err(kept) if kept.error.kind() == io::ErrorKind::AlreadyExists => kept.file,
                Err(kept) => return Err(failed(kept.error)),
            };
            // Stays locked until it is replaced: of two servers that find it, one gets it.
            let stale = open(path).map_err(failed)?;
            if let Some(holder) = try_lock(&stale).map_err(failed)? {
                return Err(held(path, holder));
            }
            if stale.as_ref().is_some_and(|stale| is_at(stale, path)) {
                return Self::replace(path, draft);
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// The same whoever holds the file: an upgrade, in which the old server knows.
    pub fn take_over(path: &Path) -> Result<Self, Failure> {
        draft(path).map_err(|error| not_written(path, &error)).and_then(|draft| Self::replace(path, draft))
    }

    fn replace(path: &Path, draft: NamedTempFile) -> Result<Self, Failure> {
        let file = draft.persist(path).map_err(|kept| not_written(path, &kept.error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Whether it is still the one that was placed.
    pub fn is_there(&self) -> bool {
        is_at(&self.file, &self.path)
    }

    /// Removes it, unless it is a successor's.
    pub fn remove(self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path); // if that fails the next server finds that nobody holds it
        }
    }
}

/// The pid file under another name, locked, for the moment until it is placed.
fn draft(path: &Path) -> io::Result<NamedTempFile> {
    let mut draft = Builder::new()
        .prefix(".pid")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory(path)?)?;
    writeln!(draft, "{}", std::process::id())?;
    try_lock(&Some(draft.as_file()))?;
    Ok(draft)
}

fn directory(path: &Path) -> io::Result<&Path> {
    path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(directory.unwrap_or(Path::new(".")))
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    Failure(Exit::Config, format!("--pid-file {}: {error}", path.display()))
}

fn held(path: &Path, holder: i32) -> Failure {
    Failure(Exit::Bind, format!("--pid-file {}: another server, process {holder}, holds it", path.display()))
}

/// What is there, if anything.
fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks the whole file, for as long as it is open. Who holds it if that is somebody else.
fn try_lock(file: &Option<impl std::os::fd::AsFd>) -> io::Result<Option<i32>> {
    let Some(file) = file else { return Ok(None) };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(None),
        Err(Errno::EACCES | Errno::EAGAIN) => {
            fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
            Ok(Some(lock.l_pid))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether this is the file of this name.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |file: fs::Metadata| (file.dev(), file.ino());
    file.metadata().ok().map(id).is_some_and(|ours| path.symlink_metadata().ok().map(id) == Some(ours))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, unsafe_code)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, fork};

    use super::*;
    use crate::clock;
    use crate::fleet::process::alone::is_alone;

    fn files(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    // Locks of one process do not exclude each other: what a second server finds is in tests/daemon.rs.
    #[test]
    fn it_appears_whole_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        PidFile::check(&path).unwrap();
        assert_eq!(files(dir.path()), [""; 0], "nothing before it serves");
        let file = PidFile::place(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(files(dir.path()), ["pid"]);
        file.remove();
        assert_eq!(files(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_server_has_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        PidFile::check(&path).unwrap();
        let _file = PidFile::place(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(files(dir.path()), ["pid"]);
    }

    /// Two processes find a stale file at the same time, again and again.
    #[test]
    fn one_of_two_servers_gets_a_stale_file() {
        if !is_alone() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for round in 0..300 {
            let path = dir.path().join(format!("{round}"));
            fs::write(&path, "1\n").unwrap();
            let at = clock::now() + Duration::from_millis(2);
            let ((mut results, result), (release, hold)) = (io::pipe().unwrap(), io::pipe().unwrap());
            let compete = || {
                // SAFETY: the child writes files and ends; it shares no lock with another thread but the allocator's,
                // which fork leaves usable.
                match unsafe { fork() }.unwrap() {
                    ForkResult::Parent { child } => child,
                    ForkResult::Child => {
                        while clock::now() < at {}
                        let won = PidFile::place(&path);
                        let _ = (&result).write_all(&[won.is_ok().into()]);
                        // The file stays locked until both have tried.
                        let _ = (&release).read(&mut [0]);
                        // SAFETY: ends the child without running anything of the test harness.
                        unsafe { libc::_exit(0) }
                    }
                }
            };
            let children = [compete(), compete()];
            let mut won = [0; 2];
            results.read_exact(&mut won).unwrap();
            (&hold).write_all(&[0; 2]).unwrap();
            children.into_iter().for_each(|child| assert!(waitpid(child, None).is_ok()));
            assert_eq!(won.iter().sum::<u8>(), 1, "round {round}");
        }
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let old = PidFile::place(&path).unwrap();
        let new = PidFile::take_over(&path).unwrap();
        assert!(!old.is_there());
        old.remove();
        assert!(path.exists());
        new.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_or_a_place_that_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("pid");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        let Failure(_, error) = PidFile::check(&link).unwrap_err();
        assert!(error.starts_with(&format!("--pid-file {}: ", link.display())), "{error}");
        assert!(PidFile::check("/nowhere/pid".as_ref()).is_err());
        assert!(PidFile::check("/".as_ref()).is_err());
        assert!(PidFile::check("pid".as_ref()).is_ok(), "in the working directory");
    }
}
