//! Memory whose size a caller decides: every allocation can fail, and says so instead of aborting.

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

/// Values that begin on a cache line, so that no vector of a packed panel straddles two.
#[derive(Debug, Default)]
pub struct Aligned<E> {
    values: Vec<E>,
    start: usize,
    len: usize,
}

impl<E: Element> Aligned<E> {
    /// `len` zeros.
    pub fn zeroed(len: usize, what: &str) -> Result<Self> {
        let slack = LINE / size_of::<E>();
        let total = len
            .checked_add(slack)
            .ok_or_else(|| Error::overflow(what))?;
        let values = filled(total, E::ZERO, what)?;
        // `align_offset` may decline (it does under Miri): the values are then merely unaligned.
        let start = match values.as_ptr().align_offset(LINE) {
            offset if offset <= slack => offset,
            _ => 0,
        };
        Ok(Self { values, start, len })
    }
}

impl<E> std::ops::Deref for Aligned<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.values[self.start..self.start + self.len]
    }
}

impl<E> std::ops::DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.values[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(matches!(
            filled(usize::MAX / 16, 0f64, "y"),
            Err(Error::Memory { .. })
        ));
        assert!(matches!(
            product(&[usize::MAX, 2], "y"),
            Err(Error::Overflow { .. })
        ));
        assert_eq!(product(&[3, 0, usize::MAX], "y"), Ok(0));
    }

    #[test]
    fn aligned_values_begin_on_a_line() {
        for len in [0, 1, 17, 1000] {
            let values = Aligned::<f32>::zeroed(len, "test").unwrap();
            assert_eq!(values.len(), len);
            if !cfg!(miri) {
                assert_eq!(values.as_ptr() as usize % LINE, 0);
            }
        }
    }
}
