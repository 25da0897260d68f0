//! The gateway: ends TLS and HTTP/2, and relays what is in them to the workers. Holds the keys, loads no handler, and gives
//! no worker anything but plain bytes and facts about the connection.

mod certificate;
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
use self::server::{Entrance, Frontend, Server};
use self::socket::{Socket, Watched, watch};
use crate::config::Config;
use crate::config::gateway::Entrance as Configured;
use crate::fleet::control::{self, Channel, Command};
use crate::fleet::gateway_counters::GatewayCounters;
use crate::fleet::gateway_queue::Salt;
use crate::fleet::listener::{Listener, is_of_connection};

/// Descriptors that are not connections: standard streams, listeners, the queue, the channel, epoll, the log.
const RESERVED: u64 = 64;
/// Descriptors of a connection: the peer's, ours of the pair, and for a moment the worker's.
const EACH: u64 = 3;
/// Pause when descriptors have run out.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// A certificate that expires within this time is worth a warning.
const SOON: Duration = Duration::from_secs(14 * DAY);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(DAY);
const DAY: u64 = 24 * 60 * 60;

/// What the process is given by the supervisor, just after fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The sockets to accept from.
    pub listeners: Vec<Arc<Listener>>,
    /// Where workers take connections from.
    pub queue: Arc<OwnedFd>,
    /// Where all gateways count.
    pub counters: &'static GatewayCounters,
    /// For session tickets.
    pub salt: Salt,
}

/// What is wrong with the keys and certificates of this configuration, if they cannot be served with. For a process that
/// ends soon: it has read them.
pub fn check(config: &Config) -> Result<(), String> {
    let listeners = config.gateway.listeners.iter().map(|listener| &listener.entrance);
    for entrance in listeners.chain(&config.gateway.passed) {
        if let Configured::Tls(tls) = entrance {
            tls::Acceptor::load(tls, &Salt::default())?;
        }
    }
    Ok(())
}

/// A gateway that has read its keys and may give up its rights.
pub struct Gateway {
    config: Arc<Config>,
    entrances: Vec<(Arc<Listener>, Arc<Frontend>)>,
    queue: Arc<OwnedFd>,
    counters: &'static GatewayCounters,
}

impl Gateway {
    /// Reads keys and certificates; the error says what is wrong with them. From here on no process of the same user can
    /// look into this one.
    pub fn load(start: Start) -> Result<Self, String> {
        set_dumpable(false).map_err(|error| format!("prctl: {error}"))?;
        let Start { config, listeners, queue, counters, salt } = start;
        let load = |listener: Arc<Listener>| {
            let entrance = match config.gateway.entrance(listener.asked()) {
                Some(Configured::Tls(tls)) => {
                    let hsts = tls.hsts.map(|age| format!("max-age={}", age.as_secs()));
                    Entrance::Tls { tls: tls::Acceptor::load(tls, &salt)?, hsts }
                }
                Some(Configured::H2c) => Entrance::H2c,
                Some(Configured::Redirect { to }) => Entrance::Redirect { to: to.clone() },
                None => return Err(format!("{}: not a listener of gateways", listener.address)),
            };
            let has_proxy_header = config.listener(listener.asked()).proxy_protocol;
            Ok((listener, Arc::new(Frontend { entrance, has_proxy_header })))
        };
        let entrances = listeners.into_iter().map(load).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { config, entrances, queue, counters })
    }

    /// Serves from the command to begin until it is told to leave and the last connection has ended.
    pub fn run(self, channel: &Channel) -> io::Result<()> {
        // A change of the user gives it back.
        set_dumpable(false)?;
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(self.serve(channel))
    }

    async fn serve(self, channel: &Channel) -> io::Result<()> {
        let Self { config, entrances, queue, counters } = self;
        let (drain, draining) = watch::channel(false);
        let server = Arc::new(Server::new(Queue::new(queue)?, config, counters, draining));
        let room = Arc::new(Semaphore::new(most_connections()));
        channel.send_start(&control::Start::Ready)?;
        let channel = watch(channel, Interest::READABLE)?;
        let (token, mut tokens) = mpsc::channel::<()>(1);
        let mut accepting = Vec::new();
        loop {
            match next_command(&channel).await {
                Some(Command::Begin) if accepting.is_empty() => {
                    accepting.push(tokio::spawn(watch_expiry(first_to_expire(&entrances), counters)));
                    for (listener, frontend) in &entrances {
                        let listener = watch(Arc::clone(listener), Interest::READABLE)?;
                        let frontend = Arc::clone(frontend);
                        let (server, room, token) = (Arc::clone(&server), Arc::clone(&room), token.clone());
                        accepting.push(tokio::spawn(accept(listener, frontend, server, room, token)));
                    }
                }
                // The end of the channel: the supervisor is gone, and the workers close what they have.
                Some(Command::Drain | Command::Stop) | None => break,
                Some(Command::Quit) => return Ok(()),
                Some(_) => {}
            }
        }
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        for task in accepting {
            let _ = task.await; // it was aborted, and its token is gone
        }
        // Nobody listens here any more: where the supervisor is gone, another server can.
        drop(entrances);
        drain.send_replace(true);
        drop(token);
        // The end of the channel ends nothing: the connections go with their workers.
        let told_to_quit = async {
            loop {
                match next_command(&channel).await {
                    Some(Command::Quit) => return,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let mut told_to_quit = std::pin::pin!(told_to_quit);
        std::future::poll_fn(|cx| match told_to_quit.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => tokens.poll_recv(cx).map(|_| ()),
        })
        .await;
        Ok(())
    }
}

/// The next order; `None`: the supervisor is gone.
async fn next_command(channel: &Watched<&Channel>) -> Option<Command> {
    loop {
        let mut guard = channel.readable().await.ok()?;
        match guard.try_io(|channel| channel.get_ref().0.recv_command()) {
            Ok(Ok(command)) => return command.map(|(command, _)| command),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => log::warn!("{error}"),
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// How many connections there may be: as many as the open files of this process allow, which are raised as far as
/// possible.
fn most_connections() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    usize::try_from(files.saturating_sub(RESERVED) / EACH).unwrap_or(1).clamp(1, Semaphore::MAX_PERMITS)
}

/// Accepts from a listener, as long as there is room.
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
                // Other gateways take the next ones if this one is busy.
                tokio::task::yield_now().await;
            }
            Err(error) => match error.raw_os_error() {
                Some(error) if is_of_connection(error) => {}
                // It was shut down, since the server stops or does not listen there any more.
                Some(libc::EINVAL) => return,
                _ => {
                    if !std::mem::replace(&mut has_failed, true) {
                        log::error!("accept on {address}: {error}; trying again");
                    }
                    sleep(RETRY_AFTER).await;
                }
            },
        }
    }
}

/// When the first certificate expires, since the Unix epoch, and its file.
fn first_to_expire(entrances: &[(Arc<Listener>, Arc<Frontend>)]) -> Option<(Duration, String)> {
    let tls = entrances.iter().filter_map(|(_, frontend)| match &frontend.entrance {
        Entrance::Tls { tls, .. } => Some((tls.expires, tls.first_to_expire.clone())),
        _ => None,
    });
    tls.min()
}

/// Says when the first certificate expires, and warns when that is soon.
async fn watch_expiry(first: Option<(Duration, String)>, counters: &GatewayCounters) {
    let Some((expires, file)) = first else { return };
    counters.expiry.set(expires.as_secs());
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match expires.checked_sub(now) {
            Some(left) if left > SOON => {}
            Some(left) => log::warn!("certificate {file} expires in {} days; renew it", left.as_secs() / DAY),
            None => log::error!("certificate {file} has expired; clients refuse it until it is renewed"),
        }
        sleep(LOOK).await;
    }
}
