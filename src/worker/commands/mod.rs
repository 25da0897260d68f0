//! What other threads want of the event loop: the command queue and the slots they may look at.

pub mod queue;
pub mod run;
pub mod watermarks;
