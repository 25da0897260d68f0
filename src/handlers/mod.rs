//! Handlers before they are served: found in a directory, probed by a program that loads them, and given their
//! resources. Loads nothing into a process that serves.

pub mod discover;
pub mod message;
pub mod probe;
pub mod program;
pub mod scan;
