//! Memory whose size a caller decides: every allocation can fail, and says so instead of aborting.

#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::error::{Error, Result};
use crate::simd::Element;

/// One cache line, and the widest vector.
const LINE: usize = 64;

/// The product of sizes, or an error that says what would not fit the address space.
pub fn product(sizes: &[usize], what: &str) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |total, &size| total.checked_mul(size))
        .filter(|&total| total <= isize::MAX as usize / LINE)
        .ok_or_else(|| Error::overflow(what))
}

/// `count` copies of `value`.
pub fn filled<T: Clone>(count: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut values = reserved(count, what)?;
    values.resize(count, value);
    Ok(values)
}

/// `count` zeros; large ones come from the system as zeros and are not written to.
pub fn zeros<E: Element>(count: usize, what: &str) -> Result<Vec<E>> {
    let memory = || Error::memory(what, count.saturating_mul(size_of::<E>()));
    if count == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<E>(count).map_err(|_| memory())?;
    // SAFETY: the layout's size is not zero, as elements have a size.
    let values = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or_else(memory)?;
    // SAFETY: from the global allocator with the layout of `count` elements, whose zero is all bits 0.
    Ok(unsafe { Vec::from_raw_parts(values.as_ptr().cast(), count, count) })
}

/// Asks for `count` times `bytes` at once and gives them back: a call that will make many small
/// allocations, which cannot fail politely, fails now instead.
pub fn probe(count: usize, bytes: usize, what: &str) -> Result<()> {
    // What an allocator adds to small pieces, and what a call needs besides.
    const SLACK: usize = 4 << 20;
    let bytes = product(&[count, bytes], what)?.saturating_add(SLACK);
    reserved::<u8>(bytes, what).map(drop)
}

/// A copy of `values`.
pub fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut copy = reserved(values.len(), what)?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// An empty vector that holds `count` values without growing.
pub fn reserved<T>(count: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| Error::memory(what, count.saturating_mul(size_of::<T>())))?;
    Ok(values)
}

/// A cache line of memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; LINE]);

/// Values for the crate's own use: they begin on a cache line, so that no vector of a packed panel
/// straddles two, and their memory is kept for the next call.
///
/// A call allocates the same sizes as the one before it. Giving them back to the system and getting
/// them again, page by page, costs up to a third of a short call; so what is dropped goes to a shelf of
/// bounded size first.
pub struct Buffer<E> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<E>,
}

impl<E: Element> Buffer<E> {
    /// `len` zeros.
    pub fn zeroed(len: usize, what: &str) -> Result<Self> {
        let mut buffer = Self::stale(len, what)?;
        buffer.fill(E::ZERO);
        Ok(buffer)
    }

    /// `len` values that an earlier call left, or zeros: for memory that is written before it is read.
    pub fn stale(len: usize, what: &str) -> Result<Self> {
        let bytes = len
            .checked_mul(size_of::<E>())
            .ok_or_else(|| Error::overflow(what))?;
        let count = bytes.div_ceil(LINE);
        let lines = match shelf().and_then(|mut shelf| shelf.take(count)) {
            Some(lines) => lines,
            None => fresh_lines(count)
                .or_else(|| {
                    // What is kept may be what is missing.
                    drop(shelf().map(|mut shelf| std::mem::take(&mut *shelf)));
                    fresh_lines(count)
                })
                .ok_or_else(|| Error::memory(what, bytes))?,
        };
        Ok(Self {
            lines,
            len,
            element: PhantomData,
        })
    }

    /// A copy of `values`.
    pub fn copied(values: &[E], what: &str) -> Result<Self> {
        let mut buffer = Self::stale(values.len(), what)?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }
}

impl<E> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: the lines hold at least `len` values, initialised and aligned, and every bit pattern
        // is a float (a Buffer is made for an Element only).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<E> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as for `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if let Some(mut shelf) = shelf() {
            shelf.put(lines);
        }
    }
}

impl<E: PartialEq> PartialEq for Buffer<E> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

/// A sequence of the caller's, or one of the crate's own.
pub enum Values<'a, E> {
    /// The caller's.
    Borrowed(&'a [E]),
    /// The crate's own.
    Owned(Buffer<E>),
}

impl<E: Element> Values<'_, E> {
    /// The values as a buffer, copied if they are the caller's.
    pub fn into_owned(self, what: &str) -> Result<Buffer<E>> {
        match self {
            Self::Borrowed(values) => Buffer::copied(values, what),
            Self::Owned(values) => Ok(values),
        }
    }
}

impl<E> Deref for Values<'_, E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        match self {
            Self::Borrowed(values) => values,
            Self::Owned(values) => values,
        }
    }
}

impl<E> fmt::Debug for Buffer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {}", self.len)
    }
}

/// Lines of zeros; none when the memory cannot be had.
fn fresh_lines(count: usize) -> Option<Vec<Line>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<Line>(count).ok()?;
    // SAFETY: the layout's size is not zero.
    let lines = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
    // SAFETY: from the global allocator with the layout of so many lines, all initialised.
    Some(unsafe { Vec::from_raw_parts(lines.as_ptr().cast(), count, count) })
}

/// The most that is kept between calls.
const SHELF_LINES: usize = (128 << 20) / LINE;

/// Memory that was dropped, oldest first.
#[derive(Default)]
struct Shelf {
    kept: Vec<Vec<Line>>,
    lines: usize,
}

impl Shelf {
    /// The best piece for `count` lines that would not be mostly wasted.
    fn take(&mut self, count: usize) -> Option<Vec<Line>> {
        let fits = |lines: &Vec<Line>| (count..=count + count / 4).contains(&lines.len());
        let best = (0..self.kept.len())
            .filter(|&k| fits(&self.kept[k]))
            .min_by_key(|&k| self.kept[k].len())?;
        let lines = self.kept.remove(best);
        self.lines -= lines.len();
        Some(lines)
    }

    /// Keeps a piece; the oldest ones go to make room.
    fn put(&mut self, lines: Vec<Line>) {
        if lines.is_empty() || lines.len() > SHELF_LINES || self.kept.try_reserve(1).is_err() {
            return;
        }
        self.lines += lines.len();
        self.kept.push(lines);
        let mut excess = 0;
        while self.lines > SHELF_LINES {
            self.lines -= self.kept[excess].len();
            excess += 1;
        }
        self.kept.drain(..excess);
    }
}

static SHELF: Mutex<Shelf> = Mutex::new(Shelf {
    kept: Vec::new(),
    lines: 0,
});

/// The shelf, unless somebody is at it: a thread does without rather than wait, which also spares the
/// child of a fork that happened just then.
fn shelf() -> Option<MutexGuard<'static, Shelf>> {
    match SHELF.try_lock() {
        Ok(shelf) => Some(shelf),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(matches!(
            zeros::<f64>(usize::MAX / 16, "y"),
            Err(Error::Memory { .. })
        ));
        assert!(matches!(
            product(&[usize::MAX, 2], "y"),
            Err(Error::Overflow { .. })
        ));
        assert_eq!(product(&[3, 0, usize::MAX], "y"), Ok(0));
    }

    #[test]
    fn buffers_begin_on_a_line_and_are_zero_when_asked() {
        for len in [0, 1, 17, 1000] {
            let mut values = Buffer::<f32>::zeroed(len, "test").unwrap();
            assert_eq!(values.len(), len);
            assert_eq!(values.as_ptr() as usize % LINE, 0);
            values.fill(1.0);
            drop(values);
            assert!(
                Buffer::<f32>::zeroed(len, "test")
                    .unwrap()
                    .iter()
                    .all(|&v| v == 0.0)
            );
        }
        assert!(Buffer::<f64>::stale(usize::MAX / 8, "test").is_err());
    }

    #[test]
    fn the_shelf_gives_what_fits_and_keeps_no_more_than_its_bound() {
        let lines = |count| vec![Line([0; LINE]); count];
        let mut shelf = Shelf::default();
        shelf.put(lines(10));
        shelf.put(lines(100));
        assert!(shelf.take(1).is_none() && shelf.take(101).is_none());
        assert_eq!(shelf.take(90).map(|lines| lines.len()), Some(100));
        assert_eq!(shelf.lines, 10);
        shelf.put(lines(SHELF_LINES - 5));
        assert_eq!((shelf.lines, shelf.kept.len()), (SHELF_LINES - 5, 1));
        shelf.put(lines(SHELF_LINES + 1));
        assert_eq!(shelf.kept.len(), 1);
    }
}
