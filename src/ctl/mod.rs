//! `wshd ctl`: asks a running server over its control socket and shows the answer. Decides nothing and knows nothing
//! of the server but this socket; `request` and `answer` are the language on it, which the server uses as well.

pub mod answer;
pub mod arrange;
pub mod filter;
pub mod publish;
pub mod record;
pub mod request;
mod table;
pub mod topics;
mod view;

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use self::arrange::{Key, arrange};
use self::publish::Payload;
use self::request::Request;
use crate::exit::{Exit, Failure};
use crate::fleet::sockets::datagram;

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take for what is more than an answer.
const LONG_PATIENCE: Duration = Duration::from_secs(660);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 20;

/// What to ask, and what to do with the answer.
#[derive(Debug)]
pub struct Order {
    /// The control socket.
    pub socket: PathBuf,
    /// What to ask.
    pub request: Request,
    /// How to show the answer.
    pub show: Show,
    /// Where to write what is recorded, if that is asked for.
    pub target: Option<record::Target>,
}

/// How to show an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Show {
    /// As it came.
    pub json: bool,
    /// Again and again, with this much time between.
    pub watch: Option<Duration>,
    /// Connections in this order.
    pub sort: Option<Key>,
    /// At most so many connections.
    pub limit: Option<usize>,
}

/// Carries an order out and shows the answer on standard output, or on standard error what went wrong.
pub fn run(order: &Order) -> Exit {
    attempt(order, &mut io::stdout().lock()).map_or_else(Failure::report, |()| Exit::Ok)
}

fn attempt(order: &Order, out: &mut impl Write) -> Result<(), Failure> {
    let mut print = |text: &str| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(Failure::output)
    };
    if let Some(target) = &order.target {
        return print(&record::run(&order.socket, &order.request, target)?);
    }
    let is_terminal = io::stdout().is_terminal();
    let request = with_input(&order.request)?;
    loop {
        let mut result = ask(&order.socket, &request)?;
        if order.show.sort.is_some() || order.show.limit.is_some() {
            arrange(&mut result, order.show.sort, order.show.limit);
        }
        let text = match order.show.json {
            true => format!("{result}\n"),
            false => view::of(&request, &result, is_terminal).map_err(not_understood)?,
        };
        let Some(interval) = order.show.watch else { return print(&text) };
        match (is_terminal, order.show.json) {
            (_, true) => print(&text)?,
            (true, false) => print(&(CLEAR.to_owned() + &text))?,
            (false, false) => print(&(text + "\n"))?,
        }
        sleep(interval);
    }
}

fn not_understood(error: serde_json::Error) -> Failure {
    unreachable(format!("the server's answer is not understood: {error}"))
}

fn unreachable(why: String) -> Failure {
    Failure(Exit::Unreachable, why)
}

fn refused(why: String) -> Failure {
    Failure(Exit::Refused, why)
}

/// With what comes on standard input, if it needs that.
fn with_input(request: &Request) -> Result<Request, Failure> {
    let mut request = request.clone();
    if let Request::Publish { data, .. } = &mut request {
        *data = Payload::read(io::stdin().lock()).map_err(refused)?;
    }
    Ok(request)
}

/// To the upper left, and everything from there on away (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Sends a request and waits for its result.
pub fn ask(path: &Path, request: &Request) -> Result<Value, Failure> {
    ask_with(path, request, None)
}

/// The same with a descriptor that goes with it.
fn ask_with(path: &Path, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<Value, Failure> {
    let line = request.line().map_err(refused)?;
    let socket = connect(path).map_err(|error| unreachable(advice(path, &error)))?;
    let timeout = match request {
        Request::Reload {} | Request::Upgrade {} | Request::Workers { .. } => LONG_PATIENCE,
        _ => TIMEOUT,
    };
    let mut answer = Vec::new();
    let mut reader = BufReader::new((&socket).take(MAX_ANSWER));
    let answered = socket
        .set_read_timeout(Some(timeout))
        // A server that has hung up may have said why before.
        .map(|()| match fd {
            Some(fd) => datagram::send(socket.as_fd(), &line, &[fd]),
            None => (&socket).write_all(&line),
        })
        .and_then(|sent| reader.read_until(b'\n', &mut answer).and(sent));
    match answered.map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, _)) => {
            let why = format!("the server at {} does not answer: is its supervisor stopped?", path.display());
            return Err(unreachable(why));
        }
        Err((_, error)) if answer.is_empty() => {
            return Err(unreachable(format!("{}: {error}", path.display())));
        }
        Ok(()) | Err(_) => {}
    }
    match answer::read(&answer) {
        Some(result) => result.map_err(refused),
        None if answer.is_empty() => {
            Err(unreachable(format!("the server at {} ended without an answer", path.display())))
        }
        None => Err(unreachable(format!("{} is no control socket of wshd", path.display()))),
    }
}

fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(TIMEOUT))?; // connecting counts as writing (unix(7))
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// What to do about a socket that cannot be connected to.
fn advice(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no server listens on {path}: is it running with --control-socket {path}?")
        }
        io::ErrorKind::PermissionDenied => format!(
            "{path}: permission denied: be root or the server's user, or give the server a control_group"
        ),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the server at {path} accepts no connection: is its supervisor stopped?")
        }
        _ => format!("{path}: {error}"),
    }
}
