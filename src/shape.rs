//! Sizes and strides: where each element of a tensor lies.

use std::fmt;

use crate::error::{Error, Result};

/// The most dimensions that a tensor of this crate has: those of a key/value cache, (2, slots, NH_kv, S, W).
pub const MAX_RANK: usize = 5;

/// The largest element index that a shader computes with: indices are `u32` and stay below 2³⁰.
pub const MAX_ELEMENTS: u64 = 1 << 30;

/// Sizes and strides of a tensor, both in elements, outermost dimension first.
///
/// Strides are free: a stride of 0 broadcasts, a stride larger than the row leaves a gap (a column range of a wider
/// tensor), and views may overlap where they are only read.
///
/// ```
/// use tileformer::Layout;
/// let qkv = Layout::contiguous(&[10, 3 * 64])?;
/// assert_eq!(qkv.strides(), [192, 1]);
/// assert_eq!(qkv.extent(), 1920);
/// # Ok::<(), tileformer::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    rank: usize,
    sizes: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
}

impl Layout {
    /// A layout without gaps, the last dimension innermost.
    ///
    /// # Errors
    /// [`Error::Option`] for no dimension or more than [`MAX_RANK`], a dimension of size 0, or more than [`MAX_ELEMENTS`].
    pub fn contiguous(sizes: &[usize]) -> Result<Self> {
        Self::strided(sizes, dense_strides(sizes).get(..sizes.len()).unwrap_or_default())
    }

    /// A layout with any strides.
    ///
    /// # Errors
    /// As [`Layout::contiguous`]; also for another number of strides than sizes.
    pub fn strided(sizes: &[usize], strides: &[usize]) -> Result<Self> {
        if sizes.is_empty() || sizes.len() > MAX_RANK {
            return Err(Error::option("layout", format!("1 to {MAX_RANK} dimensions"), format!("{sizes:?}")));
        }
        if sizes.len() != strides.len() {
            return Err(Error::option("layout", format!("one stride for each of {sizes:?}"), format!("{strides:?}")));
        }
        if sizes.contains(&0) {
            return Err(Error::option("layout", "no dimension of size 0", format!("{sizes:?}")));
        }
        let mut layout = Self { rank: sizes.len(), sizes: [1; MAX_RANK], strides: [0; MAX_RANK] };
        layout.sizes[..sizes.len()].copy_from_slice(sizes);
        layout.strides[..sizes.len()].copy_from_slice(strides);
        let extent = layout.checked_extent().unwrap_or(u64::MAX);
        let addressed = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64)).unwrap_or(u64::MAX);
        if extent.max(addressed) > MAX_ELEMENTS {
            return Err(Error::option("layout", format!("at most {MAX_ELEMENTS} elements"), layout));
        }
        Ok(layout)
    }

    /// A layout whose rows overlap: one element has several indices, so that there may be more of these than [`MAX_ELEMENTS`].
    pub(crate) fn overlapping(sizes: [usize; 3], strides: [usize; 3]) -> Result<Self> {
        let mut layout = Self::strided(&[1, 1, sizes[2]], &strides)?;
        layout.sizes[..2].copy_from_slice(&sizes[..2]);
        match layout.checked_extent() {
            Some(extent) if extent <= MAX_ELEMENTS && !sizes.contains(&0) => Ok(layout),
            _ => Err(Error::option("layout", format!("1 to {MAX_ELEMENTS} elements"), layout)),
        }
    }

    /// Sizes, outermost first.
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// Strides in elements, outermost first.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// The number of elements that the layout addresses (broadcast ones counted as often as they are addressed).
    #[must_use]
    pub fn len(&self) -> usize {
        self.sizes().iter().product()
    }

    /// Never: a layout has no dimension of size 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// One more than the largest element index that the layout reaches: what a buffer must hold behind the view's offset.
    #[must_use]
    pub fn extent(&self) -> u64 {
        self.checked_extent().unwrap_or(u64::MAX)
    }

    fn checked_extent(&self) -> Option<u64> {
        let mut last = 0u64;
        for (&size, &stride) in self.sizes().iter().zip(self.strides()) {
            last = last.checked_add((size as u64 - 1).checked_mul(stride as u64)?)?;
        }
        last.checked_add(1)
    }

    /// Whether neighbours lie in aligned groups of `n`: the last dimension is dense and a multiple of n, every other stride too.
    #[must_use]
    pub(crate) fn is_in_groups(&self, n: usize) -> bool {
        self.sizes[self.rank - 1].is_multiple_of(n) && self.is_in_groups_outside(n)
    }

    /// As [`Layout::is_in_groups`], whatever the size of the last dimension.
    #[must_use]
    pub(crate) fn is_in_groups_outside(&self, n: usize) -> bool {
        let inner = self.rank - 1;
        self.strides[inner] == 1 && (0..inner).all(|i| self.sizes[i] == 1 || self.strides[i].is_multiple_of(n))
    }

    /// Whether the layout has no gap and no overlap, the last dimension innermost.
    #[must_use]
    pub(crate) fn is_dense(&self) -> bool {
        self.strides() == &dense_strides(self.sizes())[..self.rank]
    }

    /// Whether every index reaches the same element in both: equal, but for strides that nothing is multiplied with.
    #[must_use]
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        self.sizes() == other.sizes() && (0..self.rank).all(|i| self.sizes[i] == 1 || self.strides[i] == other.strides[i])
    }

    /// Says of a matrix that has this layout's sizes in the other order that it is turned, and what weights are.
    #[must_use]
    pub(crate) fn found_turned(&self, found: &Self) -> String {
        let turned = matches!((self.sizes(), found.sizes()), (&[a, b], &[c, d]) if a == d && b == c && a != b);
        let hint = if turned { ", its transpose: weights are (out, in) as nn.Linear has them" } else { "" };
        format!("{found}{hint}")
    }

    /// Whether no two indices reach the same element, as outputs need it. Dimensions that interleave count as overlapping.
    #[must_use]
    pub(crate) fn is_disjoint(&self) -> bool {
        let mut dims: Vec<(usize, usize)> = self.strides().iter().copied().zip(self.sizes().iter().copied()).collect();
        dims.retain(|&(_, size)| size > 1);
        dims.sort_unstable();
        let mut reach = 0;
        dims.iter().all(|&(stride, size)| {
            let apart = stride > reach;
            reach += stride * (size - 1);
            apart
        })
    }

    /// Whether the elements of the last dimension are neighbours.
    #[must_use]
    pub(crate) fn is_dense_inside(&self) -> bool {
        self.strides[self.rank - 1] == 1 || self.sizes[self.rank - 1] == 1
    }

    /// The size of dimension `i`.
    #[must_use]
    pub(crate) fn size(&self, i: usize) -> u32 {
        self.sizes[i] as u32
    }

    /// The stride of dimension `i` for a shader: 0 where the dimension has one element, so that it broadcasts.
    #[must_use]
    pub(crate) fn stride(&self, i: usize) -> u32 {
        if self.sizes[i] == 1 { 0 } else { self.strides[i] as u32 }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())?;
        if self.is_dense() { Ok(()) } else { write!(f, " with strides {:?}", self.strides()) }
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The strides of a layout without gaps.
fn dense_strides(sizes: &[usize]) -> [usize; MAX_RANK] {
    let mut strides = [0; MAX_RANK];
    let mut next = 1usize;
    for (stride, &size) in strides[..sizes.len().min(MAX_RANK)].iter_mut().zip(sizes).rev() {
        *stride = next;
        next = next.saturating_mul(size);
    }
    strides
}

/// Refuses a size of 0, naming it.
pub(crate) fn nonzero(name: &str, size: usize) -> Result<()> {
    if size == 0 { Err(Error::option(name, "at least 1", 0)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_elements_are_an_error_that_shows_the_sizes() {
        let error = Layout::contiguous(&[1 << 20, 1 << 20]).expect_err("2^40 elements");
        assert!(error.to_string().contains("[1048576, 1048576]"), "{error}");
        assert!(Layout::strided(&[2, 2], &[usize::MAX, 1]).is_err());
        assert!(Layout::strided(&[1 << 20, 1 << 20], &[0, 0]).is_err(), "few elements, addressed too often");
    }

    #[test]
    fn overlapping_layouts_are_known() -> Result<()> {
        for (sizes, strides, disjoint) in [
            (&[4, 3][..], &[3, 1][..], true),
            (&[4, 3], &[8, 1], true),
            (&[4, 3], &[2, 1], false),
            (&[4, 3], &[0, 1], false),
            (&[1, 3], &[0, 1], true),
            (&[3, 4], &[1, 3], true),
            (&[2, 2, 2], &[4, 2, 1], true),
            (&[2, 2, 2], &[3, 2, 1], false),
        ] {
            assert_eq!(Layout::strided(sizes, strides)?.is_disjoint(), disjoint, "{sizes:?} {strides:?}");
        }
        Ok(())
    }
}
