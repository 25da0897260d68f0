//! The options about compression.

use clap::value_parser;

use super::value::{Time, memory_or_zero, size_or_zero, time_or_off};
use crate::config::Contexts;
use crate::proto::ws::deflate::negotiate::Config;

/// Flattened into the table of options.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct DeflateArgs {
    /// Send messages shorter than this uncompressed
    #[arg(long, value_name = "SIZE", default_value = "64", value_parser = size_or_zero)]
    deflate_threshold: usize,
    /// Effort of compression, from 1 (fast) to 9 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = value_parser!(u8).range(1..=9))]
    deflate_level: u8,
    /// Compress each message on its own, without a context that is kept between messages
    #[arg(long)]
    no_deflate_takeover: bool,
    /// Memory of all contexts for sending of a worker together; 0 is off
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = memory_or_zero)]
    deflate_total: u64,
    /// Drop the context of a connection to which nothing compressed was sent for this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time_or_off)]
    deflate_idle: Time,
    /// Do not compress
    #[arg(long)]
    no_deflate: bool,
}

impl DeflateArgs {
    /// The configuration.
    pub fn into_config(self) -> (Config, Contexts) {
        let config = Config {
            enabled: !self.no_deflate,
            threshold: self.deflate_threshold.try_into().unwrap_or(u32::MAX),
            level: self.deflate_level,
            server_no_context_takeover: self.no_deflate_takeover,
            ..Config::default()
        };
        (config, Contexts { total: self.deflate_total, idle: self.deflate_idle })
    }
}
