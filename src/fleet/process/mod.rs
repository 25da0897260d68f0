//! A process as the kernel and the operator see it.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod alone;
pub(crate) mod orphans;
pub(crate) mod proc;
pub mod title;
pub mod wipe;
