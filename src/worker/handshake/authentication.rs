//! Authentication of a client, before a handler or a file is served. The comparison of a password with its hash takes
//! long, and is done by a few threads: the request waits as it came, and is read again with the outcome. It moves like
//! any request of which something was read; another process compares anew.
//!
//! A password that was right is not compared again for a while ([`Recent`]).
//!
//! Bounds: [`THREADS`] threads, [`WAITING`] requests (of an address a quarter of them), and the time for the handshake.
//! Beyond them the answer is 503.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::{Check, Denied, Outcome, Policy, Proof, Recent, User};
use crate::clock;
use crate::fleet::memory::addresses::network_of;
use crate::http;
use crate::proto::http1::head::Head;
use crate::worker::commands::queue::{CommandQueue, ThreadCommand};
use crate::worker::conn::record::Strings;
use crate::worker::conn::table::Pause;
use crate::worker::handshake::Handshakes;
use crate::worker::handshake::outcome::Unserved;
use crate::worker::handshake::outcome::unavailable;

/// Most threads that compare passwords; no more than there are cores.
const THREADS: usize = 4;
/// Most requests that wait for them.
const WAITING: usize = 256;

/// Passwords that are being compared.
pub struct Logins {
    /// By connection, of which some may have gone; at most [`WAITING`].
    waiting: RefCell<HashMap<u64, Login>>,
    /// What was found out for a connection whose request is read again now.
    known: RefCell<Option<(u64, Outcome)>>,
    recent: RefCell<Recent>,
    threads: Cell<usize>,
    /// To the threads, which take turns with the other end.
    checks: Sender<(u64, Check)>,
    taken: Arc<Mutex<Receiver<(u64, Check)>>>,
    commands: &'static CommandQueue,
}

struct Login {
    client: Option<SocketAddr>,
    proof: Proof,
}

impl Logins {
    /// None; the threads start when there is something for them.
    pub fn new(commands: &'static CommandQueue) -> io::Result<Self> {
        let (checks, taken) = channel();
        let recent = RefCell::new(Recent::new()?);
        let (waiting, known) = Default::default();
        let (threads, taken) = (Cell::new(0), Arc::new(Mutex::new(taken)));
        Ok(Self { waiting, known, recent, threads, checks, taken, commands })
    }

    /// Whose password this is, if it was right lately; else what stands for it.
    fn look_up(&self, check: &Check) -> Result<User, Proof> {
        let recent = &mut *self.recent.borrow_mut();
        let proof = recent.proof(check);
        recent.contains(proof, clock::now()).then(|| check.user().clone()).ok_or(proof)
    }

    /// Has a password compared for a connection of this client; false if there is no room, or no thread.
    fn begin(&self, id: u64, client: Option<SocketAddr>, check: Check, proof: Proof) -> bool {
        let waiting = &mut *self.waiting.borrow_mut();
        let network = |client: Option<SocketAddr>| client.map(|client| network_of(client.ip()));
        let is_same = |login: &&Login| client.is_some() && network(login.client) == network(client);
        let of_address = waiting.values().filter(is_same).count();
        if waiting.len() >= WAITING || of_address >= WAITING / 4 {
            return false;
        }
        if let Err(error) = self.start_thread() {
            log::error!("cannot start a thread that compares passwords: {error}");
            if self.threads.get() == 0 {
                return false;
            }
        }
        waiting.insert(id, Login { client, proof });
        self.checks.send((id, check)).is_ok()
    }

    fn start_thread(&self) -> io::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        if self.threads.get() < THREADS.min(cores) {
            let (taken, commands) = (Arc::clone(&self.taken), self.commands);
            let work = move || {
                while let Some((id, check)) = next(&taken) {
                    commands.give(ThreadCommand::Authenticated(id, check.run()));
                }
            };
            std::thread::Builder::new().name("password".to_owned()).spawn(work)?;
            self.threads.set(self.threads.get() + 1);
        }
        Ok(())
    }
}

/// The next check of all threads, which is waited for.
fn next(taken: &Mutex<Receiver<(u64, Check)>>) -> Option<(u64, Check)> {
    taken.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Handshakes {
    /// The user who sends this request, if the policy asks for one.
    pub fn authenticate(
        &self,
        id: u64,
        policy: Option<&Policy>,
        head: &Head,
    ) -> Result<Option<User>, Unserved> {
        let Some(policy) = policy else { return Ok(None) };
        let known = self.logins.known.take().filter(|(conn, _)| *conn == id);
        let client = self.conns.peer(id);
        let is_known = known.is_some();
        let outcome = match known {
            Some((_, outcome)) => outcome,
            None => {
                if let Err(refusal) = self.admission.may_log_in(client) {
                    return Err(self.refuse(id, refusal, ""));
                }
                policy.authenticate(head)
            }
        };
        match outcome {
            Outcome::User(user) => Ok(Some(user)),
            Outcome::Check(check) => match self.logins.look_up(&check) {
                Ok(user) => Ok(Some(user)),
                Err(proof) if self.logins.begin(id, client, check, proof) => Err(Unserved::Waits),
                Err(_) => Err(unavailable("too many passwords to compare").into()),
            },
            Outcome::Denied(denied) => {
                if !is_known {
                    self.login_failed(client, denied);
                }
                let challenge = policy.challenge(denied);
                let fields: Vec<(&str, &str)> =
                    challenge.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Err(http::error(401, denied.why(), &fields).into())
            }
        }
    }

    /// The policy of this handler, or of what is served without one.
    pub fn policy_of(&self, handler: Option<u16>) -> Option<&Policy> {
        let authentication = &self.conns.config.authentication;
        let route = handler.and_then(|handler| self.conns.routes.get(handler));
        route
            .map_or(authentication.all.as_ref(), |route| authentication.of(&route.resource))
            .map(|policy| &**policy)
    }

    /// For the access log: the user of a request that is not for a WebSocket.
    pub fn record_user(&self, id: u64, user: Option<&User>) {
        let Some(user) = user.map(|user| user.name().as_bytes()) else { return };
        let strings = Strings { user: Some(user), ..Strings::default() };
        self.conns.edit_record(id, |record| _ = record.set_strings(strings)); // they fit
    }

    /// A password was compared. Whether to read the request again, at once: its connection may have gone, or moved.
    pub fn authenticated(&self, id: u64, outcome: Outcome) -> bool {
        let Some(login) = self.logins.waiting.borrow_mut().remove(&id) else { return false };
        match &outcome {
            Outcome::User(_) => self.logins.recent.borrow_mut().add(login.proof, clock::now()),
            Outcome::Denied(denied) => self.login_failed(login.client, *denied),
            Outcome::Check(_) => {}
        }
        if self.conns.core.borrow_mut().table.get(id).is_none() {
            return false;
        }
        self.logins.known.replace(Some((id, outcome)));
        self.conns.resume(id, Pause::Handshake);
        true
    }

    fn login_failed(&self, client: Option<SocketAddr>, denied: Denied) {
        if denied.is_attempt() {
            self.admission.login_failed(client, denied.why());
        }
    }
}
