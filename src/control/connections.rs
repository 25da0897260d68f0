//! Listing and closing connections, of which the supervisor knows none: the workers are told, and report what they did.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::pending::{Replies, TIMEOUT, Told, is_told, memory};
use super::view::View;
use crate::ctl::answer::{self, Silent};
use crate::ctl::filter::Filter;
use crate::ctl::request::Id;
use crate::fleet::sockets::control::{Command, Report};
use crate::time::Instant;

/// Maximum size of a list.
const MAX_BYTES: usize = 16 << 20;

/// Has each worker write its connections, those that the filter lets through, as JSON into a file in memory of its own.
pub(super) fn list(filter: &Filter, view: &View<'_>, ticket: u64) -> Told {
    let mut files = Vec::new();
    for (pid, channel) in view.serving() {
        let file = with_filter(filter).map_err(|error| format!("cannot list connections: {error}"))?;
        if is_told(channel, Command::List { ticket }, file.as_fd()) {
            files.push((pid, file));
        }
    }
    let asked = files.iter().map(|(pid, _)| *pid).collect();
    Ok((asked, Box::new(move |replies, view, now| joined(files, &replies, view, now))))
}

/// The parts of a list in one, up to a bound. A worker that has not replied is named, with the callback that it is in.
fn joined(files: Vec<(i32, File)>, replies: &Replies, view: &View<'_>, now: Instant) -> Vec<u8> {
    let mut line = br#"{"ok":true,"result":{"connections":["#.to_vec();
    let begun = line.len();
    let mut total_left_out: u64 = 0;
    for (pid, file) in files {
        let Some(Report::Listed { listed, left_out, .. }) = replies.of(pid) else { continue };
        total_left_out = total_left_out.saturating_add(*left_out);
        match part_of_list(file, MAX_BYTES.saturating_sub(line.len())) {
            Some(text) if text.is_empty() => {}
            Some(text) => {
                if line.len() > begun {
                    line.push(b',');
                }
                line.extend_from_slice(&text);
            }
            None => total_left_out = total_left_out.saturating_add(*listed),
        }
    }
    let silent = replies.silent.iter().filter_map(|pid| {
        let (slot, _) = view.channel_to(*pid)?;
        let (worker, executes) = (view.short_name(slot), view.executes(slot, *pid, now));
        Some(Silent { worker, pid: *pid, executes })
    });
    let silent = json!(silent.collect::<Vec<_>>());
    line.extend_from_slice(format!("],\"left_out\":{total_left_out},\"silent\":{silent}}}}}\n").as_bytes());
    line
}

/// What a worker has written, if it is at most so many bytes of JSON on one line.
fn part_of_list(mut file: File, most: usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    let most = u64::try_from(most).ok()?;
    let size = file.take(most.saturating_add(1)).read_to_end(&mut text).ok()?;
    // A worker can write anything.
    let is_list = || serde_json::from_slice::<IgnoredAny>(&[b"[", &text[..], b"]"].concat()).is_ok();
    (size as u64 <= most && !text.contains(&b'\n') && is_list()).then_some(text)
}

/// Has a worker close one connection, with this code in the Close frame.
pub(super) fn close(id: Id, code: u16, view: &View<'_>, ticket: u64) -> Told {
    let (_, channel) = view
        .channel_to(id.pid)
        .ok_or_else(|| format!("no worker has pid {}: see wshd ctl connections", id.pid))?;
    channel
        .send_command(Command::Close { ticket, conn: id.conn, code })
        .map_err(|error| format!("process {} takes no commands: {error}", id.pid))?;
    let answer = move |replies: Replies, view: &View<'_>, now| {
        if let Some(Report::Closing { begun, .. }) = replies.of(id.pid) {
            return answer::line(&match begun {
                true => Ok(format!("{id} is being closed").into()),
                false => Err(format!("{id} is not an open connection: see wshd ctl connections")),
            });
        }
        let slot = view.channel_to(id.pid).map(|(slot, _)| slot);
        let why = match slot.map(|slot| view.executes(slot, id.pid, now)) {
            Some(Some(call)) => format!("it is in {} of {}", call.callback, call.handler),
            Some(None) => "it is busy".to_owned(),
            None => "it has ended".to_owned(),
        };
        let limit = TIMEOUT.as_secs();
        answer::line(&Err(format!(
            "process {} has not closed the connection within {limit} seconds: {why}",
            id.pid
        )))
    };
    Ok((vec![id.pid], Box::new(answer)))
}

/// Has all workers close the connections that the filter lets through, with this code in the Close frames.
pub(super) fn close_all(filter: &Filter, code: u16, view: &View<'_>, ticket: u64) -> Told {
    let file = with_sealed_filter(filter).map_err(|error| format!("cannot close connections: {error}"))?;
    let command = Command::CloseAll { ticket, code };
    let told = view.serving().filter(|(_, channel)| is_told(channel, command, file.as_fd()));
    let answer = |replies: Replies, _: &View<'_>, _| {
        let counts = replies.come.iter().map(|(_, report)| match report {
            Report::ClosingAll { count, .. } => *count,
            _ => 0,
        });
        let count = counts.fold(0, u64::saturating_add);
        let mut text = format!("{count} connection{} being closed", if count == 1 { " is" } else { "s are" });
        if !replies.silent.is_empty() {
            let silent: Vec<String> = replies.silent.iter().map(ToString::to_string).collect();
            let (limit, silent) = (TIMEOUT.as_secs(), silent.join(", "));
            text += &format!("; no answer within {limit} seconds of process {silent}");
        }
        answer::line(&Ok(Value::String(text)))
    };
    Ok((told.map(|(pid, _)| pid).collect(), Box::new(answer)))
}

/// A file in memory for a worker, with a filter in it.
fn with_filter(filter: &Filter) -> io::Result<File> {
    let file = memory()?;
    serde_json::to_writer(&file, filter)?;
    Ok(file)
}

/// The same for all workers: none can change it for the others.
fn with_sealed_filter(filter: &Filter) -> io::Result<File> {
    let file = with_filter(filter)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn no_worker_changes_which_connections_the_others_close() {
        let file = with_sealed_filter(&Filter::default()).unwrap();
        let size = file.metadata().unwrap().len();
        assert!(
            file.write_at(b"{", 0).is_err() && file.set_len(size + 1).is_err() && file.set_len(0).is_err()
        );
        let mut text = vec![0; size as usize];
        file.read_exact_at(&mut text, 0).unwrap();
        assert!(serde_json::from_slice::<Filter>(&text).unwrap().is_empty());
    }
}
