//! The options about what connections may hold in memory.

use super::value::{memory_or_zero, size};
use crate::config::{Memory, Sending};

/// Flattened into the table of options.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct MemoryArgs {
    /// Size at which the send queue of a connection is full
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size)]
    send_high: usize,
    /// Size at which a send queue that was full has drained [default: a quarter of --send-high]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    send_low: Option<usize>,
    /// Size of all send queues of a worker together above which each of more than 64K is full; 0 is off
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory_or_zero)]
    send_total: u64,
    /// Memory that the incomplete messages of all peers of a worker may take together; 0 is off
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory_or_zero)]
    receive_total: u64,
}

impl MemoryArgs {
    /// The configuration; `Err` has both marks of send queues if the lower one is above the other.
    pub fn into_config(self) -> Result<(Sending, Memory), (usize, usize)> {
        let Self { send_high: high, send_low, send_total: total, receive_total } = self;
        let low = send_low.unwrap_or(high / 4);
        if low > high {
            return Err((low, high));
        }
        Ok((Sending { high, low, total }, Memory { receive_total }))
    }
}
