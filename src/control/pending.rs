//! Requests that wait for other processes: which ones, until when, and what has come of it.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use super::view::View;
use super::{Control, Number};
use crate::fleet::sockets::control::{Channel, Command, Report};
use crate::time::Instant;

/// How long processes may take to reply.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// What has come of a command that was sent to several processes.
#[derive(Default)]
pub(super) struct Replies {
    /// By process.
    pub come: Vec<(i32, Report)>,
    /// Processes that are there, and have not replied.
    pub silent: Vec<i32>,
}

impl Replies {
    /// The reply of a process.
    pub fn of(&self, pid: i32) -> Option<&Report> {
        self.come.iter().find(|(from, _)| *from == pid).map(|(_, report)| report)
    }
}

/// Makes the line for the client.
pub(super) type Answer = Box<dyn FnOnce(Replies, &View<'_>, Instant) -> Vec<u8>>;

/// The processes that were told to do something, and how to answer when they have replied.
pub(super) type Told = Result<(Vec<i32>, Answer), String>;

/// A request that waits. Done when all have replied or are gone, or its time is up.
pub(super) struct Pending {
    /// Comes back with the replies.
    ticket: u64,
    client: Number,
    pub deadline: Instant,
    replies: Replies,
    answer: Answer,
}

impl Control {
    /// Has a client wait for the processes that `ask` tells.
    pub(super) fn wait(
        &mut self,
        client: Number,
        now: Instant,
        ask: impl FnOnce(u64) -> Told,
    ) -> Result<Option<Value>, String> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (silent, answer) = ask(ticket)?;
        let replies = Replies { silent, ..Replies::default() };
        self.pending.push(Pending { ticket, client, deadline: now + TIMEOUT, replies, answer });
        Ok(None)
    }

    /// A process replies to a command; a reply that nobody waits for is ignored.
    pub fn on_reply(&mut self, pid: i32, report: Report) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| Some(pending.ticket) == report.ticket())
            && let Some(index) = pending.replies.silent.iter().position(|asked| *asked == pid)
        {
            pending.replies.silent.swap_remove(index);
            pending.replies.come.push((pid, report));
        }
    }

    /// Answers the clients that have waited long enough.
    pub(super) fn finish_pending(&mut self, view: &View<'_>, now: Instant) {
        let is_over = |pending: &mut Pending| {
            pending.replies.silent.retain(|pid| view.is_there(*pid));
            pending.replies.silent.is_empty() || pending.deadline <= now
        };
        let finished: Vec<Pending> = self.pending.extract_if(.., is_over).collect();
        for Pending { client, replies, answer, .. } in finished {
            self.send(client, answer(replies, view, now));
        }
    }
}

/// Sends a command to a worker; false if it is gone, and its connections with it. One that does not take it will not
/// reply, either.
pub(super) fn is_told(channel: &Channel, command: Command, file: BorrowedFd<'_>) -> bool {
    let told = channel.send_command_with(command, &[file]);
    !told.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A file in memory, to be sent along with a command.
pub(super) fn memory() -> io::Result<File> {
    Ok(memfd_create(c"wshd ctl", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use nix::unistd::Pid;

    use super::super::view::Process;
    use super::*;
    use crate::config::Config;
    use crate::fleet::memory::shared::Shared;
    use crate::fleet::routes::Routes;

    #[test]
    fn a_request_waits_for_processes_that_live_until_its_time_is_up() {
        let (config, routes) = (Config::default(), Routes::default());
        let shared = Shared::create(1, &routes, (0, 0)).unwrap();
        let (channel, _theirs) = Channel::pair().unwrap();
        let view = |pids: &[i32]| View {
            config: &config,
            routes: &routes,
            listeners: &[],
            shared,
            processes: pids
                .iter()
                .map(|pid| {
                    let pid = Some(Pid::from_raw(*pid));
                    Process { slot: 0, pid, is_leaving: false, channel: Some(&channel) }
                })
                .collect(),
            bus: None,
            is_upgrading: false,
            longest_turn: Duration::ZERO,
            draining: None,
        };
        let now = Instant::from_seconds(1);
        for (alive, at, expected) in [
            (&[7, 8][..], now, ""),
            (&[7], now, "[7] replied; silent []"), // 8 is gone
            (&[7, 8], now + TIMEOUT, "[7] replied; silent [8]"),
        ] {
            let (mut control, noted) = (Control::default(), Rc::new(RefCell::new(String::new())));
            let note = Rc::clone(&noted);
            control.next_ticket = 5;
            let begun = control.wait(1, now, |ticket| {
                assert_eq!(ticket, 5);
                let answer = move |replies: Replies, _: &View<'_>, _| {
                    let come: Vec<i32> = replies.come.iter().map(|(pid, _)| *pid).collect();
                    *note.borrow_mut() = format!("{come:?} replied; silent {:?}", replies.silent);
                    Vec::new()
                };
                Ok((vec![7, 8], Box::new(answer)))
            });
            assert_eq!(begun, Ok(None));
            assert_eq!(control.deadline(), Some(now + TIMEOUT));
            for (pid, ticket) in [(7, 4), (9, 5), (7, 5), (7, 5)] {
                control.on_reply(pid, Report::ClosingAll { ticket, count: 1 });
            }
            control.finish_pending(&view(alive), at);
            assert_eq!(*noted.borrow(), expected);
        }
    }
}
