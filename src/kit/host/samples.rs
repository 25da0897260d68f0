//! Which callback a worker was in when it did not answer, and how often: whether one blocks the event loop.

use std::time::Duration;

use crate::fleet::process::proc;

/// Samples within callbacks of the event style from which they count as blocking.
const BLOCKING: u32 = 20;

#[derive(Default)]
pub struct Samples {
    count: u32,
    /// The last one.
    callback: u32,
    /// The processor time of the worker at the last sample.
    used: Option<Duration>,
}

impl Samples {
    /// The worker, perhaps of this process, is in this callback. One that waits for nothing but a processor does not
    /// count: it blocks nobody.
    pub fn add(&mut self, callback: u32, pid: Option<i32>) {
        let used = pid.and_then(proc::processor_time);
        let is_as_before = std::mem::replace(&mut self.used, used) == used;
        if !(is_as_before && pid.is_some_and(proc::is_runnable)) {
            (self.count, self.callback) = (self.count + 1, callback);
        }
    }

    /// The callback that blocks, if one does.
    pub fn blocking(&self) -> Option<u32> {
        (self.count >= BLOCKING).then_some(self.callback)
    }
}
