//! The program's allocator, which overwrites what is freed. A worker starts as a copy of the supervisor: what that has
//! freed, such as the text of a configuration, and what the worker itself drops of it, is not there to be read by
//! handlers.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, and [`stop`] ends the overwriting.
#[derive(Debug)]
pub struct Wiping;

static IS_WIPING: AtomicBool = AtomicBool::new(true);

/// From now on this process frees its own memory only. [worker]
pub fn stop() {
    IS_WIPING.store(false, Ordering::Relaxed);
}

// SAFETY: all memory is the system allocator's, with the layouts that it was asked for.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if IS_WIPING.load(Ordering::Relaxed) {
            // SAFETY: the caller gives up memory of this size, which is still allocated.
            unsafe { libc::explicit_bzero(memory.cast(), layout.size()) };
        }
        // SAFETY: the caller's memory, which came from there.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !IS_WIPING.load(Ordering::Relaxed) {
            // SAFETY: the caller's memory and layout.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller sees to it that the size is right for this alignment, and not 0.
        let moved = unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both have this many bytes, and do not overlap; then the old memory is given up, as by the caller.
            unsafe {
                std::ptr::copy_nonoverlapping(memory, moved, layout.size().min(size));
                self.dealloc(memory, layout);
            }
        }
        moved
    }
}
