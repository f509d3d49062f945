//! Whether two views of a buffer have a byte in common, and whether that matters to a program.

use crate::error::{Error, Result};
use crate::program::{Inner, Role};
use crate::shape::Layout;
use crate::tensor::{Element, TensorView};

/// The bytes of a view as runs of neighbours: the first one, how long it is, and how the others follow it, from the outside in.
struct Runs {
    first: u64,
    length: u64,
    dims: Vec<Dim>,
}

/// `count` steps of `step` bytes.
#[derive(Clone, Copy)]
struct Dim {
    count: u64,
    step: u64,
}

impl Runs {
    fn of(offset: u64, element: Element, layout: &Layout) -> Self {
        let size = element.size();
        let mut dims: Vec<Dim> = layout
            .sizes()
            .iter()
            .zip(layout.strides())
            .map(|(&n, &s)| Dim { count: n as u64, step: s as u64 * size })
            .collect();
        dims.retain(|dim| dim.count > 1 && dim.step > 0);
        dims.sort_by_key(|dim| std::cmp::Reverse(dim.step));
        let mut length = size;
        while let Some(dim) = dims.pop_if(|dim| dim.step <= length) {
            length += dim.step * (dim.count - 1);
        }
        Self { first: offset * size, length, dims }
    }

    fn count(&self) -> u64 {
        self.dims.iter().fold(1, |all, dim| all.saturating_mul(dim.count))
    }

    /// Bytes from the first to behind the last of the runs that the dimensions from number `at` on lead to.
    fn extent(&self, at: usize) -> u64 {
        self.length + self.dims[at..].iter().map(|dim| dim.step * (dim.count - 1)).sum::<u64>()
    }

    /// Whether one of those, the first of them at `first`, has a byte of `from .. to`.
    fn reach(&self, at: usize, first: u64, from: u64, to: u64) -> bool {
        let Some(&Dim { count, step }) = self.dims.get(at) else { return first < to && from < first + self.length };
        // Steps whose part ends behind `from` and begins before `to`.
        let begin = (from + 1).saturating_sub(first + self.extent(at + 1)).div_ceil(step);
        let end = to.saturating_sub(first).div_ceil(step).min(count);
        (begin..end).any(|i| self.reach(at + 1, first + i * step, from, to))
    }
}

/// Whether two sets of runs have a byte in common.
fn meet(a: Runs, b: Runs) -> bool {
    if a.first + a.extent(0) <= b.first || b.first + b.extent(0) <= a.first {
        return false;
    }
    let (few, many) = if a.count() <= b.count() { (a, b) } else { (b, a) };
    let starts = few.dims.iter().fold(vec![few.first], |starts, dim| {
        starts.iter().flat_map(|start| (0..dim.count).map(move |i| start + i * dim.step)).collect()
    });
    starts.into_iter().any(|start| many.reach(0, many.first, start, start + few.length))
}

/// Refuses views that would destroy each other: what a dispatch writes must be no weight, nothing else that the program leaves to the
/// caller, and nothing that a later dispatch reads. What is only read before it is overwritten may go: a result may take its input's place.
pub(crate) fn check(program: &Inner, views: &[Option<TensorView>]) -> Result<()> {
    for (slot, view) in views.iter().enumerate() {
        let (Some(view), Some(first_write)) = (view, program.slots[slot].first_write) else { continue };
        for (other, seen) in views.iter().enumerate().filter(|(other, _)| *other != slot) {
            let Some(seen) = seen.as_ref().filter(|seen| seen.buffer() == view.buffer()) else { continue };
            let kept = program.slots[other].role != Role::Input;
            let runs = |view: &TensorView| Runs::of(view.offset(), view.element(), view.layout());
            if (kept || program.slots[other].last_read > Some(first_write)) && meet(runs(view), runs(seen)) {
                return Err(Error::Alias {
                    dispatch: program.dispatches[first_write].label.clone(),
                    written: program.slots[slot].name.clone(),
                    other: program.slots[other].name.clone(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Every byte, one by one.
    fn bytes(offset: u64, element: Element, layout: &Layout) -> HashSet<u64> {
        let mut starts = vec![offset];
        for (&size, &stride) in layout.sizes().iter().zip(layout.strides()) {
            starts = starts.iter().flat_map(|start| (0..size as u64).map(move |i| start + i * stride as u64)).collect();
        }
        starts.into_iter().flat_map(|start| start * element.size()..(start + 1) * element.size()).collect()
    }

    /// Rule: views meet exactly where they have a byte in common, whatever their strides.
    #[test]
    fn views_meet_where_they_share_a_byte() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut met = [0; 2];
        for _ in 0..20_000 {
            let mut drawn = || {
                let rank = rng.random_range(1..4);
                let sizes: Vec<usize> = (0..rank).map(|_| rng.random_range(1..5)).collect();
                let strides: Vec<usize> = (0..rank).map(|_| rng.random_range(0..14)).collect();
                let element = [Element::F32, Element::F16][rng.random_range(0..2)];
                (rng.random_range(0..40), element, Layout::strided(&sizes, &strides).expect("a layout"))
            };
            let [(a, of_a, in_a), (b, of_b, in_b)] = [drawn(), drawn()];
            let right = !bytes(a, of_a, &in_a).is_disjoint(&bytes(b, of_b, &in_b));
            assert_eq!(meet(Runs::of(a, of_a, &in_a), Runs::of(b, of_b, &in_b)), right, "{a} {in_a} and {b} {in_b}");
            met[usize::from(right)] += 1;
        }
        assert!(met.iter().all(|&count| count > 2000), "{met:?}");
    }
}
