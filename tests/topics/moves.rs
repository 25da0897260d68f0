//! A chat whose members number their messages, while connections move: none is lost or duplicated.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Raw, frame};
use crate::daemon::{Dir, Server, children, is_alive, until};
use crate::fixtures::add_handler;

/// One member in this many speaks.
const SPEAKERS: usize = 25;
const TIMEOUT: Duration = Duration::from_secs(120);

struct Member {
    stream: TcpStream,
    read: Vec<u8>,
    /// The next expected number, by speaker.
    next: Vec<u32>,
    /// The last number that it sent.
    said: u32,
    /// The close code of its connection; 0 without one.
    end: Option<u16>,
}

struct Chat {
    members: Vec<Member>,
    poll: Epoll,
    is_quiet: bool,
}

impl Chat {
    fn gather(address: &str, resources: &[&str], count: usize) -> Self {
        let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let member = |index: usize| {
            let mut raw = Raw::open(address, resources[index % resources.len()]);
            assert_eq!(raw.ask("sub room"), "sub 0");
            let stream = raw.into_stream();
            stream.set_nonblocking(true).unwrap();
            poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).unwrap();
            Member { stream, read: Vec::new(), next: vec![0; count], said: 0, end: None }
        };
        let members = (0..count).map(member).collect();
        Chat { members, poll, is_quiet: false }
    }

    fn speakers(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.members.len()).step_by(SPEAKERS)
    }

    /// The speaker sends its next number.
    fn say(&mut self, speaker: usize) {
        let member = &mut self.members[speaker];
        let text = format!("quiet room {speaker} {}", member.said);
        // Reading detects the end of a connection.
        if member.end.is_none() && member.stream.write_all(&frame(0x81, text.as_bytes())).is_ok() {
            member.said += 1;
        }
    }

    /// Receives and sends until the condition holds.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&Chat) -> bool) {
        let give_up = Instant::now() + TIMEOUT;
        let mut events = [EpollEvent::empty(); 256];
        while !is_so(self) {
            assert!(Instant::now() < give_up, "{what}");
            let count = self.poll.wait(&mut events, 20_u8).unwrap_or(0);
            for event in &events[..count] {
                self.listen(event.data() as usize);
            }
            self.talk();
        }
    }

    fn listen(&mut self, index: usize) {
        let mut bytes = [0; 16 * 1024];
        let end = loop {
            let member = &mut self.members[index];
            match member.stream.read(&mut bytes) {
                Ok(0) => break true,
                Ok(count) => member.read.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        while let Some((first, payload)) = self.members[index].take_frame() {
            match first & 15 {
                1 => self.hear(index, &String::from_utf8(payload).unwrap()),
                8 => self.members[index].end = Some(u16::from_be_bytes([payload[0], payload[1]])),
                // Otherwise it would count as gone. Reading detects the end of its connection.
                9 => drop(self.members[index].stream.write_all(&frame(0x8a, &payload))),
                _ => {}
            }
        }
        if end {
            let member = &mut self.members[index];
            member.end.get_or_insert(0);
            self.poll.delete(&member.stream).unwrap();
        }
    }

    fn hear(&mut self, index: usize, text: &str) {
        let (speaker, number) = text.split_once(' ').unwrap();
        let (speaker, number): (usize, u32) = (speaker.parse().unwrap(), number.parse().unwrap());
        let next = &mut self.members[index].next[speaker];
        assert_eq!(number, *next, "member {index} misses or doubles what {speaker} has said");
        *next += 1;
    }

    /// Speakers continue when they have received their own message, unless others are far behind in a slower worker.
    fn talk(&mut self) {
        for speaker in if self.is_quiet { 0..0 } else { 0..self.members.len() }.step_by(SPEAKERS) {
            let said = self.members[speaker].said;
            let present = self.members.iter().filter(|member| member.end.is_none());
            let slowest = present.map(|member| member.next[speaker]).min().unwrap_or(said);
            if self.members[speaker].next[speaker] == said && slowest + 5 > said {
                self.say(speaker);
            }
        }
    }

    /// All remaining speakers have sent and received this many more.
    #[track_caller]
    fn rounds(&mut self, rounds: u32) {
        let goals: Vec<(usize, u32)> =
            self.speakers().map(|speaker| (speaker, self.members[speaker].next[speaker] + rounds)).collect();
        let is_there = |chat: &Chat, (speaker, goal): &(usize, u32)| {
            let member = &chat.members[*speaker];
            member.end.is_some() || member.next[*speaker] >= *goal
        };
        self.until("all go on talking", |chat| goals.iter().all(|goal| is_there(chat, goal)));
    }

    /// All remaining members have received all messages of the remaining speakers.
    #[track_caller]
    fn end(&mut self) {
        self.is_quiet = true;
        let speakers: Vec<usize> = self.speakers().collect();
        self.until("all have heard all", |chat| {
            let present = |speaker: &&usize| chat.members[**speaker].end.is_none();
            let has_all = |member: &Member| {
                speakers
                    .iter()
                    .filter(present)
                    .all(|speaker| member.next[*speaker] == chat.members[*speaker].said)
            };
            chat.members.iter().filter(|member| member.end.is_none()).all(has_all)
        });
    }

    fn ends(&self) -> Vec<u16> {
        self.members.iter().filter_map(|member| member.end).collect()
    }
}

impl Member {
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, length, ..] = *self.read.as_slice() else { return None };
        assert!(length < 126);
        let end = 2 + usize::from(length);
        let payload = self.read.get(2..end)?.to_vec();
        self.read.drain(..end);
        Some((first, payload))
    }
}

/// The children of a process whose title begins with this.
fn children_named(pid: i32, name: &str) -> Vec<i32> {
    let title = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    children(pid).into_iter().filter(|pid| title(pid).starts_with(name)).collect()
}

/// Crashes, a reload that replaces all workers, and an upgrade, which also replaces the bus. In each stage all continue
/// for this many rounds.
fn chat_through_all(members: usize, workers: &str, rounds: u32) {
    let dir = Dir::new();
    ["one", "two"].iter().for_each(|path| add_handler(dir.path(), path, "topics"));
    let config = dir.path().join("wshd.conf");
    let text = "[handler.\"/one\"]\ntopics = \"room\"\n[handler.\"/two\"]\nisolation = \"pool\"\ntopics = \"room\"\n[pool.two]\nworkers = 2\n";
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--workers", workers, "--config", config.to_str().unwrap()]);
    let mut chat = Chat::gather(&server.address(), &["/one", "/two"], members);
    chat.speakers().for_each(|speaker| chat.say(speaker));
    chat.rounds(rounds);
    assert!(chat.ends().is_empty());

    for resource in ["/one", "/two"] {
        let mut culprit = Raw::open(&server.address(), resource);
        let before = server.log().matches("crashed").count();
        culprit.text("crash");
        chat.until("it has crashed", |_| server.log().matches("crashed").count() > before);
        chat.rounds(rounds);
    }
    // Connections with a message in transit at that moment are told to reconnect.
    let ended = chat.ends();
    assert!(ended.iter().all(|code| *code == 1012) && ended.len() * 5 <= members, "{ended:?}");

    ["one", "two"].iter().for_each(|path| add_handler(dir.path(), path, "topics"));
    let before = children_named(server.pid(), "wshd: worker");
    server.signal(Signal::SIGHUP);
    chat.until("all workers are replaced", |_| {
        let now = children_named(server.pid(), "wshd: worker");
        now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))
    });
    chat.rounds(rounds);

    let old = server.pid();
    server.signal(Signal::SIGUSR2);
    let mut new = None;
    chat.until("there is a new supervisor", |_| {
        new = new.or_else(|| children_named(old, "wshd: supervisor").first().copied());
        new.is_some()
    });
    chat.until("it serves", |_| server.log().contains("upgrade: the new executable serves"));
    chat.rounds(rounds);
    chat.until("the old one has nobody left", |_| children(old).iter().all(|pid| Some(*pid) == new));
    assert_eq!(server.wait().code(), Some(0));
    chat.rounds(rounds);
    chat.end();
    assert_eq!(chat.ends(), ended, "nobody is disconnected by a reload or an upgrade");
    let missed = server.log().matches("the bus has exited: up to").count();
    assert_eq!(missed, 0, "{}", server.log());
    drop(chat);
    let new = new.unwrap();
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    until("the new one has left", || !is_alive(new));
}

#[test]
fn crash_reload_and_upgrade_lose_and_duplicate_no_message() {
    chat_through_all(50, "2", 10);
}

#[test]
#[ignore = "slow"]
fn crash_reload_and_upgrade_lose_and_duplicate_no_message_of_a_crowd() {
    chat_through_all(500, "4", 4);
}
