//! A process as the kernel and the operator see it.

pub mod orphans;
pub mod proc;
pub mod title;
pub mod wipe;
