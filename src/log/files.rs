//! Rotation of log files by size. Only the supervisor and its children rename log files: workers may run as another
//! user or in another root, and receive open descriptors.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// When a file is rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Minimum size, in bytes; 0: never.
    pub size: u64,
    /// Number of old files to keep, at least 1.
    pub count: u32,
}

/// Whether the file is large enough to be rotated.
pub fn is_due(file: &File, rotation: Rotation) -> bool {
    let is_large = |metadata: fs::Metadata| metadata.is_file() && metadata.len() >= rotation.size;
    rotation.size != 0 && file.metadata().is_ok_and(is_large)
}

/// Renames `PATH` to `PATH.1`, `PATH.1` to `PATH.2` and so on; the oldest one is overwritten. Does nothing if `PATH` is
/// no longer this file. The error names the file that could not be renamed; the newer ones keep their names.
pub fn rename(path: &Path, file: &File, rotation: Rotation) -> io::Result<()> {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let there = fs::metadata(path).map(identity);
    if !there.is_ok_and(|there| file.metadata().is_ok_and(|file| identity(file) == there)) {
        return Ok(());
    }
    for number in (0..rotation.count).rev() {
        let from = if number == 0 { path.to_owned() } else { numbered(path, number) };
        match fs::rename(&from, numbered(path, number + 1)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", from.display()))),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_file_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let rotation = Rotation { size: 3, count: 2 };
        for text in ["one", "two", "three"] {
            fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            assert!(is_due(&file, rotation));
            rename(&path, &file, rotation).unwrap();
        }
        let read = |number| fs::read_to_string(numbered(&path, number)).unwrap_or_default();
        assert_eq!([read(1), read(2), read(3)], ["three", "two", ""]);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_regular_file_of_the_minimum_size_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "12").unwrap();
        let file = File::open(&path).unwrap();
        assert!(
            !is_due(&file, Rotation { size: 3, count: 1 }) && is_due(&file, Rotation { size: 2, count: 1 })
        );
        assert!(!is_due(&file, Rotation { size: 0, count: 1 }), "0 is never");
        assert!(!is_due(&File::open(dir.path()).unwrap(), Rotation { size: 1, count: 1 }));
    }

    #[test]
    fn a_file_that_replaced_ours_is_not_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        fs::write(&path, "new").unwrap();
        rename(&path, &file, Rotation { size: 1, count: 1 }).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
