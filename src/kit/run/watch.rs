//! Watches the source files of a handler.

use std::sync::mpsc::SyncSender;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::Event;
use super::build::Source;

/// Sends an event for each change while the result lives.
pub fn start(source: &Source, sender: SyncSender<Event>) -> Result<RecommendedWatcher, String> {
    let directories = source.directories();
    let concerns = source.filter();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // After an error, and if events are missing, something may have changed.
        let has_changed = event.map_or(true, |event| {
            let is_change = !matches!(event.kind, EventKind::Access(_));
            event.need_rescan() || is_change && event.paths.iter().any(|path| concerns(path))
        });
        if has_changed {
            let _ = sender.send(Event::Changed); // fails only at the end of the program
        }
    });
    let mut watcher: RecommendedWatcher = watcher.map_err(|error| format!("watching files: {error}"))?;
    for (directory, is_recursive) in directories {
        let mode = if is_recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        let watched = watcher.watch(&directory, mode);
        watched.map_err(|error| format!("watching {}: {error}", directory.display()))?;
    }
    Ok(watcher)
}
