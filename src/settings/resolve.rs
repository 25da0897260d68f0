//! Resolves given values to a [`Config`]: the command line overrides the file, and both override the defaults. Checks
//! values that depend on each other, and that named files exist.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::unistd::{AccessFlags, Uid, access, geteuid};

use super::account::{identity, must_be_root};
use super::draft::{Draft, Target};
use super::effective::Effective;
use super::legacy::Legacy;
use super::{Error, Kind, Scope, Values, bus, find, in_scope, include, listeners, outside, pools, tls};
use crate::config::{Cgi, Config, CrashRecords, Landlock, Listen, Pool};
use crate::log::{AccessLog, Destination};

/// Socket of a syslog daemon: `_PATH_LOG` of <syslog.h>.
const SYSLOG: &str = "/dev/log";
/// Socket of systemd-journald: systemd.io/JOURNAL_NATIVE_PROTOCOL.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// An access log with this path goes to the log.
const SAME: &str = "-";
/// A file that workers need in their root directory.
const PROC: &str = "proc/self/maps";

/// The configuration of a command line and the file that it names, and its printable form. `exe_dir` is the directory
/// of the program, for the default of the handler directory.
pub fn load(
    line: Values,
    file: Option<&Path>,
    exe_dir: Option<PathBuf>,
) -> Result<(Config, Effective), Error> {
    // Reports errors of the command line before those of the file.
    assign(&line, Scope::Server, &mut Draft::default())?;
    let legacy = file.map(Legacy::read).transpose()?.flatten();
    let files = file.filter(|_| legacy.is_none()).map(include::read).transpose()?.unwrap_or_default();
    let documents = files.iter().map(|file| Ok((file, file.parse()?)));
    let documents = documents.collect::<Result<Vec<_>, Error>>()?;
    let Legacy { values: mut given, warnings } = legacy.unwrap_or_default();
    for (file, document) in &documents {
        let outside = document.iter().filter(|(key, _)| !pools::TABLES.contains(&&**key.get_ref()));
        given.add(file.values(outside, Scope::Server)?)?;
    }
    assign(&given, Scope::Server, &mut Draft::default())?;
    let given = line.over(given);
    let (draft, mut config) = server(&given, exe_dir)?;
    let mut effective = Effective { server: given, ..Effective::default() };
    effective.server.remove(include::KEY);
    effective.server.set("workers", config.workers.to_string());
    effective.server.set("websock_handlers", config.handlers.display().to_string());
    listeners::read(&documents, &draft, &mut config, &mut effective)?;
    if config.listeners().any(|listener| listener.proxy_protocol) && !config.admission.proxy.is_any() {
        let why = "needs trust_proxy, which names the proxies";
        return Err(effective.server.wrong("proxy_protocol", why));
    }
    pools::read(&documents, &draft, &mut config, &mut effective)?;
    config.file = file.map(Path::to_owned);
    config.ignored = warnings;
    config.effective = effective.to_toml(false).into();
    Ok((config, effective))
}

/// Assigns the given values, and defaults for the others. In a table, a setting that the server has, too, keeps the
/// value in the draft, which is the server's.
pub fn assign(given: &Values, scope: Scope, draft: &mut Draft) -> Result<(), Error> {
    for setting in in_scope(scope) {
        match given.get(setting.name) {
            Some(given) => setting.assign(&given.texts, draft).map_err(|why| match setting.kind {
                // The error may be logged.
                Kind::Secret(..) => given.location.wrong(why),
                _ => given.refused(why),
            })?,
            None if scope != Scope::Server && setting.is_in(Scope::Server) => {}
            None => setting.assign_default(draft).map_err(Error::Config)?,
        }
    }
    Ok(())
}

/// The configuration without tables, and its draft.
fn server(given: &Values, exe_dir: Option<PathBuf>) -> Result<(Draft, Config), Error> {
    let mut draft = Draft::default();
    assign(given, Scope::Server, &mut draft)?;
    let mut config = draft.config.clone();
    config.listen.clone_from(&draft.hosts);
    for listen in &mut config.listen {
        if let Listen::Tcp { port, .. } = listen {
            *port = draft.port;
        }
    }
    config.handler = draft.handler.clone().normalized();
    config.listener = draft.listener.clone();
    config.workers = draft.workers.unwrap_or_else(cores);
    config.sending.low = send_low(&draft, given)?;
    config.crash_records = draft.crash_dir.clone().map(|dir| CrashRecords { dir, bytes: draft.crash_bytes });
    for (name, dir) in [("document_root", &config.document_root), ("crash_dir", &draft.crash_dir)] {
        if dir.as_ref().is_some_and(|dir| !outside::is_dir(dir)) {
            return Err(given.unusable(name, "expected a directory"));
        }
    }
    let crash_dir = draft.crash_dir.as_deref().map(may_create_in).transpose();
    crash_dir.map_err(|error| given.unusable("crash_dir", error))?;
    // Handlers may change the current directory of workers.
    config.document_root = config
        .document_root
        .map(std::path::absolute)
        .transpose()
        .map_err(|error| given.unusable("document_root", format!("the current directory: {error}")))?;
    config.authentication.all = draft.policy.clone().policy(given)?.map(Arc::new);
    tls::server(&draft, given, &mut config)?;
    config.bus = bus::engine(&draft.bus, given)?.map(Arc::new);
    config.landlock = landlock(&draft, given)?;
    config.handlers = handlers(draft.handlers.as_deref(), config.document_root.as_deref(), exe_dir)?;
    log(&draft, &mut config);
    if let Destination::File(path) = &config.log.destination {
        may_append_to(path).map_err(|error| given.unusable("log_file", error))?;
    }
    if let Some(AccessLog::File(path)) = &config.log.access {
        may_append_to(path).map_err(|error| given.unusable("access_log", error))?;
    }
    if config.daemon.detach {
        check_daemon(&config.log.destination, given)?;
    }
    config.daemon.chroot = draft.chroot.as_deref().map(|dir| chroot(dir, &mut config, given)).transpose()?;
    let (user, groups) = identity(draft.user.clone(), draft.group).map_err(|why| given.wrong("user", why))?;
    config.cgi = programs(&draft, &config, user, given)?;
    let seccomp = draft.pool.seccomp;
    config.pools = vec![Pool { user, groups, seccomp, ..Pool::new("default", config.workers) }];
    Ok((draft, config))
}

/// CGI programs, if any. `workers` is the user of the workers.
fn programs(
    draft: &Draft,
    config: &Config,
    workers: Option<Uid>,
    given: &Values,
) -> Result<Option<Cgi>, Error> {
    if draft.cgi.directories.is_empty() {
        return Ok(None);
    }
    let Some(root) = &config.document_root else {
        return Err(given.wrong("cgi_paths", "needs document_root"));
    };
    // The source of programs must not be sent as static files because of a mistaken path.
    if let Some(missing) =
        draft.cgi.directories.iter().map(|dir| root.join(dir)).find(|dir| !outside::is_dir(dir))
    {
        let why =
            format!("there is no directory {}: paths are relative to the document root", missing.display());
        return Err(given.unusable("cgi_paths", why));
    }
    let (user, groups) =
        identity(draft.cgi_user.clone(), None).map_err(|why| given.wrong("cgi_user", why))?;
    if user.or(workers).unwrap_or_else(geteuid).is_root() {
        let why = "needs cgi_user or user: programs do not run as root";
        return Err(given.wrong("cgi_paths", why));
    }
    Ok(Some(Cgi { user, groups, ..draft.cgi.clone() }))
}

/// The number of processor cores.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn send_low(draft: &Draft, given: &Values) -> Result<usize, Error> {
    let high = draft.config.sending.high;
    match draft.send_low.unwrap_or(high / 4) {
        low if low > high => {
            let high = format!("{} {high}", given.of("send_high"));
            Err(given.wrong("send_low", format!("{low} is above {high}: expected at most that")))
        }
        low => Ok(low),
    }
}

fn landlock(draft: &Draft, given: &Values) -> Result<Option<Landlock>, Error> {
    let Landlock { read, write } = &draft.landlock_files;
    for (name, paths) in [("landlock_read", read), ("landlock_write", write)] {
        if !paths.is_empty() && !draft.landlock {
            return Err(given.wrong(name, "needs landlock"));
        }
        if let Some(path) = paths.iter().find(|path| !outside::exists(path)) {
            return Err(given.wrong(name, format!("{}: expected a file or directory", path.display())));
        }
    }
    Ok(draft.landlock.then(|| draft.landlock_files.clone()))
}

/// The handler directory. If it does not exist, that of mod_pywebsocket: relative to the document root, or if none is
/// given, the document root itself.
fn handlers(given: Option<&Path>, root: Option<&Path>, exe_dir: Option<PathBuf>) -> Result<PathBuf, Error> {
    let Some(given) = given else {
        let default = default_handlers(exe_dir);
        return root.map(Path::to_owned).filter(|_| default.is_err()).map_or(default, Ok);
    };
    let below =
        root.map(|root| root.join(given)).filter(|below| !outside::is_dir(given) && outside::is_dir(below));
    Ok(below.unwrap_or_else(|| given.to_owned()))
}

fn default_handlers(exe_dir: Option<PathBuf>) -> Result<PathBuf, Error> {
    let missing = |why: String| Error::Config(format!("--websock-handlers is missing{why}"));
    let exe_dir = exe_dir.ok_or_else(|| missing(String::new()))?;
    let candidates = ["handlers", "../lib/wshd/handlers"].map(|dir| exe_dir.join(dir));
    candidates.iter().find(|dir| outside::is_dir(dir)).cloned().ok_or_else(|| {
        let [first, second] = candidates.map(|dir| dir.display().to_string());
        missing(format!(", and there is neither {first} nor {second}"))
    })
}

/// Resolves a path against the directory in which the server was started, also in a reload: a daemon changes directory.
pub fn absolute(path: &Path) -> PathBuf {
    static START: OnceLock<PathBuf> = OnceLock::new();
    START.get_or_init(|| std::env::current_dir().unwrap_or_default()).join(path)
}

fn log(draft: &Draft, config: &mut Config) {
    let absolute = |path: &PathBuf| absolute(path);
    let socket = |default: &str| draft.log_socket.as_ref().map_or_else(|| default.into(), absolute);
    config.log.destination = match (draft.log_target, &draft.log_file) {
        (None, Some(path)) => Destination::File(absolute(path)),
        (Some(Target::Stderr) | None, _) => Destination::Stderr,
        (Some(Target::Syslog), _) => Destination::Syslog(socket(SYSLOG)),
        (Some(Target::Journald), _) => Destination::Journald(socket(JOURNALD)),
    };
    config.log.access = draft.access_log.as_ref().map(|path| match path.as_os_str() == SAME {
        true => AccessLog::Log,
        false => AccessLog::File(absolute(path)),
    });
}

/// Checks that the server may write to a file, or create it. Creates nothing.
fn may_append_to(path: &Path) -> Result<(), String> {
    let is_there = outside::ask(format!("append {path:?}"), || {
        let may_write = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => access(path, AccessFlags::W_OK).map_err(io::Error::from),
        };
        may_write.map(|()| true).map_err(|error| error.to_string())
    })?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if is_there { Ok(()) } else { may_create_in(dir) }
}

fn may_create_in(dir: &Path) -> Result<(), String> {
    outside::ask(format!("create in {dir:?}"), || {
        let access = access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from);
        access.map_err(|error| error.to_string())
    })
}

/// Checks the settings of a daemon: it has no standard error, and runs, reloads and upgrades in `/`, so all paths must
/// be absolute.
fn check_daemon(log: &Destination, given: &Values) -> Result<(), Error> {
    if *log == Destination::Stderr {
        let why = "needs log_file or log_target, since a daemon has no standard error";
        return Err(given.wrong("daemon", why));
    }
    for (name, value) in given.iter() {
        let is_path = match find(Scope::Server, name).map(|setting| &setting.kind) {
            Some(Kind::Path(..)) => true,
            Some(kind) => kind.value() == "PATH",
            None => false,
        };
        if is_path && value.texts.iter().any(|path| path != SAME && Path::new(path).is_relative()) {
            return Err(given.unusable(name, "expected an absolute path, since daemon is set"));
        }
    }
    Ok(())
}

/// The real path of the workers' root. Replaces handler directory and document root by real paths, which must be below
/// it.
fn chroot(dir: &Path, config: &mut Config, given: &Values) -> Result<PathBuf, Error> {
    let failed = |why: String| given.unusable("chroot", why);
    must_be_root("another root directory").map_err(failed)?;
    let dir = outside::real(dir).map_err(failed)?;
    if !outside::exists(&dir.join(PROC)) {
        let at = dir.join("proc");
        return Err(failed(format!("expected a mounted proc: mount -t proc proc {}", at.display())));
    }
    let below = |path: &Path| {
        let path = outside::real(path)?;
        match path.starts_with(&dir) {
            true => Ok(path),
            false => Err(format!("expected a directory below chroot {}", dir.display())),
        }
    };
    config.handlers = below(&config.handlers).map_err(|why| given.unusable("websock_handlers", why))?;
    if let Some(root) = &mut config.document_root {
        *root = below(root).map_err(|why| given.unusable("document_root", why))?;
    }
    Ok(dir)
}
