//! The files of a configuration: the named one, and those that it includes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::file::File;
use super::given::GivenValue;
use super::{Error, Scope, outside};

/// The key that names other files.
pub const KEY: &str = "include";
/// Maximum number of files of a configuration.
const MAX_FILES: usize = 256;

/// Reads all files; each precedes those that it includes.
pub fn read(path: &Path) -> Result<Vec<File>, Error> {
    let mut files = Files::default();
    files.read(path, &mut Vec::new(), None)?;
    Ok(files.read)
}

#[derive(Default)]
struct Files {
    read: Vec<File>,
    /// Real paths.
    known: Vec<PathBuf>,
}

impl Files {
    /// `above` are the real paths of the including files, `by` the key that includes this one.
    fn read(&mut self, path: &Path, above: &mut Vec<PathBuf>, by: Option<&GivenValue>) -> Result<(), Error> {
        let file = File::read(path).map_err(|error| match by {
            Some(by) => by.refused(error),
            None => error,
        })?;
        let real = outside::real(path).unwrap_or_else(|_| path.to_owned());
        if let Some(by) = by {
            if let Some(start) = above.iter().position(|file| *file == real) {
                let cycle = above.iter().skip(start).chain([&real]).map(|file| file.display().to_string());
                let cycle: Vec<_> = cycle.collect();
                return Err(by.refused(format!("the files include each other: {}", cycle.join(" -> "))));
            }
            if self.known.contains(&real) {
                return Err(by.refused(format!("{} is already included", path.display())));
            }
            if self.read.len() == MAX_FILES {
                return Err(by.refused(format!("expected at most {MAX_FILES} files")));
            }
        }
        self.known.push(real.clone());
        let included = included(&file, &file.parse()?)?;
        self.read.push(file);
        let Some(given) = included else { return Ok(()) };
        above.push(real);
        for pattern in &given.texts {
            for file in matching(path, pattern).map_err(|why| given.refused(why))? {
                self.read(&file, above, Some(&given))?;
            }
        }
        above.pop();
        Ok(())
    }
}

/// The `include` of a file.
fn included(file: &File, document: &DeTable<'_>) -> Result<Option<GivenValue>, Error> {
    let entry = document.iter().find(|(key, _)| key.get_ref() == KEY);
    let values = file.values(entry, Scope::Server)?;
    Ok(values.get(KEY).cloned())
}

/// The files that match a pattern, relative to the directory of the including file; as in a shell, `*` does not match
/// the dot of a hidden file. A name without wildcards is returned whether it exists or not.
fn matching(by: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let dir = by.parent().unwrap_or(Path::new(""));
    if !pattern.contains(['*', '?', '[']) {
        return Ok(vec![dir.join(pattern)]);
    }
    let dir = glob::Pattern::escape(dir.to_str().ok_or("expected UTF-8")?);
    let whole = Path::new(&dir).join(pattern).display().to_string();
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
    let may_be_hidden = is_hidden(Path::new(pattern));
    let found: Vec<String> = outside::ask(format!("glob {whole:?}"), || {
        let found = glob::glob(&whole).map_err(|error| format!("{pattern}: {error}"))?;
        let found = found.filter(|path| may_be_hidden || !path.as_ref().is_ok_and(|path| is_hidden(path)));
        let path = |path: PathBuf| outside::to_text(path.as_os_str().as_bytes());
        found.map(|found| found.map(path).map_err(|error| error.to_string())).collect()
    })?;
    Ok(found.iter().map(|path| OsString::from_vec(outside::to_bytes(path)).into()).collect())
}
