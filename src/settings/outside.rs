//! Queries of the system that settings need: files, directories, users and groups. A disk or a name server may be slow,
//! so a child of the supervisor makes them and records the answers; the supervisor then resolves the same settings with
//! these answers, without blocking.

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

/// Maximum size of a file; bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Answers by question; an error as text.
pub type Answers = BTreeMap<String, Result<Value, String>>;

enum Source {
    System,
    /// The system; its answers are recorded.
    Record(Answers),
    /// Recorded answers only.
    Replay(Answers),
}

thread_local! {
    static SOURCE: RefCell<Source> = const { RefCell::new(Source::System) };
}

/// Runs `work`, which asks the system; returns the answers, too.
pub fn record<R>(work: impl FnOnce() -> R) -> (R, Answers) {
    match with(Source::Record(Answers::new()), work) {
        (result, Source::Record(answers)) => (result, answers),
        (result, _) => (result, Answers::new()),
    }
}

/// Runs `work` with recorded answers.
pub fn replay<R>(answers: Answers, work: impl FnOnce() -> R) -> R {
    with(Source::Replay(answers), work).0
}

fn with<R>(source: Source, work: impl FnOnce() -> R) -> (R, Source) {
    SOURCE.set(source);
    let result = work();
    (result, SOURCE.replace(Source::System))
}

/// Asks the system, or looks up the recorded answer.
pub fn ask<T: Serialize + DeserializeOwned>(
    question: String,
    system: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let unreadable = |error: serde_json::Error| format!("{question}: {error}");
    SOURCE.with_borrow_mut(|source| match source {
        Source::System => system(),
        Source::Record(answers) => {
            let answer = system();
            let recorded = answer.as_ref().map_err(String::clone);
            let recorded = recorded.and_then(|answer| serde_json::to_value(answer).map_err(unreadable));
            answers.insert(question.clone(), recorded);
            answer
        }
        Source::Replay(answers) => match answers.get(&question) {
            Some(Ok(answer)) => T::deserialize(answer).map_err(unreadable),
            Some(Err(why)) => Err(why.clone()),
            None => Err(format!("{question}: no recorded answer")),
        },
    })
}

/// Reads a file of at most [`MAX_BYTES`].
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

/// Reads a file of UTF-8.
pub fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read(path)?).map_err(|_| "expected UTF-8".to_owned())
}

/// Refuses a file with a secret that others can access.
pub fn check_secret(path: &Path) -> Result<(), String> {
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

/// The path with symbolic links resolved.
pub fn real(path: &Path) -> Result<PathBuf, String> {
    let text = ask(format!("real {path:?}"), || {
        path.canonicalize()
            .map(|path| to_text(path.as_os_str().as_bytes()))
            .map_err(|error| error.to_string())
    })?;
    Ok(OsString::from_vec(to_bytes(&text)).into())
}

/// Any bytes as text, for JSON: one character per byte.
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
    fn recorded_answers_replace_the_system() {
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
        assert!(replay(Answers::new(), || read(&file)).is_err_and(|why| why.ends_with("no recorded answer")));
    }
}
