//! The gateway: terminates TLS and HTTP/2, and relays the content to the workers. It holds the keys, loads no handler,
//! and passes to workers only plain bytes and facts about the connection.

mod certificate;
mod clients;
mod http2;
mod queue;
mod relay;
mod server;
mod session;
mod socket;
mod stream;
mod tickets;
mod tls;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;

use self::queue::Queue;
use self::server::{Frontend, Protocol, Server};
use self::socket::{Socket, Watched, watch};
use crate::config::Config;
use crate::config::gateway::Protocol as Configured;
use crate::fleet::memory::counters::gateway::GatewayCounters;
use crate::fleet::sockets::control::{AUXILIARY_READY, Channel, Command};
use crate::fleet::sockets::gateway_queue::Salt;
use crate::fleet::sockets::listener::{Listener, is_of_connection};

/// Descriptors that are not connections: standard streams, listeners, the queue, the channel, epoll, the log.
const RESERVED: u64 = 64;
/// Descriptors of a connection or stream, at most: the peer's, ours of the pair, and for a moment the worker's.
const EACH: u64 = 3;
/// Delay before another attempt after accept failed, for example for lack of descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Warn about a certificate that expires within this time.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * DAY);
/// Interval of that check.
const CHECK: Duration = Duration::from_secs(DAY);
const DAY: u64 = 24 * 60 * 60;

/// What the supervisor passes on through the fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The sockets to accept from.
    pub listeners: Vec<Arc<Listener>>,
    /// Sending end of the queue of connections for workers.
    pub queue: OwnedFd,
    /// Shared by all gateways.
    pub counters: &'static GatewayCounters,
    /// For session tickets.
    pub salt: Salt,
}

/// Checks that the keys and certificates of this configuration can be used. It reads them: call it in a short-lived
/// process only.
pub fn check(config: &Config) -> Result<(), String> {
    let listeners = config.gateway.listeners.iter().map(|listener| &listener.protocol);
    for protocol in listeners.chain(&config.gateway.passed) {
        if let Configured::Tls(tls) = protocol {
            tls::Acceptor::load(tls, &Salt::default())?;
        }
    }
    Ok(())
}

/// A gateway that has read its keys, and can give up its privileges.
pub struct Gateway {
    config: Arc<Config>,
    frontends: Vec<(Arc<Listener>, Arc<Frontend>)>,
    queue: Arc<OwnedFd>,
    counters: &'static GatewayCounters,
}

impl Gateway {
    /// Reads keys and certificates; the error says what is wrong with them. From here on, no process of the same user
    /// can read this one's memory.
    pub fn load(start: Start) -> Result<Self, String> {
        set_dumpable(false).map_err(|error| format!("prctl: {error}"))?;
        let Start { config, listeners, queue, counters, salt } = start;
        let load = |listener: Arc<Listener>| {
            let protocol = match config.gateway.protocol(listener.asked()) {
                Some(Configured::Tls(tls)) => {
                    let hsts = tls.hsts.map(|age| format!("max-age={}", age.as_secs()));
                    Protocol::Tls { tls: tls::Acceptor::load(tls, &salt)?, hsts }
                }
                Some(Configured::H2c) => Protocol::H2c,
                Some(Configured::Redirect { to }) => Protocol::Redirect { to: to.clone() },
                None => return Err(format!("{}: not a listener of gateways", listener.address)),
            };
            let has_proxy_header = config.listener(listener.asked()).proxy_protocol;
            Ok((listener, Arc::new(Frontend { protocol, has_proxy_header })))
        };
        let frontends = listeners.into_iter().map(load).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { config, frontends, queue: Arc::new(queue), counters })
    }

    /// Serves from the command to begin until the command to drain and the end of the last connection.
    pub fn run(self, channel: &Channel) -> io::Result<()> {
        // A change of the user has reset it.
        set_dumpable(false)?;
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(self.serve(channel))
    }

    async fn serve(self, channel: &Channel) -> io::Result<()> {
        let Self { config, frontends, queue, counters } = self;
        let (drain, draining) = watch::channel(false);
        let room = Arc::new(Semaphore::new(max_connections()));
        let server = Arc::new(Server::new(Queue::new(queue)?, config, counters, draining, Arc::clone(&room)));
        channel.send_report(&AUXILIARY_READY)?;
        let channel = watch(channel, Interest::READABLE)?;
        let (token, mut tokens) = mpsc::channel::<()>(1);
        let mut accepting = Vec::new();
        loop {
            match next_command(&channel).await {
                Some(Command::Begin) if accepting.is_empty() => {
                    accepting.push(tokio::spawn(watch_expiry(first_to_expire(&frontends), counters)));
                    for (listener, frontend) in &frontends {
                        let listener = watch(Arc::clone(listener), Interest::READABLE)?;
                        let frontend = Arc::clone(frontend);
                        let (server, room, token) = (Arc::clone(&server), Arc::clone(&room), token.clone());
                        accepting.push(tokio::spawn(accept(listener, frontend, server, room, token)));
                    }
                }
                // End of the channel: the supervisor is gone, and the workers drain, too.
                Some(Command::Drain | Command::Stop) | None => break,
                Some(Command::Quit) => return Ok(()),
                Some(_) => {}
            }
        }
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        for task in accepting {
            let _ = task.await; // aborted: it has dropped its token
        }
        // Closes the listeners: if the supervisor is gone, another server can listen.
        drop(frontends);
        drain.send_replace(true);
        drop(token);
        // At the end of the channel, the connections go on until their workers end them.
        let quit = async {
            loop {
                match next_command(&channel).await {
                    Some(Command::Quit) => return,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let mut quit = std::pin::pin!(quit);
        std::future::poll_fn(|cx| match quit.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => tokens.poll_recv(cx).map(|_| ()),
        })
        .await;
        Ok(())
    }
}

/// The next command; `None`: the supervisor is gone.
async fn next_command(channel: &Watched<&Channel>) -> Option<Command> {
    loop {
        let mut guard = channel.readable().await.ok()?;
        match guard.try_io(|channel| channel.get_ref().0.recv_command()) {
            Ok(Ok(command)) => return command.map(|(command, _)| command),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                log::warn!("the supervisor {error}; ignored")
            }
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// Maximum connections and streams: as many as RLIMIT_NOFILE allows, which is raised to its hard limit.
fn max_connections() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    usize::try_from(files.saturating_sub(RESERVED) / EACH).unwrap_or(1).clamp(1, Semaphore::MAX_PERMITS)
}

/// Accepts from a listener while permits are available.
async fn accept(
    listener: Watched<Arc<Listener>>,
    frontend: Arc<Frontend>,
    server: Arc<Server>,
    room: Arc<Semaphore>,
    token: mpsc::Sender<()>,
) {
    let address = listener.get_ref().0.address.clone();
    let mut has_failed = false;
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = match listener.readable().await {
            Ok(mut guard) => {
                let accepted = guard.try_io(|listener| {
                    SockRef::from(&*listener.get_ref().0).accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                });
                match accepted {
                    Ok(accepted) => accepted,
                    Err(_would_block) => continue,
                }
            }
            Err(error) => Err(error),
        };
        match accepted.and_then(|(socket, peer)| Ok((Socket::new(socket)?, peer))) {
            Ok((socket, peer)) => {
                has_failed = false;
                server.begin(&frontend, socket, peer.as_socket(), (permit, token.clone()));
                // Lets other gateways accept if this one is busy.
                tokio::task::yield_now().await;
            }
            Err(error) => match error.raw_os_error() {
                Some(error) if is_of_connection(error) => {}
                // It was shut down: the server stops, or does not listen there any more.
                Some(libc::EINVAL) => return,
                _ => {
                    if !std::mem::replace(&mut has_failed, true) {
                        log::error!("cannot accept on {address}: {error}; retrying");
                    }
                    sleep(RETRY_AFTER).await;
                }
            },
        }
    }
}

/// When the first certificate expires, since the Unix epoch, and its file.
fn first_to_expire(frontends: &[(Arc<Listener>, Arc<Frontend>)]) -> Option<(Duration, String)> {
    let tls = frontends.iter().filter_map(|(_, frontend)| match &frontend.protocol {
        Protocol::Tls { tls, .. } => Some((tls.expires, tls.first_to_expire.clone())),
        _ => None,
    });
    tls.min()
}

/// Publishes when the first certificate expires, and warns if that is soon.
async fn watch_expiry(first: Option<(Duration, String)>, counters: &GatewayCounters) {
    let Some((expires, file)) = first else { return };
    counters.expiry.set(expires.as_secs());
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match expires.checked_sub(now) {
            Some(left) if left > EXPIRES_SOON => {}
            Some(left) => log::warn!("certificate {file} expires in {} days; renew it", left.as_secs() / DAY),
            None => log::error!("certificate {file} has expired; clients refuse it until it is renewed"),
        }
        sleep(CHECK).await;
    }
}
