//! The protocol of a connection's slot under loom: all interleavings of threads that send and a loop that releases the
//! connection and reuses its slot.
#![allow(clippy::unwrap_used, dead_code)]

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
    pub use loom::sync::{Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}
#[path = "../src/worker/commands/slot.rs"]
mod slot;

use loom::sync::Arc;
use loom::thread;

use slot::{ConnSlot, EntryQueue, Gate, Refused};

const FIRST: u32 = 1;
const SECOND: u32 = 2;
const HIGH: usize = 10;

/// A slot and the queue; a command is a generation and a number.
struct Shared {
    slot: ConnSlot,
    waiting: EntryQueue<(u32, u32)>,
}

impl Shared {
    /// With a connection in the slot.
    fn open() -> Arc<Shared> {
        let shared = Shared { slot: ConnSlot::new(), waiting: EntryQueue::new() };
        shared.slot.of(FIRST).open();
        Arc::new(shared)
    }

    fn send(&self, generation: u32, bytes: usize, number: u32) -> Result<(), Refused> {
        let admit = |gate: Gate| match self.slot.of(generation).is_full(HIGH) {
            true => Err(Refused::Full),
            false => Ok(gate),
        };
        let entered = self.waiting.enter(self.slot.of(generation), admit, bytes, (generation, number));
        entered.map_err(|(refused, _)| refused)
    }

    /// Executes the queued commands; returns the numbers.
    fn run(&self, bytes: usize) -> Vec<(u32, u32)> {
        let taken = self.waiting.take();
        for (generation, _) in &taken {
            self.slot.of(*generation).add_bytes(bytes, 0);
            self.slot.of(*generation).leave();
        }
        taken
    }
}

/// All interleavings with a bounded number of preemptions, which takes seconds.
fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn accepted_commands_are_executed_before_the_connection_moves() {
    model(|| {
        let shared = Shared::open();
        let sender = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (1..=2).take_while(|number| shared.send(FIRST, 4, *number).is_ok()).count())
        };
        // The loop releases it when it can.
        let mut done = shared.run(4);
        let mut moved = shared.slot.of(FIRST).close_if_quiet();
        let accepted = sender.join().unwrap();
        if !moved {
            done.extend(shared.run(4));
            moved = shared.slot.of(FIRST).close_if_quiet();
        }
        assert!(moved);
        assert_eq!(shared.waiting.take(), [], "nothing stays behind");
        let numbers: Vec<u32> = done.into_iter().map(|(_, number)| number).collect();
        assert_eq!(numbers, (1..=accepted as u32).collect::<Vec<_>>(), "in order, none lost");
        assert_eq!(shared.send(FIRST, 4, 9), Err(Refused::Gone));
    });
}

#[test]
fn nothing_is_counted_for_the_next_connection_in_the_slot() {
    model(|| {
        let shared = Shared::open();
        let sender = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                _ = shared.send(FIRST, 4, 1);
                shared.slot.of(FIRST).set_pause(true)
            })
        };
        // The connection ends and another gets its slot, while the command is queued or being queued.
        shared.slot.of(FIRST).close();
        shared.slot.of(SECOND).open();
        assert_eq!(shared.send(SECOND, 5, 2), Ok(()));
        assert_eq!(shared.slot.of(SECOND).buffered(), 5);
        if sender.join().unwrap() == Ok(true) {
            shared.slot.of(FIRST).leave();
        }
        for (generation, number) in shared.waiting.take() {
            assert_eq!(number, generation);
            shared.slot.of(generation).add_bytes(if generation == FIRST { 4 } else { 5 }, 0);
            shared.slot.of(generation).leave();
        }
        assert!(shared.slot.of(SECOND).is_quiet() && shared.slot.of(SECOND).buffered() == 0);
        assert_eq!(shared.slot.of(SECOND).take_pause(), None);
    });
}

#[test]
fn the_bytes_of_a_connection_that_could_not_move_still_count() {
    model(|| {
        let shared = Shared::open();
        shared.slot.of(FIRST).add_bytes(0, HIGH);
        assert!(shared.slot.of(FIRST).close_if_quiet());
        shared.slot.of(FIRST).open();
        assert_eq!(shared.slot.of(FIRST).buffered(), HIGH);
        shared.slot.of(FIRST).add_bytes(HIGH, 0);
        assert_eq!((shared.slot.of(FIRST).buffered(), shared.send(FIRST, 1, 1)), (0, Ok(())));
    });
}

#[test]
fn full_is_followed_by_drained() {
    model(|| {
        let shared = Shared::open();
        shared.slot.of(FIRST).add_bytes(0, HIGH);
        let sender = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.send(FIRST, 1, 1))
        };
        shared.slot.of(FIRST).add_bytes(HIGH, 0);
        let mut told = shared.slot.of(FIRST).take_full();
        if sender.join().unwrap() == Ok(()) {
            return;
        }
        // The loop checks again only if something was sent.
        told |= !shared.run(1).is_empty() && shared.slot.of(FIRST).take_full();
        assert!(told, "on_writable is owed forever");
    });
}

#[test]
fn fragments_of_two_senders_do_not_mix() {
    const TEXT: u32 = 1;
    const BINARY: u32 = 2;
    model(|| {
        let shared = Shared::open();
        let sender = |kind: u32, shared: Arc<Shared>| {
            move || {
                for more in [true, false] {
                    let admit = move |gate: Gate| match gate.fragments() {
                        running if running == 0 && !more || running != 0 && running != kind => {
                            Err(Refused::Invalid)
                        }
                        _ => Ok(gate.with_fragments(if more { kind } else { 0 })),
                    };
                    let command = (FIRST, kind * 10 + u32::from(more));
                    if shared.waiting.enter(shared.slot.of(FIRST), admit, 0, command).is_err() {
                        return;
                    }
                }
            }
        };
        let text = thread::spawn(sender(TEXT, Arc::clone(&shared)));
        sender(BINARY, Arc::clone(&shared))();
        text.join().unwrap();
        let given: Vec<u32> = shared.waiting.take().into_iter().map(|(_, number)| number).collect();
        assert!(
            [vec![11, 10], vec![21, 20], vec![11, 10, 21, 20], vec![21, 20, 11, 10]].contains(&given),
            "{given:?}"
        );
    });
}
