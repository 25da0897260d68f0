//! The modules whose code this process has mapped, by address, so that a crash can say where it was. Once all handlers
//! are loaded they are listed while all is well; a crash before that lists them itself. Does not know code that is
//! loaded later.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fleet::memory::crash::Spot;
use crate::worker::base::memory::{self, Pages};

/// Mappings with code that are listed, at most; of others only the address is reported.
const MAPPINGS: usize = 1024;
/// How far up the stack to search for a handler's code.
const STACK: usize = 64 * 1024;
const PAGE: usize = 4096;

/// One mapping with code. Points to nothing: it lies where the heap's overflows do not reach.
#[derive(Clone, Copy)]
struct Mapping {
    start: u64,
    end: u64,
    /// Its own address 0: where that was loaded.
    module: Spot,
    handler: Option<u16>,
}

pub struct Modules {
    /// Room for [`MAPPINGS`], never unmapped.
    room: NonNull<Mapping>,
    /// So many are listed; 0 <= count <= MAPPINGS.
    count: AtomicUsize,
}

// SAFETY: written by fill() before others look, and then by the one thread that is in the rescue.
unsafe impl Sync for Modules {}

/// A place in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace {
    pub spot: Spot,
    /// Whose code it is, by index of the routes.
    pub handler: Option<u16>,
}

impl Modules {
    /// Room for the list, which is empty.
    pub fn reserve() -> io::Result<&'static Self> {
        let pages = Pages::map(MAPPINGS * size_of::<Mapping>())?;
        let room = pages.first().cast();
        std::mem::forget(pages); // it stays mapped
        Ok(memory::guard(Self { room, count: AtomicUsize::new(0) })?)
    }

    /// Lists what is mapped now. `handlers` are the files of handlers with their indexes in the routes.
    /// Async-signal-safe.
    pub fn fill(&self, handlers: &[(u16, PathBuf)]) {
        self.count.store(0, Ordering::Relaxed);
        let mut parser = Parser::default();
        // SAFETY: open(2) is async-signal-safe; the path ends in NUL.
        let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        let mut buffer = [0_u8; 2 * PAGE];
        let mut used = 0;
        while let Some(room) = buffer.get_mut(used..).filter(|room| !room.is_empty()) {
            // SAFETY: a live buffer of that size.
            let size = unsafe { libc::read(file, room.as_mut_ptr().cast(), room.len()) };
            let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else { break };
            used += size;
            let whole = buffer[..used].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.add(&mut parser, &buffer[..whole], handlers);
            buffer.copy_within(whole..used, 0);
            used -= whole;
        }
        // SAFETY: our own descriptor, or -1, which is EBADF.
        unsafe { libc::close(file) };
    }

    fn add(&self, parser: &mut Parser, lines: &[u8], handlers: &[(u16, PathBuf)]) {
        for mapping in
            lines.split(|byte| *byte == b'\n').filter_map(|line| parser.mapping_with_code(line, handlers))
        {
            let count = self.count.load(Ordering::Relaxed);
            if count < MAPPINGS {
                // SAFETY: within the room.
                unsafe { self.room.add(count).write(mapping) };
                self.count.store(count + 1, Ordering::Release);
            }
        }
    }

    fn list(&self) -> &[Mapping] {
        // SAFETY: so many have been written; see Sync for who writes when.
        unsafe { std::slice::from_raw_parts(self.room.as_ptr(), self.count.load(Ordering::Acquire)) }
    }

    pub fn place(&self, address: u64) -> CodePlace {
        match self.list().iter().find(|mapping| (mapping.start..mapping.end).contains(&address)) {
            Some(Mapping { module, handler, .. }) => {
                CodePlace { spot: module.at(address.wrapping_sub(module.offset)), handler: *handler }
            }
            None => CodePlace { spot: Spot::new(b"", address), handler: None },
        }
    }

    /// The first return address above `stack` that lies in a handler's code. Async-signal-safe; a bad address is
    /// nowhere.
    pub fn caller(&self, stack: u64) -> Option<CodePlace> {
        let mut page = [0_u8; PAGE];
        let mut at = stack.checked_next_multiple_of(8)?;
        let end = stack.checked_add(STACK as u64)?;
        while at < end {
            let size = PAGE - at as usize % PAGE; // to the end of the page
            let room = page.get_mut(..size)?;
            if memory::read(at, room) {
                let words = room.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
                let places = words.filter(|word| follows_call(*word)).map(|word| self.place(word));
                if let Some(place) = places.into_iter().find(|place| place.handler.is_some()) {
                    return Some(place);
                }
            }
            at = at.checked_add(size as u64)?;
        }
        None
    }
}

/// Whether the instruction before this address is a call: a pointer to a function that lies on the stack is not
/// where anybody came from.
#[cfg(target_arch = "x86_64")]
fn follows_call(address: u64) -> bool {
    let mut before = [0; 7];
    if address < PAGE as u64 || !memory::read(address - 7, &mut before) {
        return false;
    }
    // E8 rel32; or FF /2 with 2 to 7 bytes.
    let indirect =
        |size: usize| matches!(before.get(7 - size..), Some([0xff, modrm, ..]) if modrm >> 3 & 7 == 2);
    before[2] == 0xe8 || [2, 3, 4, 6, 7].into_iter().any(indirect)
}

/// The same: BL or BLR.
#[cfg(target_arch = "aarch64")]
fn follows_call(address: u64) -> bool {
    let mut before = [0; 4];
    if address < PAGE as u64 || !memory::read(address - 4, &mut before) {
        return false;
    }
    let instruction = u32::from_ne_bytes(before);
    instruction >> 26 == 0x25 || instruction & 0xffff_fc1f == 0xd63f_0000
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn follows_call(_: u64) -> bool {
    true
}

/// Reads proc_pid_maps(5), line by line. Allocates nothing.
#[derive(Default)]
struct Parser {
    /// Of the file whose mappings come now: its address 0, and its device and inode as a number.
    base: u64,
    file: (u64, u64),
}

impl Parser {
    /// The mapping in this line, if it is one of a file, and has code.
    fn mapping_with_code(&mut self, line: &[u8], handlers: &[(u16, PathBuf)]) -> Option<Mapping> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let (range, access, offset) = (fields.next()?, fields.next()?, number(fields.next()?, 16)?);
        let (device, inode) = (fields.next()?, number(fields.next()?, 10)?);
        let path = fields.next().unwrap_or_default().trim_ascii_start();
        let split = range.iter().position(|byte| *byte == b'-')?;
        let (start, end) = (number(&range[..split], 16)?, number(&range[split + 1..], 16)?);
        if !path.starts_with(b"/") {
            return None; // [stack], [vdso], or nothing
        }
        let colon = device.iter().position(|byte| *byte == b':')?;
        let file = (number(&device[..colon], 16)? << 32 | number(&device[colon + 1..], 16)?, inode);
        if offset == 0 || self.file != file {
            (self.base, self.file) = (start.saturating_sub(offset), file);
        }
        if !access.contains(&b'x') {
            return None;
        }
        let last = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let module = Spot::new(&path[last..], self.base);
        let handler = handlers.iter().find(|(_, file)| file.as_os_str().as_bytes() == path);
        Some(Mapping { start, end, module, handler: handler.map(|(handler, _)| *handler) })
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Two objects as ld and lld lay them out: with lld the code's address is not its offset in the file.
    const MAPS: &str = "\
55d0a0000000-55d0a0005000 r--p 00000000 fe:00 42     /usr/bin/wshd
55d0a0005000-55d0a0009000 r-xp 00005000 fe:00 42     /usr/bin/wshd
55d0a1000000-55d0a1021000 rw-p 00000000 00:00 0      [heap]
7f0000000000-7f0000001000 r--p 00000000 fe:00 7      /h/a b_wsh.so
7f0000002000-7f0000003000 r-xp 00001000 fe:00 7      /h/a b_wsh.so
7f0000003000-7f0000004000 r-xp 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00000000 00:00 0      [vdso]
";

    #[test]
    fn an_address_is_a_module_and_an_address_in_it() {
        let modules = Modules::reserve().unwrap();
        modules.add(&mut Parser::default(), MAPS.as_bytes(), &[(3, "/h/a b_wsh.so".into())]);
        let place = modules.place(0x7f00_0000_2010);
        assert_eq!(place, CodePlace { spot: Spot::new(b"a b_wsh.so", 0x2010), handler: Some(3) });
        assert_eq!(
            modules.place(0x55d0_a000_5001),
            CodePlace { spot: Spot::new(b"wshd", 0x5001), handler: None }
        );
        // Data, a hole, and what has no file.
        for address in [0x7f00_0000_0000, 0x7f00_0000_3000, 0x7f00_0000_4000, 0xdead000, 0] {
            assert_eq!(modules.place(address), CodePlace { spot: Spot::new(b"", address), handler: None });
        }
    }

    #[test]
    fn our_own_code_is_found() {
        let modules = Modules::reserve().unwrap();
        modules.fill(&[]);
        let place = modules.place(our_own_code_is_found as *const () as u64);
        let exe = std::env::current_exe().unwrap();
        assert_eq!(place.spot.module(), exe.file_name().unwrap().to_str().unwrap());
    }

    #[inline(never)]
    fn search(modules: &Modules) -> Option<(u64, u64)> {
        let here = 0_u64;
        modules
            .caller(&raw const here as u64)
            .map(|place| (place.spot.offset, u64::from(place.handler.unwrap())))
    }

    #[test]
    fn the_caller_is_found_on_the_stack_and_a_bad_stack_is_no_harm() {
        // Our own program plays the handler.
        let exe = std::env::current_exe().unwrap();
        let modules = Modules::reserve().unwrap();
        modules.fill(&[(9, exe)]);
        assert_eq!(search(modules).unwrap().1, 9);
        assert_eq!(modules.caller(0), None);
        for bad in [u64::MAX - 100, u64::MAX - STACK as u64, u64::MAX - 2 * STACK as u64] {
            assert_eq!(modules.caller(bad), None);
        }
    }
}
