//! A process as the kernel and the operator see it.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod alone;
pub mod orphans;
pub mod proc;
pub mod title;
pub mod wipe;
