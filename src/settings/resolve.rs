//! From what was given to a [`Config`]: the values of the command line go over those of the file, both over the defaults;
//! what has to be seen together is, and what is named has to be there.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::unistd::{AccessFlags, Uid, access, geteuid};

use super::account::{identity, must_be_root};
use super::draft::{Draft, Target};
use super::effective::Effective;
use super::legacy::Legacy;
use super::value::Host;
use super::{Error, Kind, Places, Scope, bus, find, in_scope, include, listeners, outside, pools, tls};
use crate::config::{Cgi, Config, CrashRecords, Landlock, Listen, Pool};
use crate::log::{AccessLog, Destination};

/// Where a syslog daemon listens: `_PATH_LOG` of <syslog.h>.
const SYSLOG: &str = "/dev/log";
/// Where systemd-journald listens: systemd.io/JOURNAL_NATIVE_PROTOCOL.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// Stands for where the log goes.
const SAME: &str = "-";
/// What workers read in their root directory: where code is mapped, and which threads there are.
const PROC: &str = "proc/self/maps";

/// The configuration of a command line and the file that it names, and the same as it can be shown. `exe_dir` is where
/// the program is, for the default of the handler directory.
pub fn load(
    line: Places,
    file: Option<&Path>,
    exe_dir: Option<PathBuf>,
) -> Result<(Config, Effective), Error> {
    // Mistakes of the command line come first.
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
        let why = "expected trust_proxy beside it, which says from whom";
        return Err(effective.server.wrong("proxy_protocol", why));
    }
    pools::read(&documents, &draft, &mut config, &mut effective)?;
    config.file = file.map(Path::to_owned);
    config.ignored = warnings;
    config.effective = effective.to_toml(false).into();
    Ok((config, effective))
}

/// Assigns what was given, and else the defaults. Where a table can say what the server says, too, the draft has it.
pub fn assign(given: &Places, scope: Scope, draft: &mut Draft) -> Result<(), Error> {
    for setting in in_scope(scope) {
        match given.get(setting.name) {
            Some(given) => setting.assign(&given.texts, draft).map_err(|why| given.refused(why))?,
            None if scope != Scope::Server && setting.is_in(Scope::Server) => {}
            None => setting.assign_default(draft).map_err(Error::Config)?,
        }
    }
    Ok(())
}

/// The configuration without tables, and the draft that it was made of.
fn server(given: &Places, exe_dir: Option<PathBuf>) -> Result<(Draft, Config), Error> {
    let mut draft = Draft::default();
    assign(given, Scope::Server, &mut draft)?;
    let mut config = draft.config.clone();
    let listen = draft.hosts.iter().cloned().map(|host| match host {
        Host::Name(host) => Listen::Tcp { host, port: draft.port },
        Host::Unix(path) => Listen::Unix(path),
    });
    config.listen = listen.collect();
    config.handler = draft.handler.clone().sound();
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
        fit_for_the_background(&config.log.destination, given)?;
    }
    config.daemon.chroot = draft.chroot.as_deref().map(|dir| chroot(dir, &mut config, given)).transpose()?;
    let (user, groups) = identity(draft.user.clone(), draft.group).map_err(|why| given.wrong("user", why))?;
    config.cgi = programs(&draft, &config, user, given)?;
    let seccomp = draft.pool.seccomp;
    config.pools = vec![Pool { user, groups, seccomp, ..Pool::new("default", config.workers) }];
    Ok((draft, config))
}

/// Programs, if there are any; workers run as this user.
fn programs(
    draft: &Draft,
    config: &Config,
    workers: Option<Uid>,
    given: &Places,
) -> Result<Option<Cgi>, Error> {
    if draft.cgi.directories.is_empty() {
        return Ok(None);
    }
    if config.document_root.is_none() {
        return Err(given.wrong("cgi_paths", "expected document_root beside it"));
    }
    let (user, groups) =
        identity(draft.cgi_user.clone(), None).map_err(|why| given.wrong("cgi_user", why))?;
    if user.or(workers).unwrap_or_else(geteuid).is_root() {
        let why = "expected cgi_user or user beside it: programs do not run as root";
        return Err(given.wrong("cgi_paths", why));
    }
    Ok(Some(Cgi { user, groups, ..draft.cgi.clone() }))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn send_low(draft: &Draft, given: &Places) -> Result<usize, Error> {
    let high = draft.config.sending.high;
    match draft.send_low.unwrap_or(high / 4) {
        low if low > high => {
            let high = format!("{} {high}", given.of("send_high"));
            Err(given.wrong("send_low", format!("{low} is above {high}: expected at most that")))
        }
        low => Ok(low),
    }
}

fn landlock(draft: &Draft, given: &Places) -> Result<Option<Landlock>, Error> {
    let (read, write) = (&draft.landlock_read, &draft.landlock_write);
    for (name, paths) in [("landlock_read", read), ("landlock_write", write)] {
        if !paths.is_empty() && !draft.landlock {
            return Err(given.wrong(name, "expected landlock beside it"));
        }
        if let Some(path) = paths.iter().find(|path| !outside::exists(path)) {
            return Err(given.wrong(name, format!("{}: expected a file or directory", path.display())));
        }
    }
    Ok(draft.landlock.then(|| Landlock { read: read.clone(), write: write.clone() }))
}

/// The handler directory. Where mod_pywebsocket looks is the second choice: a relative one below the document root, and
/// without any the document root itself.
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

/// A path as seen from where the server was started, also when it reads its settings again: a daemon goes elsewhere.
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

/// Whether the server may write to a file, or create it. Says so before it is detached, and creates nothing.
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

/// In the background standard error goes nowhere, and the server runs in `/`, where it is reloaded and upgraded as well:
/// all files and directories that it is told must begin there.
fn fit_for_the_background(log: &Destination, given: &Places) -> Result<(), Error> {
    if *log == Destination::Stderr {
        let why = "expected log_file or log_target beside it, as standard error goes nowhere";
        return Err(given.wrong("daemon", why));
    }
    for (name, value) in given.iter() {
        let is_path = match find(Scope::Server, name).map(|setting| &setting.kind) {
            Some(Kind::Path(..)) => true,
            Some(kind) => kind.value() == "PATH",
            None => false,
        };
        if is_path && value.texts.iter().any(|path| path != SAME && Path::new(path).is_relative()) {
            return Err(given.unusable(name, "expected a path that begins with /, with daemon"));
        }
    }
    Ok(())
}

/// The real path of the root of workers. Handlers and document root are made real paths below it.
fn chroot(dir: &Path, config: &mut Config, given: &Places) -> Result<PathBuf, Error> {
    let failed = |why: String| given.unusable("chroot", why);
    must_be_root("another root directory").map_err(failed)?;
    let dir = outside::real(dir).map_err(failed)?;
    if !outside::exists(&dir.join(PROC)) {
        let at = dir.join("proc");
        return Err(failed(format!("expected proc, as in mount -t proc proc {}", at.display())));
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
