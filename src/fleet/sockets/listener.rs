//! The listening sockets: bound once before fork, shared by all workers, so that nothing that is queued is lost
//! when a worker dies. They do not block, and what is accepted from them does not delay what is sent. Accepts nothing
//! itself.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{AccessFlags, Gid, Uid, access};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::fleet::routes::any_path;

/// Where to listen, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listen {
    /// All addresses of a host.
    Tcp {
        /// An address (IPv6 without brackets) or a name.
        host: String,
        /// 0 lets the kernel pick one.
        port: u16,
    },
    /// A socket in the file system.
    Unix(#[serde(with = "any_path")] PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Listen::Tcp { host, port } => write!(f, "{host}:{port}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a socket is bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Length of the kernel's queue of connections that nobody has accepted yet.
    pub backlog: i32,
    /// Of a socket in the file system: its permissions; without them as the umask says.
    pub mode: Option<u32>,
    /// The same: its owner.
    pub owner: Option<Uid>,
    /// The same: its group.
    pub group: Option<Gid>,
}

/// The address really bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Bound {
    /// Host and port under which a browser on this machine reaches it; None for a Unix socket.
    pub fn local_authority(&self) -> Option<SocketAddr> {
        let Bound::Tcp(address) = self else { return None };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(SocketAddr::new(ip, address.port()))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(address) => write!(f, "{address}"),
            Bound::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    pub address: Bound,
    /// Device and inode of a Unix socket's file.
    file: Option<(u64, u64)>,
    /// What it was bound for; None: somebody else has bound it.
    asked: Option<Listen>,
}

impl Listener {
    /// Removes the file of a Unix socket, unless another server has replaced it. [supervisor, at exit]
    pub fn remove_file(&self) {
        if let Bound::Unix(path) = &self.address
            && self.file.is_some()
            && self.file == identity(path)
        {
            let _ = std::fs::remove_file(path); // it may have been removed already
        }
    }

    /// Has connections refused from now on, also where other processes hold the socket: one that is busy in a handler
    /// would keep it listening. An [adopted](adopt) socket is left alone: it listens on for the service manager.
    pub fn shut_down(&self) {
        if self.asked.is_some() {
            let _ = SockRef::from(&self.fd).shutdown(Shutdown::Both); // fails if it was shut down before
        }
    }

    /// Whether workers have to refuse connections while it is [paused](Self::pause): a Unix socket that was shut down
    /// could not listen again. At an [adopted](adopt) one they wait for the next server.
    pub fn is_refused_by_workers(&self) -> bool {
        matches!(self.address, Bound::Unix(_)) && self.asked.is_some()
    }

    /// Has the kernel refuse connections until it [listens again](Self::listen_again), if it can. [supervisor]
    pub fn pause(&self) {
        if let Bound::Tcp(_) = self.address {
            self.shut_down();
        }
    }

    /// Whether connections are not refused.
    pub fn is_listening(&self) -> bool {
        SockRef::from(&self.fd).is_listener().unwrap_or(false)
    }

    /// Takes connections again after a [pause](Self::pause). [supervisor]
    pub fn listen_again(&self, backlog: i32) -> io::Result<()> {
        let (Bound::Tcp(address), Some(_)) = (&self.address, &self.asked) else { return Ok(()) };
        let socket = SockRef::from(&self.fd);
        // A port that the kernel had picked was given back with the shutdown; another is bound still (EINVAL).
        let _ = socket.bind(&(*address).into());
        socket.listen(backlog)
    }

    /// One that another process listened on, and passes on. [supervisor, before fork]
    pub fn inherited(fd: OwnedFd, asked: Listen) -> io::Result<Self> {
        let mut listener = Self::bound_elsewhere(fd, Some(asked), None)?;
        if let Bound::Unix(path) = &listener.address {
            listener.file = identity(path);
        }
        Ok(listener)
    }

    /// One that a child has bound, and its [file](Self::file) there. [supervisor]
    pub fn bound_elsewhere(fd: OwnedFd, asked: Option<Listen>, file: Option<(u64, u64)>) -> io::Result<Self> {
        let socket = Socket::from(fd);
        let address = address_of(&socket)?;
        Ok(Self { file, asked, ..Self::of(socket, address)? })
    }

    /// Device and inode of a Unix socket's file.
    pub fn file(&self) -> Option<(u64, u64)> {
        self.file
    }

    /// One without a file.
    fn of(socket: Socket, address: Bound) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        if let Bound::Tcp(_) = address {
            socket.set_tcp_nodelay(true)?; // accepted sockets inherit it
        }
        Ok(Self { fd: socket.into(), address, file: None, asked: None })
    }

    /// What it was bound for; None if it was [adopted](adopt).
    pub fn asked(&self) -> Option<&Listen> {
        self.asked.as_ref()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    /// As configured, or of several the one that failed.
    pub address: String,
    pub source: io::Error,
}

/// Binds and listens, on all addresses or on none. Those with port 0 share the port that the kernel picks.
/// [supervisor, before fork]
pub fn bind(listen: &[Listen], how: &dyn Fn(&Listen) -> Binding) -> Result<Vec<Listener>, BindError> {
    let mut attempt = 1;
    loop {
        let (mut listeners, mut picked) = (Vec::new(), 0);
        let failed = listen.iter().find_map(|listen| {
            let before = listeners.len();
            let bound = match listen {
                Listen::Tcp { host, port } => {
                    bind_host(host, *port, how(listen).backlog, &mut picked, &mut listeners)
                }
                Listen::Unix(path) => bind_unix(path, how(listen)).map(|listener| listeners.push(listener)),
            };
            listeners.iter_mut().skip(before).for_each(|listener| listener.asked = Some(listen.clone()));
            bound.err().map(|source| (listen, source))
        });
        let Some((failed, source)) = failed else { return Ok(listeners) };
        listeners.iter().for_each(Listener::remove_file);
        // The port that the kernel picked on one address may be taken on another.
        let is_picked =
            matches!(failed, Listen::Tcp { port: 0, .. }) && source.kind() == io::ErrorKind::AddrInUse;
        if !is_picked || attempt == PICKS {
            return Err(BindError { address: failed.to_string(), source });
        }
        attempt += 1;
    }
}

/// Whether an address could be bound, as far as that can be known without binding it: others may have it.
pub fn check(listen: &Listen) -> Result<(), BindError> {
    let checked = match listen {
        Listen::Tcp { host, port } => (&**host, *port).to_socket_addrs().map(drop),
        Listen::Unix(path) => check_path(path),
    };
    checked.map_err(|source| BindError { address: listen.to_string(), source })
}

fn check_path(path: &Path) -> io::Result<()> {
    SockAddr::unix(path)?;
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => Err(io::ErrorKind::AddrInUse.into()),
        _ => {
            let dir = path.parent().unwrap_or(path);
            Ok(access(dir, AccessFlags::W_OK | AccessFlags::X_OK)?)
        }
    }
}

/// The listeners for all that is to be listened on, of which those that are there go on. [supervisor]
pub fn bind_missing(
    listen: &[Listen],
    how: &dyn Fn(&Listen) -> Binding,
    have: &[Arc<Listener>],
) -> Result<Vec<Arc<Listener>>, BindError> {
    let kept = have.iter().filter(|have| have.asked.as_ref().is_some_and(|asked| listen.contains(asked)));
    let kept: Vec<Arc<Listener>> = kept.cloned().collect();
    let is_missing = |listen: &&Listen| !kept.iter().any(|kept| kept.asked.as_ref() == Some(*listen));
    let missing: Vec<Listen> = listen.iter().filter(is_missing).cloned().collect();
    Ok(kept.into_iter().chain(bind(&missing, how)?.into_iter().map(Arc::new)).collect())
}

/// The same, but where some are there that were [adopted](adopt), these are all that is listened on. [supervisor]
pub fn adopted_or_bound(
    listen: &[Listen],
    how: &dyn Fn(&Listen) -> Binding,
    have: &[Arc<Listener>],
) -> Result<Vec<Arc<Listener>>, BindError> {
    let adopted: Vec<Arc<Listener>> = have.iter().filter(|have| have.asked.is_none()).cloned().collect();
    if adopted.is_empty() { bind_missing(listen, how, have) } else { Ok(adopted) }
}

/// How often another port is picked.
const PICKS: u32 = 16;

/// Whether an error of accept(2) is that of the connection that was waiting, not of the socket.
pub fn is_of_connection(error: i32) -> bool {
    use libc::*;
    let of_network =
        [ENETDOWN, EPROTO, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH];
    matches!(error, EINTR | ECONNABORTED | EPERM) || of_network.contains(&error)
}

/// Binds all addresses of a host; where `port` is 0, to `picked` unless that is 0 as well.
fn bind_host(
    host: &str,
    port: u16,
    backlog: i32,
    picked: &mut u16,
    listeners: &mut Vec<Listener>,
) -> io::Result<()> {
    let (mut is_bound, mut lacking) = (false, None);
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.dedup();
    for mut address in addresses {
        if port == 0 {
            address.set_port(*picked);
        }
        match bind_address(address, backlog) {
            Ok((listener, address)) => {
                if port == 0 {
                    *picked = address.port();
                }
                is_bound = true;
                listeners.push(listener);
            }
            // A name may have addresses of a family that this machine does not use.
            Err(error) if is_lacking(&error) => lacking = Some(error),
            Err(error) => return Err(error),
        }
    }
    match lacking {
        Some(error) if !is_bound => Err(error),
        _ => Ok(()),
    }
}

fn is_lacking(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind_address(address: SocketAddr, backlog: i32) -> io::Result<(Listener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?; // close-on-exec
    socket.set_reuse_address(true)?; // a restart need not wait for TIME-WAIT to pass
    if address.is_ipv6() {
        socket.set_only_v6(true)?; // IPv4 is served by a socket of its own, whatever the system's default
    }
    if address.ip().is_loopback() {
        unpace(&socket);
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    Ok((Listener::of(socket, Bound::Tcp(address))?, address))
}

/// Takes a congestion control that paces away from a socket whose connections never leave the machine: BBR's timers
/// take a third of the time of a large message there, and there is no path to be probed. Accepted sockets inherit it;
/// the route's `congctl` prevails, ip-route(8).
fn unpace(socket: &Socket) {
    let is_paced = |name: Vec<u8>| name.starts_with(b"bbr");
    if socket.tcp_congestion().is_ok_and(is_paced) {
        let _ = socket.set_tcp_congestion(b"reno"); // every kernel has it; without it all works as well
    }
}

/// A socket that somebody else has bound and listens on, which is passed on as `fd`, called `name` in errors. Its file
/// is not ours to remove. [supervisor, before fork]
pub fn adopt(fd: OwnedFd, name: &str) -> Result<Listener, BindError> {
    let failed = |source| BindError { address: name.to_owned(), source };
    let socket = Socket::from(fd);
    let expected = || io::Error::new(io::ErrorKind::InvalidInput, "expected a stream socket that listens");
    match socket.r#type().and_then(|kind| Ok((kind, socket.is_listener()?))) {
        Ok((Type::STREAM, true)) => {}
        Ok(_) => return Err(failed(expected())),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Err(failed(expected())),
        Err(error) => return Err(failed(error)),
    }
    address_of(&socket).and_then(|address| Listener::of(socket, address)).map_err(failed)
}

/// Where a socket is bound.
fn address_of(socket: &Socket) -> io::Result<Bound> {
    let address = socket.local_addr()?;
    match (address.as_socket(), address.as_pathname(), address.as_abstract_namespace()) {
        (Some(address), ..) => Ok(Bound::Tcp(address)),
        (_, Some(path), _) => Ok(Bound::Unix(path.to_owned())),
        (.., Some(name)) => Ok(Bound::Unix(format!("@{}", String::from_utf8_lossy(name)).into())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "expected an address of TCP or a path")),
    }
}

/// Binds a socket in the file system; one with permissions of its own is the owner's alone until it has them.
fn bind_unix(path: &Path, how: Binding) -> io::Result<Listener> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let before = how.mode.map(|_| umask(Mode::from_bits_truncate(0o177)));
    let bound = SockAddr::unix(path).and_then(|address| socket.bind(&address));
    before.map(umask);
    bound?;
    let listener = Listener { file: identity(path), ..Listener::of(socket, Bound::Unix(path.to_owned()))? };
    // Nobody can connect before it listens.
    let opened = permit(path, how).and_then(|()| SockRef::from(&listener.fd).listen(how.backlog));
    opened.inspect_err(|_| listener.remove_file())?;
    Ok(listener)
}

fn permit(path: &Path, how: Binding) -> io::Result<()> {
    if how.owner.is_some() || how.group.is_some() {
        chown(path, how.owner.map(Uid::as_raw), how.group.map(Gid::as_raw))?;
    }
    how.mode.map_or(Ok(()), |mode| std::fs::set_permissions(path, Permissions::from_mode(mode)))
}

/// Listens on a path that nobody but the owner, and the members of a group where one is given, may connect to.
/// [supervisor]
pub fn bind_private(path: &Path, group: Option<Gid>, backlog: i32) -> io::Result<Listener> {
    let mode = Some(if group.is_some() { 0o660 } else { 0o600 });
    let listener = bind_unix(path, Binding { backlog, mode, group, owner: None })?;
    Ok(Listener { asked: Some(Listen::Unix(path.to_owned())), ..listener })
}

/// Removes the file of a socket that nobody listens on any more; anything else is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is not a socket"))
        }
        Ok(_) => match connect(path).map_err(|error| (error.kind(), error)) {
            Err((io::ErrorKind::ConnectionRefused, _)) => std::fs::remove_file(path),
            // One whose queue is full is a server, too.
            Ok(()) | Err((io::ErrorKind::WouldBlock, _)) => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers on this socket"))
            }
            Err((_, error)) => Err(error),
        },
    }
}

/// Tries to connect, without waiting.
fn connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
