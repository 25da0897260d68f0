//! The options of a system daemon. Their paths have to be whole where the server leaves the directory in which it was
//! started, or its root.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args};
use nix::unistd::Gid;

use super::Places;
use super::account::{Account, group, identity, must_be_root, user};
use crate::config::{Daemon, Pool};
use crate::log::Destination;

const DAEMON: &str = "System daemon";
/// What workers read in it: where code is mapped, and which threads there are.
const PROC: &str = "proc/self/maps";

/// The options.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Go to the background, and return when the server is ready, or has failed
    #[arg(long, help_heading = DAEMON)]
    daemon: bool,
    /// Keep the number of the supervisor's process in this file while it serves
    #[arg(long, value_name = "FILE", help_heading = DAEMON)]
    pid_file: Option<PathBuf>,
    /// Who the workers run as; only root can say so [default: as the server]
    #[arg(long, value_name = "USER", value_parser = user, help_heading = DAEMON)]
    user: Option<Account>,
    /// Their only group [default: the groups of the user]
    #[arg(long, value_name = "GROUP", value_parser = group, help_heading = DAEMON)]
    group: Option<Gid>,
    /// Make this directory the root of the workers; only root can [default: none]
    #[arg(long, value_name = "DIR", help_heading = DAEMON)]
    chroot: Option<PathBuf>,
}

impl DaemonArgs {
    /// Whether all that was read is fit for life in the background, if that is wanted: the log must not go to standard
    /// error, which goes nowhere, and paths must be whole. Errors name the option or the key.
    pub fn check(&self, log: &Destination, matches: &ArgMatches, places: &Places) -> Result<(), String> {
        match log {
            _ if !self.daemon => Ok(()),
            Destination::Stderr => {
                let daemon = places.of("daemon");
                Err(format!(
                    "{daemon}: expected --log-file or --log-target beside it, as standard error goes nowhere"
                ))
            }
            _ => check_paths(matches, places),
        }
    }

    /// The settings, and the default pool of so many workers. `handlers` and `document_root` are made real paths if they
    /// are to be found below another root. Errors name the option or the key.
    pub fn into_config(
        self,
        workers: usize,
        handlers: &mut PathBuf,
        document_root: &mut Option<PathBuf>,
        places: &Places,
    ) -> Result<(Daemon, Pool), String> {
        let chroot = self.chroot.map(|dir| {
            let failed = |why: String| format!("{} {}: {why}", places.of("chroot"), dir.display());
            must_be_root("another root directory").map_err(failed)?;
            let dir = dir.canonicalize().map_err(|error| failed(error.to_string()))?;
            if !dir.join(PROC).exists() {
                let at = dir.join("proc");
                return Err(failed(format!("expected proc, as in mount -t proc proc {}", at.display())));
            }
            for (id, path) in
                [("websock_handlers", Some(handlers)), ("document_root", document_root.as_mut())]
            {
                let Some(path) = path else { continue };
                *path =
                    real(path, &dir).map_err(|why| format!("{} {}: {why}", places.of(id), path.display()))?;
            }
            Ok(dir)
        });
        let (user, groups) =
            identity(self.user, self.group).map_err(|why| format!("{}: {why}", places.of("user")))?;
        let daemon = Daemon { detach: self.daemon, pid_file: self.pid_file, chroot: chroot.transpose()? };
        Ok((daemon, Pool { user, groups, ..Pool::new("default", workers) }))
    }
}

/// The real path, which must be below the root.
fn real(path: &Path, root: &Path) -> Result<PathBuf, String> {
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    match path.starts_with(root) {
        true => Ok(path),
        false => Err(format!("expected a directory below --chroot {}", root.display())),
    }
}

/// A server in the background runs in `/`, where it is reloaded and upgraded as well: all files and directories that it
/// is told must begin there. The error names the first that does not.
fn check_paths(matches: &ArgMatches, places: &Places) -> Result<(), String> {
    let is_path = |arg: &&Arg| {
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        ["FILE", "DIR", "PATH"].contains(&name)
    };
    for id in super::command().get_arguments().filter(is_path).map(|arg| arg.get_id().as_str()) {
        let Some(mut paths) = matches.get_raw(id) else { continue };
        // A - is no path.
        if let Some(path) = paths.find(|path| *path != "-" && Path::new(path).is_relative()) {
            let path = Path::new(path).display();
            return Err(format!(
                "{} {path}: expected a path that begins with /, with --daemon",
                places.of(id)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;

    use nix::unistd::{Uid, geteuid};

    use crate::cli::file::tests::config;
    use crate::cli::{self, Command};

    #[test]
    fn a_server_stays_in_the_foreground_unless_told() {
        let config = config("", &[]).unwrap();
        assert!(!config.daemon.detach);
        assert_eq!((&config.daemon.pid_file, &config.daemon.chroot), (&None, &None));
        assert_eq!((config.pools[0].user, config.pools[0].groups.len()), (None, 0));
    }

    #[test]
    fn paths_of_a_daemon_are_whole() {
        // The configuration file of these tests has a whole path itself.
        let error = |text: &str, args: &[&str]| config(text, args).unwrap_err();
        assert_eq!(
            error("daemon = true\nlog_file = 'l'", &[]),
            "w.conf:2: log_file l: expected a path that begins with /, with --daemon"
        );
        assert_eq!(
            error("", &["--daemon", "--pid-file", "./p", "--log-target=syslog"]),
            "--pid-file ./p: expected a path that begins with /, with --daemon"
        );
        let whole = config("", &["--daemon", "--pid-file", "/p", "-l", "/l", "--access-log", "-"]).unwrap();
        assert!(whole.daemon.detach);
        assert_eq!(whole.daemon.pid_file, Some("/p".into()));
        assert!(config("", &["--pid-file", "p"]).is_ok(), "in the foreground they may be seen from here");
    }

    #[test]
    fn the_log_of_a_daemon_goes_somewhere() {
        let expected = "expected --log-file or --log-target beside it, as standard error goes nowhere";
        assert_eq!(config("", &["--daemon"]).unwrap_err(), format!("--daemon: {expected}"));
        let error = config("\ndaemon = true", &["-l", "/l", "--log-target=stderr"]).unwrap_err();
        assert_eq!(error, format!("w.conf:2: daemon: {expected}"));
    }

    #[test]
    fn who_pools_run_as_unless_they_say_so() {
        let text = "user = 4_000_000_000\ngroup = 4_000_000_001\n\
                    [handler.'/a']\nisolation = 'pool'\n[handler.'/b']\nisolation = 'pool'\n\
                    [handler.'/c']\nisolation = 'pool'\n\
                    [pool.b]\ngroup = 9\n[pool.c]\nuser = 5\ngroup = 6\n";
        if !geteuid().is_root() {
            let error = config(text, &[]).unwrap_err();
            assert!(error.starts_with("w.conf:1: user = 4_000_000_000: expected to be root"), "{error}");
            return;
        }
        let config = config(text, &[]).unwrap();
        let id = |uid: Option<Uid>| uid.map_or(0, Uid::as_raw);
        let ids = config.pools.iter().map(|pool| (&*pool.name, id(pool.user), pool.groups[0].as_raw()));
        assert_eq!(
            ids.collect::<Vec<_>>(),
            [
                ("default", 4_000_000_000, 4_000_000_001),
                ("a", 4_000_000_000, 4_000_000_001),
                ("b", 4_000_000_000, 9),
                ("c", 5, 6)
            ]
        );
    }

    #[test]
    fn another_root_has_what_workers_need() {
        if !geteuid().is_root() {
            assert!(config("", &["--chroot", "/"]).unwrap_err().contains("--chroot /: expected to be root"));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let error = config("", &["--chroot", root.to_str().unwrap()]).unwrap_err();
        assert!(error.contains("expected proc, as in mount -t proc proc "), "{error}");
        // Not proc, but enough to come to the next question.
        std::fs::create_dir_all(root.join("proc/self")).unwrap();
        std::fs::write(root.join("proc/self/maps"), "").unwrap();
        let handlers = root.join("h");
        std::fs::create_dir(&handlers).unwrap();
        let args = |handlers: &str| {
            let line = ["wshd", "--chroot", root.to_str().unwrap(), "-w", handlers].map(OsString::from);
            match cli::parse(line, None) {
                Ok(Command::Serve(config)) => Ok(*config),
                other => Err(other.unwrap_err().to_string()),
            }
        };
        let error = args("/tmp").unwrap_err();
        assert!(
            error.starts_with("--websock-handlers /tmp: expected a directory below --chroot "),
            "{error}"
        );
        let config = args(handlers.join(".").to_str().unwrap()).unwrap();
        assert_eq!(config.inside(&config.handlers), std::path::Path::new("/h"));
        assert_eq!(config.inside("/elsewhere".as_ref()), std::path::Path::new("/elsewhere"));
    }
}
