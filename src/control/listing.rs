//! The list of all connections, of which the supervisor knows none. Each worker is given a file in memory, writes its
//! part into it as JSON, and reports when it has; the parts are joined, up to a bound, if they are JSON. A worker that does not
//! reply in time is named, with the callback that it is in.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;

use serde::de::IgnoredAny;
use serde_json::json;

use super::pending::{Task, is_told, memory};
use super::view::View;
use crate::ctl::answer::Silent;
use crate::ctl::filter::Filter;
use crate::fleet::control::{Command, Report};
use crate::time::Instant;

/// Maximum size of a list.
const MAX_BYTES: usize = 16 << 20;

/// A list that is being written, by worker.
pub(super) struct Listing(Vec<Part>);

/// What one worker writes.
struct Part {
    pid: i32,
    file: File,
    /// Connections that are in the file, and that are not; none until it has said so.
    written: Option<(u64, u64)>,
}

impl Listing {
    /// Has all workers write down their connections, those that the filter lets through.
    pub fn begin(filter: &Filter, view: &View<'_>, ticket: u64) -> Result<(Vec<i32>, Self), String> {
        let mut parts = Vec::new();
        for (pid, channel) in view.serving() {
            let file = with_filter(filter).map_err(|error| format!("cannot list connections: {error}"))?;
            if is_told(channel, Command::List { ticket }, file.as_fd()) {
                parts.push(Part { pid, file, written: None });
            }
        }
        Ok((parts.iter().map(|part| part.pid).collect(), Self(parts)))
    }
}

impl Task for Listing {
    fn on_reply(&mut self, pid: i32, report: Report) {
        if let Report::Listed { listed, left_out, .. } = report {
            let part = self.0.iter_mut().find(|part| part.pid == pid);
            part.into_iter().for_each(|part| part.written = Some((listed, left_out)));
        }
    }

    fn answer(self: Box<Self>, silent: &[i32], view: &View<'_>, now: Instant) -> Vec<u8> {
        let mut line = br#"{"ok":true,"result":{"connections":["#.to_vec();
        let begun = line.len();
        let mut total_left_out: u64 = 0;
        for mut part in self.0 {
            let Some((listed, left_out)) = part.written else { continue };
            total_left_out = total_left_out.saturating_add(left_out);
            match part.text(MAX_BYTES.saturating_sub(line.len())) {
                Some(text) if text.is_empty() => {}
                Some(text) => {
                    if line.len() > begun {
                        line.push(b',');
                    }
                    line.extend_from_slice(&text);
                }
                None => total_left_out = total_left_out.saturating_add(listed),
            }
        }
        let silent = silent.iter().filter_map(|pid| {
            let (slot, _) = view.channel_to(*pid)?;
            let (worker, executes) = (view.short_name(slot), view.executes(slot, *pid, now));
            Some(Silent { worker, pid: *pid, executes })
        });
        let silent = json!(silent.collect::<Vec<_>>());
        line.extend_from_slice(
            format!("],\"left_out\":{total_left_out},\"silent\":{silent}}}}}\n").as_bytes(),
        );
        line
    }
}

impl Part {
    /// What is in the file, unless it is more than `most` or nothing that could be in a line.
    fn text(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        self.file.rewind().ok()?;
        let most = u64::try_from(most).ok()?;
        let size = (&mut self.file).take(most.saturating_add(1)).read_to_end(&mut text).ok()?;
        // A worker can write anything.
        let is_list = || serde_json::from_slice::<IgnoredAny>(&[b"[", &text[..], b"]"].concat()).is_ok();
        (size as u64 <= most && !text.contains(&b'\n') && is_list()).then_some(text)
    }
}

/// A file in memory for a worker, with a filter in it.
pub(super) fn with_filter(filter: &Filter) -> io::Result<File> {
    let file = memory()?;
    serde_json::to_writer(&file, filter)?;
    Ok(file)
}
