//! `wshd cat URL`: sends standard input to a WebSocket server, and prints its messages to standard output. One thread
//! waits for both. While the server accepts no more, standard input is not read.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tungstenite::handshake::client::Response;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

use super::client::{Client, Connection, Target, would_block};
use super::complain;
use super::value::time;
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::log::Escaped;
use crate::time::Instant;

/// Longest line that becomes a message; bytes.
const MAX_LINE: usize = 16 << 20;
/// Size of a read from standard input, and of the largest message with `--binary`; bytes.
const BLOCK: usize = 64 << 10;
/// Messages received before standard input is read.
const TURN: usize = 64;

/// The command line.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 0 if the connection was closed with 1000 or without a code, with 100 + (code - 1000) \
    for the codes 1001 to 1015, 106 for a connection that ended without a Close frame, 120 for any other code.  Details: wshd-cat(1)"
)]
pub struct Cat {
    #[command(flatten)]
    target: Target,
    /// Send each block read as a binary message, and print messages unchanged, without line ends
    #[arg(short, long)]
    binary: bool,
    /// Stay connected after the end of standard input, until the server closes
    #[arg(short, long)]
    keep_open: bool,
    /// Ping this often, print round-trip times, and fail if an answer is missing
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    ping: Option<Duration>,
    /// Print the server's answer to the handshake, and how the connection ends
    #[arg(short, long)]
    verbose: bool,
}

/// How a session ends: with this close code and reason of the server, or 1006 without a Close frame. The reason can be
/// printed.
type End = (u16, String);

impl Cat {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let (connection, response) = Client::new(&self.target)?.connect()?;
        if self.verbose {
            print_head(&response);
        }
        let now = clock::now();
        let ping = self.ping.map(|interval| Pings { interval, next: now + interval, open: false });
        let input = Input { line: Vec::new(), binary: self.binary };
        let session = Session {
            connection,
            input: Some(input),
            is_blocked: false,
            pings: ping,
            close: None,
            deadline: Instant::NEVER,
            timeout: self.target.timeout,
            keep_open: self.keep_open,
            binary: self.binary,
        };
        let (code, reason) = session.run()?;
        let status = status_of(code);
        if self.verbose || status != 0 {
            let end = match code {
                1006 => "ended without a Close frame (1006)".to_owned(),
                _ => format!("closed with {code}"),
            };
            let colon = if reason.is_empty() { "" } else { ": " };
            complain(&format!("connection {end}{colon}{reason}"));
        }
        Ok(status.into())
    }
}

/// The exit status for a close code.
fn status_of(code: u16) -> u8 {
    match code {
        1000 | 1005 => 0,
        1001..=1015 => 100 + (code - 1000) as u8,
        _ => 120,
    }
}

/// Prints to standard error, whose reader may have gone.
fn print_head(response: &Response) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "< {:?} {}", response.version(), response.status());
    for (name, value) in response.headers() {
        let _ = writeln!(err, "< {name}: {}", Escaped(&String::from_utf8_lossy(value.as_bytes())));
    }
}

struct Session {
    connection: Connection,
    /// Standard input, until its end.
    input: Option<Input>,
    /// The socket is full: standard input is not read.
    is_blocked: bool,
    pings: Option<Pings>,
    /// The Close frame that was received.
    close: Option<End>,
    /// Of the closing handshake.
    deadline: Instant,
    timeout: Duration,
    keep_open: bool,
    binary: bool,
}

struct Pings {
    interval: Duration,
    next: Instant,
    /// The last one is unanswered.
    open: bool,
}

impl Session {
    fn run(mut self) -> Result<End, Failure> {
        loop {
            let has_more = match self.receive()? {
                ControlFlow::Continue(has_more) => has_more,
                ControlFlow::Break(end) => return Ok(end),
            };
            let flushed = self.connection.flush();
            self.is_blocked = would_block(&flushed);
            if let Err(error) = flushed
                && !self.is_blocked
            {
                return Ok(self.ended_by(&error));
            }
            let now = clock::now();
            if now >= self.deadline {
                return Ok(self.ended("the server does not answer the Close frame"));
            }
            if !self.ping(now) {
                return Ok((1006, "the server does not answer a ping".to_owned()));
            }
            if self.wait(has_more)? {
                self.send_input()?;
            }
        }
    }

    /// Prints received messages; whether there may be more.
    fn receive(&mut self) -> Result<ControlFlow<End, bool>, Failure> {
        let mut out = io::stdout().lock();
        for _ in 0..TURN {
            let message = match self.connection.read() {
                Ok(message) => message,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(ControlFlow::Continue(false));
                }
                Err(error) => return Ok(ControlFlow::Break(self.ended_by(&error))),
            };
            let payload = match message {
                Message::Text(text) => text.into(),
                Message::Binary(bytes) => bytes,
                Message::Pong(payload) => {
                    self.pong(&payload);
                    continue;
                }
                Message::Close(frame) => {
                    self.note_close(frame);
                    continue;
                }
                Message::Ping(_) | Message::Frame(_) => continue, // answered by the library
            };
            let line_end: &[u8] = if self.binary { b"" } else { b"\n" };
            let written = out.write_all(&payload).and_then(|()| out.write_all(line_end));
            written.and_then(|()| out.flush()).map_err(Failure::output)?;
        }
        Ok(ControlFlow::Continue(true))
    }

    fn note_close(&mut self, frame: Option<CloseFrame>) {
        let end = frame.map(|frame| (u16::from(frame.code), Escaped(&frame.reason).to_string()));
        self.close = Some(end.unwrap_or((1005, String::new())));
        self.deadline = self.deadline.min(clock::now() + self.timeout);
    }

    /// Sends a Ping when it is due; false if the last one was not answered.
    fn ping(&mut self, now: Instant) -> bool {
        let Some(pings) = self.pings.as_mut().filter(|pings| now >= pings.next) else { return true };
        if pings.open {
            return false;
        }
        pings.next = now + pings.interval;
        if self.connection.can_write() {
            pings.open = true;
            let sent = self.connection.send(Message::Ping(now.as_nanos().to_be_bytes().to_vec().into()));
            self.is_blocked |= would_block(&sent);
        }
        true
    }

    fn pong(&mut self, payload: &[u8]) {
        let Some(pings) = &mut self.pings else { return };
        let Ok(sent) = payload.try_into().map(u64::from_be_bytes) else { return };
        pings.open = false;
        let time = clock::now().since(Instant::from_nanos(sent)).as_secs_f64() * 1e3;
        let _ = writeln!(io::stderr(), "pong after {time:.3} ms");
    }

    /// Waits for an event; true if standard input is readable.
    fn wait(&self, has_more: bool) -> io::Result<bool> {
        let stdin = io::stdin();
        let next = self.pings.as_ref().map_or(Instant::NEVER, |pings| pings.next).min(self.deadline);
        let timeout = match has_more {
            true => PollTimeout::ZERO,
            false if next.is_never() => PollTimeout::NONE,
            // Rounded up, so that the deadline has passed then.
            false => {
                PollTimeout::try_from(next.since(clock::now()).as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, self.is_blocked);
        let mut fds = vec![PollFd::new(self.connection.get_ref().as_fd(), events)];
        if self.input.is_some() && !self.is_blocked {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds.get(1).is_some_and(|fd| fd.any() == Some(true))),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads standard input once and sends the complete messages.
    fn send_input(&mut self) -> Result<(), Failure> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut block = vec![0; BLOCK];
        let unusable = |why: String| Failure(Exit::Internal, format!("standard input: {why}"));
        let size = io::stdin().lock().read(&mut block).map_err(|error| unusable(error.to_string()))?;
        block.truncate(size);
        let is_end = block.is_empty();
        let messages = input.messages(&block).map_err(unusable)?;
        for message in messages {
            if self.connection.can_write() {
                // Unwritten bytes stay in the connection's buffer; the next read returns other errors again.
                let _ = self.connection.write(message);
            }
        }
        if is_end {
            self.input = None;
            if !self.keep_open {
                self.deadline = clock::now() + self.timeout;
                let normal = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
                let _ = self.connection.close(Some(normal)); // as above
            }
        }
        Ok(())
    }

    fn ended_by(&mut self, error: &Error) -> End {
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => self.ended(""),
            error => self.ended(&error.to_string()),
        }
    }

    fn ended(&mut self, why: &str) -> End {
        self.close.take().unwrap_or((1006, why.to_owned()))
    }
}

/// Splits standard input into messages.
struct Input {
    /// An incomplete line; at most [`MAX_LINE`].
    line: Vec<u8>,
    binary: bool,
}

impl Input {
    /// The messages completed by this block; an empty block is the end of the input.
    fn messages(&mut self, block: &[u8]) -> Result<Vec<Message>, String> {
        if self.binary {
            let message = (!block.is_empty()).then(|| Message::binary(block.to_vec()));
            return Ok(message.into_iter().collect());
        }
        if block.is_empty() {
            let rest = std::mem::take(&mut self.line);
            return if rest.is_empty() { Ok(Vec::new()) } else { Ok(vec![text(rest)?]) };
        }
        let mut messages = Vec::new();
        for piece in block.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE {
                return Err(format!("a line is longer than {MAX_LINE} bytes: send it with --binary"));
            }
            self.line.extend_from_slice(piece);
            if self.line.last() == Some(&b'\n') {
                let mut line = std::mem::take(&mut self.line);
                line.pop();
                messages.push(text(line)?);
            }
        }
        Ok(messages)
    }
}

fn text(line: Vec<u8>) -> Result<Message, String> {
    let text = String::from_utf8(line).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("a line is not UTF-8 from byte {at} on: send it with --binary")
    })?;
    Ok(Message::text(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(blocks: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut input = Input { line: Vec::new(), binary: false };
        let mut all = Vec::new();
        for block in blocks {
            all.extend(
                input.messages(block)?.into_iter().map(|message| message.into_text().unwrap().to_string()),
            );
        }
        Ok(all)
    }

    #[test]
    fn lines_become_messages_wherever_blocks_are_cut() {
        assert_eq!(lines(&[b"a\nb", b"c\n\n", b""]).unwrap(), ["a", "bc", ""]);
        assert_eq!(lines(&[b"no end", b""]).unwrap(), ["no end"]);
        assert_eq!(lines(&[b"caf\xc3", b"\xa9\n", b""]).unwrap(), ["caf\u{e9}"]);
    }

    #[test]
    fn lines_that_are_not_text_are_errors() {
        assert!(lines(&[b"ok\nab\xff\n"]).unwrap_err().contains("byte 2 on: send it with --binary"));
        assert!(lines(&[&vec![b'a'; MAX_LINE + 1]]).unwrap_err().contains("longer than"));
    }

    #[test]
    fn the_exit_status_tells_the_close_code() {
        let status = [1000, 1005, 1001, 1011, 1006, 1015, 3000, 4999].map(status_of);
        assert_eq!(status, [0, 0, 101, 111, 106, 115, 120, 120]);
    }
}
