//! From the request head to 101 or a refusal.

pub mod breaker_probe;

pub mod request;
