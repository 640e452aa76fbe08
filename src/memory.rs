//! Memory whose size a caller decides: every allocation can fail, and says so instead of aborting.

#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::error::{Error, Result};
use crate::simd::{Element, LINE};

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
        let lines = kept_lines(bytes.div_ceil(LINE)).ok_or_else(|| Error::memory(what, bytes))?;
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

/// At least so many lines that were kept, or zeros; none when the memory cannot be had.
fn kept_lines(count: usize) -> Option<Vec<Line>> {
    let usual = usual_size(count);
    if let Some((place, _)) = usual
        && let Some(lines) = shelf().and_then(|mut shelf| shelf.take(place))
    {
        return Some(lines);
    }
    let count = usual.map_or(count, |(_, size)| size);
    fresh_lines(count).or_else(|| {
        // What is kept may be what is missing.
        drop(shelf().map(|mut shelf| std::mem::replace(&mut *shelf, Shelf::EMPTY)));
        fresh_lines(count)
    })
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
/// Sizes between one power of two and the next: a piece is at most a quarter larger than asked for.
const STEPS: usize = 4;
const SIZES: usize = STEPS * (SHELF_LINES.ilog2() as usize + 1);

/// The place of the smallest usual size that holds `count` lines, and that size; none for 0 and for what
/// is too large to keep.
fn usual_size(count: usize) -> Option<(usize, usize)> {
    if count <= STEPS {
        return Some((count.checked_sub(1)?, count));
    }
    // 2^power is at most count - 1; in steps of a quarter of it, the size is 4 to 7, plus 1.
    let power = (count - 1).ilog2();
    let step = (1 << power) / STEPS;
    let steps = (count - 1) / step;
    let place = power as usize * STEPS + steps - STEPS;
    let size = (steps + 1) * step;
    (size <= SHELF_LINES).then_some((place, size))
}

/// Memory that was dropped, by size; with each piece, when it came.
struct Shelf {
    kept: [VecDeque<(u64, Vec<Line>)>; SIZES],
    lines: usize,
    /// How many pieces have come.
    arrivals: u64,
}

impl Shelf {
    const EMPTY: Self = Self {
        kept: [const { VecDeque::new() }; SIZES],
        lines: 0,
        arrivals: 0,
    };

    /// The piece at a place that came last, which is the likeliest to be in a cache still.
    fn take(&mut self, place: usize) -> Option<Vec<Line>> {
        let (_, lines) = self.kept[place].pop_back()?;
        self.lines -= lines.len();
        Some(lines)
    }

    /// Keeps a piece of a usual size; the oldest ones go to make room.
    fn put(&mut self, lines: Vec<Line>) {
        let Some((place, size)) = usual_size(lines.len()) else {
            return;
        };
        if size != lines.len() || self.kept[place].try_reserve(1).is_err() {
            return;
        }
        self.lines += size;
        self.kept[place].push_back((self.arrivals, lines));
        self.arrivals += 1;
        while self.lines > SHELF_LINES {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let age = |pieces: &VecDeque<(u64, Vec<Line>)>| pieces.front().map(|(came, _)| *came);
        let oldest = self
            .kept
            .iter_mut()
            .filter(|pieces| !pieces.is_empty())
            .min_by_key(|pieces| age(pieces));
        if let Some((_, lines)) = oldest.and_then(VecDeque::pop_front) {
            self.lines -= lines.len();
        }
    }
}

static SHELF: Mutex<Shelf> = Mutex::new(Shelf::EMPTY);

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
    fn usual_sizes_are_near_what_is_asked_for_and_places_follow_them() {
        let mut before = (0, 1);
        for count in (1..5_000).chain([SHELF_LINES / 3, SHELF_LINES - 1, SHELF_LINES]) {
            let (place, size) = usual_size(count).unwrap();
            assert!(
                (count..=count + count / STEPS).contains(&size),
                "{count}: {size}"
            );
            assert_eq!(usual_size(size), Some((place, size)), "{count}");
            assert!(
                place < SIZES && (place > before.0) == (size > before.1),
                "{count}"
            );
            before = (place, size);
        }
        assert_eq!(usual_size(0), None);
        assert_eq!(usual_size(SHELF_LINES + 1), None);
    }

    #[test]
    fn the_shelf_gives_what_fits_and_keeps_no_more_than_its_bound() {
        let lines = |count| vec![Line([0; LINE]); count];
        let place = |count| usual_size(count).unwrap().0;
        let mut shelf = Shelf::EMPTY;
        shelf.put(lines(10));
        shelf.put(lines(96));
        shelf.put(lines(97)); // No usual size: it is given back.
        assert_eq!(shelf.lines, 106);
        assert!(shelf.take(place(1)).is_none() && shelf.take(place(97)).is_none());
        assert_eq!(shelf.take(place(90)).map(|lines| lines.len()), Some(96));
        assert_eq!(shelf.lines, 10);
        shelf.put(lines(8));
        shelf.put(lines(SHELF_LINES - 8 * SHELF_LINES.ilog2() as usize)); // Not one either.
        assert_eq!(shelf.lines, 18);
        shelf.put(lines(SHELF_LINES));
        assert_eq!(shelf.lines, SHELF_LINES);
        shelf.put(lines(1));
        assert_eq!(shelf.lines, 1);
    }
}
