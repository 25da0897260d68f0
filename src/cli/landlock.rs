//! The options that confine workers to some files.

use std::path::PathBuf;

use crate::config::Landlock;

const CONFINEMENT: &str = "Confinement";

/// Flattened into the table of options.
#[derive(Debug, clap::Args)]
pub struct LandlockArgs {
    /// Let workers read their handlers, static files and the system's libraries only, and write nothing
    #[arg(long, help_heading = CONFINEMENT)]
    landlock: bool,
    /// Let them read this file or directory, too; may be repeated
    #[arg(long, value_name = "PATH", help_heading = CONFINEMENT)]
    landlock_read: Vec<PathBuf>,
    /// Let them read and write this file or directory, too; may be repeated
    #[arg(long, value_name = "PATH", help_heading = CONFINEMENT)]
    landlock_write: Vec<PathBuf>,
}

impl LandlockArgs {
    /// The configuration; the error is about the option that it is with.
    pub fn into_landlock(self) -> Result<Option<Landlock>, (&'static str, String)> {
        for (id, paths) in [("landlock_read", &self.landlock_read), ("landlock_write", &self.landlock_write)]
        {
            if !paths.is_empty() && !self.landlock {
                return Err((id, "expected --landlock beside it".to_owned()));
            }
            if let Some(path) = paths.iter().find(|path| !path.exists()) {
                return Err((id, format!("{}: expected a file or directory", path.display())));
            }
        }
        Ok(self.landlock.then_some(Landlock { read: self.landlock_read, write: self.landlock_write }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::file::tests::{config, fails};

    #[test]
    fn paths_are_added_to_what_is_needed_anyway() {
        assert!(config("", &[]).unwrap().landlock.is_none());
        let text = "landlock = true\nlandlock_read = ['/etc', '/usr']\nlandlock_write = '/tmp'\n";
        let landlock = config(text, &[]).unwrap().landlock.unwrap();
        assert_eq!(
            (landlock.read, landlock.write),
            (vec!["/etc".into(), "/usr".into()], vec!["/tmp".into()])
        );
    }

    #[test]
    fn paths_without_effect_or_without_file() {
        fails("landlock_read = '/etc'\n", "w.conf:1: landlock_read: expected --landlock beside it");
        fails(
            "landlock = true\nlandlock_write = ['/tmp', '/nowhere']\n",
            "w.conf:2: landlock_write: /nowhere: expected a file or directory",
        );
    }
}
