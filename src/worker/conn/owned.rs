//! Bytes that a record owns.
#![allow(unsafe_code)]

/// Bytes on the heap, owned; none of all zero. What a boxed slice is, in 12 bytes: where and how many stand in the
/// record, under its checksum.
#[repr(C, packed(4))]
pub struct Owned {
    first: *mut u8,
    size: u32,
}

impl Owned {
    pub const NOTHING: Owned = Owned { first: std::ptr::null_mut(), size: 0 };

    /// Takes them over; more than 4 GiB are nothing.
    pub fn new(bytes: Vec<u8>) -> Owned {
        match u32::try_from(bytes.len()) {
            Ok(0) | Err(_) => Owned::NOTHING,
            Ok(size) => Owned { first: Box::into_raw(bytes.into_boxed_slice()).cast(), size },
        }
    }

    pub fn raw(&self) -> Option<*mut [u8]> {
        let (first, size) = (self.first, self.size);
        (!first.is_null()).then(|| std::ptr::slice_from_raw_parts_mut(first, size as usize))
    }

    pub fn get(&self) -> Option<&[u8]> {
        // SAFETY: made of a box in new(), whose bytes live until drop(); &self keeps writers away.
        self.raw().map(|bytes| unsafe { &*bytes })
    }

    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: as in get(); &mut self makes it the only reference.
        self.raw().map(|bytes| unsafe { &mut *bytes })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the box of new() with its own length, given up here and nowhere else.
        drop(self.raw().map(|bytes| unsafe { Box::from_raw(bytes) }));
    }
}
