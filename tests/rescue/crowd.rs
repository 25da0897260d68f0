//! A crowd of clients on one thread: each numbers its messages, and checks that every echo arrives once, whole
//! and in order. Implements the protocol itself, to detect every wrong byte.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::client::{BINARY, CLOSE, PING, UPGRADE, frame};
use crate::daemon::TIMEOUT;

/// Bytes written at a time.
const PIECE: usize = 64 * 1024;

/// The behaviour of the clients of a crowd.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Every second client offers permessage-deflate.
    pub deflate: bool,
    /// Every 20th client, which does not compress, sends messages of this size.
    pub large: usize,
    /// They send only when a test waits for it.
    pub quiet: bool,
}

pub const SMALL_TALK: Habits = Habits { deflate: false, large: 0, quiet: false };

/// How a client's connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub client: usize,
    /// The code of the Close frame, if there was one.
    pub code: Option<u16>,
    /// A message had been sent, in part or whole, without an echo yet.
    pub in_message: bool,
}

#[derive(Default)]
struct Shared {
    ends: Vec<End>,
    /// Why the crowd has failed.
    failure: Option<String>,
}

/// A crowd that sends until it is dropped, in waves: each remaining client sends one message and gets
/// its echo.
pub struct Crowd {
    shared: Arc<Mutex<Shared>>,
    orders: Sender<Sender<Wave>>,
    thread: Option<JoinHandle<()>>,
}

/// A completed wave.
#[derive(Clone, Copy, Debug)]
pub struct Wave {
    #[allow(dead_code)] // not every test that includes this uses the times
    pub begun: Instant,
    #[allow(dead_code)]
    pub ended: Instant,
    /// Clients that took part.
    pub clients: usize,
}

impl Crowd {
    /// Opens this many clients of one resource.
    #[track_caller]
    pub fn gather(address: &str, resource: &str, count: usize, habits: Habits) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (orders, inbox) = channel();
        let (ready, is_ready) = channel();
        let (address, resource) = (address.to_owned(), resource.to_owned());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let talk = || {
                let mut talkers = Talkers::open(&address, &resource, count, habits)?;
                let _ = ready.send(());
                talkers.talk(&inbox, &theirs)
            };
            if let Err(why) = talk() {
                theirs.lock().unwrap().failure = Some(why);
            }
        });
        let crowd = Crowd { shared, orders, thread: Some(thread) };
        if is_ready.recv_timeout(2 * TIMEOUT).is_err() {
            panic!("no crowd: {:?}", crowd.shared.lock().unwrap().failure);
        }
        crowd
    }

    /// Waits for a wave that begins after this call; at its end each remaining client was served.
    #[track_caller]
    pub fn served(&self) -> Wave {
        let (sender, wave) = channel();
        let _ = self.orders.send(sender);
        match wave.recv_timeout(2 * TIMEOUT) {
            Ok(wave) => wave,
            Err(_) => panic!("the crowd: {:?}", self.shared.lock().unwrap().failure),
        }
    }

    /// The ends since the last call.
    pub fn ends(&self) -> Vec<End> {
        std::mem::take(&mut self.shared.lock().unwrap().ends)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.orders = channel().0;
        let thread = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(thread, Some(Ok(()))));
            let shared = self.shared.lock().unwrap();
            assert_eq!(
                (&shared.failure, &shared.ends[..]),
                (&None, &[][..]),
                "ends that no test has asked for"
            );
        }
    }
}

struct Talker {
    stream: TcpStream,
    /// Messages sent, and echoes received.
    sent: u64,
    heard: u64,
    /// Bytes that the socket has not accepted yet.
    unsent: VecDeque<u8>,
    input: Vec<u8>,
    /// Of the message that is being received.
    message: Vec<u8>,
    compressed: bool,
    /// The inflate context for the server's messages.
    inflate: Option<Decompress>,
    size: usize,
    over: bool,
}

struct Talkers {
    epoll: Epoll,
    talkers: Vec<Talker>,
    quiet: bool,
}

impl Talkers {
    fn open(address: &str, resource: &str, count: usize, habits: Habits) -> Result<Self, String> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut talkers = Vec::with_capacity(count);
        for index in 0..count {
            let stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
            let deflate = habits.deflate && index % 2 == 1;
            let offer = if deflate {
                "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n"
            } else {
                ""
            };
            let request = format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}{offer}\r\n");
            (&stream).write_all(request.as_bytes()).map_err(|error| format!("request: {error}"))?;
            let size = if habits.large > 0 && index % 20 == 14 { habits.large } else { 0 };
            talkers.push(Talker {
                stream,
                sent: 0,
                heard: 0,
                unsent: VecDeque::new(),
                input: Vec::new(),
                message: Vec::new(),
                compressed: false,
                inflate: deflate.then(|| Decompress::new(false)),
                size,
                over: false,
            });
        }
        for (index, talker) in talkers.iter_mut().enumerate() {
            talker.finish_opening().map_err(|why| format!("client {index}: {why}"))?;
            talker.stream.set_nonblocking(true).unwrap();
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, index as u64);
            epoll.add(talker.stream.as_fd(), event).unwrap();
        }
        Ok(Talkers { epoll, talkers, quiet: habits.quiet })
    }

    fn talk(&mut self, orders: &Receiver<Sender<Wave>>, shared: &Mutex<Shared>) -> Result<(), String> {
        let mut waiting = Vec::new();
        loop {
            if self.quiet {
                let Ok(order) = orders.recv() else { return Ok(()) };
                waiting.push(order);
            }
            loop {
                match orders.try_recv() {
                    Ok(order) => waiting.push(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            let wave = self.wave(shared)?;
            for order in waiting.drain(..) {
                let _ = order.send(wave);
            }
            std::thread::sleep(Duration::from_millis(2)); // others need the processors too
        }
    }

    fn wave(&mut self, shared: &Mutex<Shared>) -> Result<Wave, String> {
        let begun = Instant::now();
        let mut open = 0;
        for (index, talker) in self.talkers.iter_mut().enumerate().filter(|(_, talker)| !talker.over) {
            open += 1;
            talker.say(index);
        }
        let clients = open;
        let mut events = [EpollEvent::empty(); 256];
        while self.talkers.iter().any(|talker| !talker.over && talker.heard < talker.sent) {
            let mut writing = false;
            for talker in self.talkers.iter_mut().filter(|talker| !talker.over && !talker.unsent.is_empty()) {
                talker.write();
                writing = true;
            }
            let count = self.epoll.wait(&mut events, if writing { 1_u16 } else { 1000 }).unwrap_or(0);
            for event in &events[..count] {
                let index = event.data() as usize;
                let talker = &mut self.talkers[index];
                if talker.over {
                    continue;
                }
                if let Some(code) = talker.hear(index)? {
                    talker.over = true;
                    open -= 1;
                    let in_message = talker.heard < talker.sent;
                    shared.lock().unwrap().ends.push(End { client: index, code, in_message });
                }
            }
            if begun.elapsed() > TIMEOUT {
                let silent =
                    self.talkers.iter().position(|talker| !talker.over && talker.heard < talker.sent);
                let talker = &self.talkers[silent.unwrap_or(0)];
                return Err(format!(
                    "client {silent:?} is not served: sent {}, heard {}, {} bytes unsent, {} bytes of a frame; {open} open",
                    talker.sent,
                    talker.heard,
                    talker.unsent.len(),
                    talker.input.len()
                ));
            }
        }
        Ok(Wave { begun, ended: Instant::now(), clients })
    }
}

impl Talker {
    fn finish_opening(&mut self) -> Result<(), String> {
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
                self.input.drain(..end + 4);
                let deflate = head.contains("Sec-WebSocket-Extensions: permessage-deflate");
                let as_wished = head.starts_with("HTTP/1.1 101 ") && deflate == self.inflate.is_some();
                return if as_wished { Ok(()) } else { Err(head) };
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(format!("the end in the opening handshake: {:?}", self.input)),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(format!("in the opening handshake: {error}")),
            }
        }
    }

    fn payload(&self, index: usize, number: u64) -> Vec<u8> {
        let mut text = format!("client {index} message {number}; ").into_bytes();
        text.resize(text.len().max(self.size).max(80), b'.');
        text
    }

    fn say(&mut self, index: usize) {
        let payload = self.payload(index, self.sent);
        self.sent += 1;
        let bytes = match &self.inflate {
            Some(_) => frame(BINARY | 0x40, &deflated(&payload)),
            None => frame(BINARY, &payload),
        };
        self.unsent.extend(bytes);
        self.write();
    }

    /// Writes a piece, so that a large message takes a while.
    fn write(&mut self) {
        let bytes = self.unsent.as_slices().0;
        // Reading finds the kind of the end.
        if let Ok(count) = self.stream.write(&bytes[..bytes.len().min(PIECE)]) {
            self.unsent.drain(..count);
        }
    }

    /// Reads what is available. At the end of the connection: the code of its Close frame, if there was one.
    fn hear(&mut self, index: usize) -> Result<Option<Option<u16>>, String> {
        let mut buffer = [0; 64 * 1024];
        let mut close = None;
        let mut waited = false;
        loop {
            let ended = match self.stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    false
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => match close {
                    None => return Ok(None),
                    Some(_) if waited => return Err(format!("client {index}: no end after the Close frame")),
                    Some(_) => {
                        self.stream.set_nonblocking(false).unwrap();
                        waited = true;
                        continue;
                    }
                },
                Err(_) => true,
            };
            let mut at = 0;
            while let Some((first, payload)) = frame_at(&self.input, &mut at) {
                let what = || format!("client {index}, after {} echoes: frame {first:#x}", self.heard);
                match first {
                    _ if close.is_some() => return Err(format!("{} after a Close frame", what())),
                    CLOSE => {
                        let code: [u8; 2] = payload.get(..2).unwrap_or(&[3, 237]).try_into().unwrap();
                        close = Some(u16::from_be_bytes(code));
                    }
                    PING => self.unsent.extend(frame(crate::client::PONG, payload)),
                    0x00 | 0x80 | 0x02 | 0x82 | 0xc2 | 0x42 => {
                        if first & 0x0f != 0 {
                            self.compressed = first & 0x40 != 0;
                        }
                        self.message.extend_from_slice(payload);
                        if first & 0x80 != 0 {
                            let message = std::mem::take(&mut self.message);
                            let message = match (&mut self.inflate, self.compressed) {
                                (Some(inflate), true) => inflated(inflate, message, self.size.max(80)),
                                _ => message,
                            };
                            if message != self.payload(index, self.heard) {
                                return Err(format!("{}: not the echo of message {}", what(), self.heard));
                            }
                            self.heard += 1;
                        }
                    }
                    _ => return Err(what()),
                }
            }
            self.input.drain(..at);
            if ended {
                return Ok(Some(close));
            }
        }
    }
}

/// The frame at `at`, which is advanced past it; None if it is incomplete.
fn frame_at<'a>(input: &'a [u8], at: &mut usize) -> Option<(u8, &'a [u8])> {
    let rest = input.get(*at..)?;
    let (header, size) = match *rest.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(rest.get(2..10)?.try_into().unwrap()) as usize),
        size => (2, usize::from(size)),
    };
    let payload = rest.get(header..header + size)?;
    *at += header + size;
    Some((rest[0], payload))
}

/// RFC 7692 section 7.2.1, with a context of its own.
fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 64);
    let mut deflate = Compress::new(Compression::fast(), false);
    deflate.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
    out.truncate(out.len() - 4);
    out
}

/// RFC 7692 section 7.2.2, with context takeover.
fn inflated(inflate: &mut Decompress, mut message: Vec<u8>, about: usize) -> Vec<u8> {
    message.extend_from_slice(&[0, 0, 0xff, 0xff]);
    let mut out = Vec::with_capacity(about + 1024);
    match inflate.decompress_vec(&message, &mut out, FlushDecompress::Sync) {
        Ok(_) => out,
        Err(error) => format!("not to be inflated: {error}").into_bytes(),
    }
}
