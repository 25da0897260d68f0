//! What settings name outside of the process: files, directories, users and groups. Whether they are there, and what is in
//! them, a disk or a name server may have to be waited for: a child of the supervisor asks the system, and the supervisor
//! resolves the same settings again with the child's answers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::secret;

/// The largest file that is read; bytes.
const MAX_BYTES: u64 = 1 << 20;

/// By question; an error in its words.
pub type Answers = BTreeMap<String, Result<Value, String>>;

enum Source {
    System,
    /// The system, and its answers are kept.
    Kept(Answers),
    /// These and no others.
    Given(Answers),
}

thread_local! {
    static SOURCE: RefCell<Source> = const { RefCell::new(Source::System) };
}

/// Has `work` ask the system; also what the answers were.
pub fn record<R>(work: impl FnOnce() -> R) -> (R, Answers) {
    match with(Source::Kept(Answers::new()), work) {
        (result, Source::Kept(answers)) => (result, answers),
        (result, _) => (result, Answers::new()),
    }
}

/// Has `work` get these answers.
pub fn replay<R>(answers: Answers, work: impl FnOnce() -> R) -> R {
    with(Source::Given(answers), work).0
}

fn with<R>(source: Source, work: impl FnOnce() -> R) -> (R, Source) {
    SOURCE.set(source);
    let result = work();
    (result, SOURCE.replace(Source::System))
}

/// Asks the system, or whatever stands in for it.
pub fn ask<T: Serialize + DeserializeOwned>(
    question: String,
    system: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let unreadable = |error: serde_json::Error| format!("{question}: {error}");
    SOURCE.with_borrow_mut(|source| match source {
        Source::System => system(),
        Source::Kept(answers) => {
            let answer = system();
            let kept = answer.as_ref().map_err(String::clone);
            let kept = kept.and_then(|answer| serde_json::to_value(answer).map_err(unreadable));
            answers.insert(question.clone(), kept);
            answer
        }
        Source::Given(answers) => match answers.get(&question) {
            Some(Ok(answer)) => T::deserialize(answer).map_err(unreadable),
            Some(Err(why)) => Err(why.clone()),
            None => Err(format!("{question}: not known")),
        },
    })
}

/// The content of a file, which has a bound.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let text = ask(format!("read {path:?}"), || {
        let mut bytes = Vec::new();
        let read = |file: File| file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        File::open(path).and_then(read).map_err(|error| error.to_string())?;
        match bytes.len() as u64 {
            0..=MAX_BYTES => Ok(to_text(&bytes)),
            _ => Err(format!("expected at most {MAX_BYTES} bytes")),
        }
    })?;
    Ok(to_bytes(&text))
}

/// The same, which has to be UTF-8.
pub fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read(path)?).map_err(|_| "expected UTF-8".to_owned())
}

/// Refuses a file with a secret that others can use.
pub fn closed(path: &Path) -> Result<(), String> {
    ask(format!("closed {path:?}"), || secret::check_mode(path))
}

/// Whether it is a directory.
pub fn is_dir(path: &Path) -> bool {
    ask(format!("is_dir {path:?}"), || Ok(path.is_dir())).unwrap_or(false)
}

/// Whether there is such a file or directory.
pub fn exists(path: &Path) -> bool {
    ask(format!("exists {path:?}"), || Ok(path.exists())).unwrap_or(false)
}

/// The path without links.
pub fn real(path: &Path) -> Result<PathBuf, String> {
    let text = ask(format!("real {path:?}"), || {
        path.canonicalize()
            .map(|path| to_text(path.as_os_str().as_bytes()))
            .map_err(|error| error.to_string())
    })?;
    Ok(OsString::from_vec(to_bytes(&text)).into())
}

/// Any bytes as text: a character each.
pub fn to_text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes of [`to_text`].
pub fn to_bytes(text: &str) -> Vec<u8> {
    text.chars().filter_map(|c| u8::try_from(c).ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answers_stand_in_for_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let [file, none] = ["file", "none"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"text \xff\0").unwrap();
        let path = dir.path().to_owned();
        let ask_all = || (read(&file), read_text(&file), read(&none), is_dir(&path), exists(&none));
        let (first, answers) = record(|| (ask_all(), real(&path)));
        let text = serde_json::to_string(&answers).unwrap();
        dir.close().unwrap();
        assert_eq!(first.0.0.as_deref(), Ok(&b"text \xff\0"[..]));
        assert_eq!(first.0.1, Err("expected UTF-8".to_owned()));
        assert!(first.0.2.is_err() && first.0.3 && !first.0.4);
        let again = replay(serde_json::from_str(&text).unwrap(), || (ask_all(), real(&path)));
        assert_eq!(again, first);
        assert!(!exists(&file) && read(&file).is_err(), "the system again");
        assert!(replay(Answers::new(), || read(&file)).is_err_and(|why| why.ends_with("not known")));
    }
}
