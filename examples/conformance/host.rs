//! Arrays on the host, and what moves, repeats and joins their elements.

use super::judge::{Outcome, failed};

/// The most elements of an array, as of a tensor on the GPU.
const MAX_ELEMENTS: usize = tileformer::shape::MAX_ELEMENTS as usize;

/// Elements in row-major order with their sizes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array<T> {
    sizes: Vec<usize>,
    values: Vec<T>,
}

impl<T: Copy> Array<T> {
    /// Elements that must be as many as the sizes say.
    pub(crate) fn new(sizes: &[usize], values: Vec<T>) -> Outcome<Self> {
        if count(sizes) != Some(values.len()) {
            return failed(format!("{} elements do not make {sizes:?}", values.len()));
        }
        Ok(Self { sizes: sizes.to_vec(), values })
    }

    pub(crate) fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    pub(crate) fn values(&self) -> &[T] {
        &self.values
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The sizes, which must be `N`.
    pub(crate) fn dims<const N: usize>(&self, what: &str) -> Outcome<[usize; N]> {
        match self.sizes.as_slice().try_into() {
            Ok(sizes) => Ok(sizes),
            Err(_) => failed(format!("{what}: expected {N} dimensions, found {:?}", self.sizes)),
        }
    }

    /// The size of the last dimension; 1 for a scalar.
    pub(crate) fn columns(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// The same elements under other sizes.
    pub(crate) fn reshape(self, sizes: &[usize]) -> Outcome<Self> {
        Self::new(sizes, self.values)
    }

    /// The dimensions in another order: dimension i of the result is dimension `axes[i]` of this.
    pub(crate) fn permute(&self, axes: &[usize]) -> Outcome<Self> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..self.sizes.len()) {
            return failed(format!("{axes:?} is no order of the dimensions {:?}", self.sizes));
        }
        let strides = strides(&self.sizes);
        let pick = |from: &[usize]| axes.iter().map(|&axis| from[axis]).collect::<Vec<_>>();
        Ok(self.view(&pick(&self.sizes), &pick(&strides)))
    }

    /// Two dimensions exchanged.
    pub(crate) fn swap(&self, a: usize, b: usize) -> Outcome<Self> {
        let swapped = |axis| {
            if axis == a {
                b
            } else if axis == b {
                a
            } else {
                axis
            }
        };
        self.permute(&(0..self.sizes.len()).map(swapped).collect::<Vec<_>>())
    }

    /// Leading dimensions of size 1, up to `rank` in all.
    pub(crate) fn with_rank(self, rank: usize) -> Outcome<Self> {
        let Some(missing) = rank.checked_sub(self.sizes.len()) else {
            return failed(format!("expected at most {rank} dimensions, found {:?}", self.sizes));
        };
        let sizes = [vec![1; missing], self.sizes].concat();
        Self::new(&sizes, self.values)
    }

    /// Repeated to larger sizes, by numpy's rule: dimensions are aligned at the last, and those of size 1 repeat.
    pub(crate) fn broadcast(&self, sizes: &[usize]) -> Outcome<Self> {
        let aligned = self.clone().with_rank(sizes.len())?;
        let repeats = aligned.sizes.iter().zip(sizes).all(|(&from, &to)| from == to || from == 1);
        if !repeats || count(sizes).is_none() {
            return failed(format!("{:?} does not repeat to {sizes:?}", self.sizes));
        }
        let own = strides(&aligned.sizes).into_iter().zip(&aligned.sizes);
        Ok(aligned.view(sizes, &own.map(|(stride, &size)| if size == 1 { 0 } else { stride }).collect::<Vec<_>>()))
    }

    /// The parts one behind the other along `axis`; their other dimensions must agree.
    pub(crate) fn concat(parts: &[&Self], axis: usize) -> Outcome<Self> {
        let Some(first) = parts.first().filter(|p| axis < p.sizes.len()) else {
            return failed(format!("nothing to join along dimension {axis}"));
        };
        let others = |p: &Self| {
            let mut sizes = p.sizes.clone();
            if axis < sizes.len() {
                sizes.remove(axis);
            }
            sizes
        };
        if let Some(odd) = parts.iter().find(|p| others(p) != others(first) || p.sizes.len() != first.sizes.len()) {
            return failed(format!("{:?} and {:?} do not join along dimension {axis}", first.sizes, odd.sizes));
        }
        let outer: usize = first.sizes[..axis].iter().product();
        let mut values = Vec::with_capacity(parts.iter().map(|p| p.values.len()).sum());
        for i in 0..outer {
            for part in parts {
                let block = part.values.len() / outer;
                values.extend_from_slice(&part.values[i * block..(i + 1) * block]);
            }
        }
        let mut sizes = first.sizes.clone();
        sizes[axis] = parts.iter().map(|p| p.sizes[axis]).sum();
        Self::new(&sizes, values)
    }

    /// The last dimension filled up to `size`.
    pub(crate) fn pad_last(&self, size: usize, fill: T) -> Outcome<Self> {
        let Some(axis) = self.sizes.len().checked_sub(1) else { return Ok(self.clone()) };
        let Some(missing) = size.checked_sub(self.columns()) else {
            return failed(format!("expected a last dimension of at most {size}, found {:?}", self.sizes));
        };
        let mut sizes = self.sizes.clone();
        sizes[axis] = missing;
        let Some(added) = count(&sizes) else { return failed(format!("{:?} does not fill up to {size}", self.sizes)) };
        Self::concat(&[self, &Self { sizes, values: vec![fill; added] }], axis)
    }

    /// Elements `from .. from + size` of the first dimension.
    pub(crate) fn narrow(&self, from: usize, size: usize) -> Outcome<Self> {
        let found = self.sizes.first().copied().unwrap_or(0);
        if from.checked_add(size).is_none_or(|end| end > found) {
            return failed(format!("expected at least {} rows, found {:?}", from.saturating_add(size), self.sizes));
        }
        let inner = self.sizes.get(1..).unwrap_or_default();
        let row: usize = inner.iter().product();
        let sizes = [&[size], inner].concat();
        Self::new(&sizes, self.values[from * row..(from + size) * row].to_vec())
    }

    /// Every element through `f`.
    pub(crate) fn map<U>(&self, f: impl Fn(T) -> U) -> Array<U> {
        Array { sizes: self.sizes.clone(), values: self.values.iter().map(|&v| f(v)).collect() }
    }

    /// The elements that these sizes and strides address.
    fn view(&self, sizes: &[usize], strides: &[usize]) -> Self {
        let at = |mut n: usize| {
            let mut index = 0;
            for (&size, &stride) in sizes.iter().zip(strides).rev() {
                index += n % size * stride;
                n /= size;
            }
            self.values[index]
        };
        Self { sizes: sizes.to_vec(), values: (0..sizes.iter().product()).map(at).collect() }
    }
}

impl Array<f32> {
    /// The mean over dimension 1.
    pub(crate) fn mean_over_heads(&self) -> Outcome<Self> {
        let [batch, n_heads, queries, keys] = self.dims("attention weights")?;
        let matrix = queries * keys;
        let mean = |n: usize| {
            let first = n / matrix * n_heads * matrix + n % matrix;
            let sum: f64 = (0..n_heads).map(|h| f64::from(self.values[first + h * matrix])).sum();
            (sum / n_heads as f64) as f32
        };
        Self::new(&[batch, queries, keys], (0..batch * matrix).map(mean).collect())
    }
}

/// An axis that may be counted from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Outcome<usize> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(from_start) {
        Ok(found) if found < rank => Ok(found),
        _ => failed(format!("axis {axis} of a tensor of {rank} dimensions")),
    }
}

/// The sizes that both broadcast to, by numpy's rule.
pub(crate) fn common_sizes(a: &[usize], b: &[usize]) -> Outcome<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |sizes: &[usize], i: usize| (i + sizes.len()).checked_sub(rank).map_or(1, |at| sizes[at]);
    let mut common = Vec::with_capacity(rank);
    for i in 0..rank {
        match (size(a, i), size(b, i)) {
            (x, y) if x == y || y == 1 => common.push(x),
            (1, y) => common.push(y),
            _ => return failed(format!("{a:?} and {b:?} do not broadcast")),
        }
    }
    Ok(common)
}

/// How many elements sizes make, unless they are too many. Sizes beside a 0 count too, so that no part of them overflows.
fn count(sizes: &[usize]) -> Option<usize> {
    let most = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size.max(1)).filter(|&n| n <= MAX_ELEMENTS))?;
    Some(if sizes.contains(&0) { 0 } else { most })
}

fn strides(sizes: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; sizes.len()];
    for i in (1..sizes.len()).rev() {
        strides[i - 1] = strides[i] * sizes[i];
    }
    strides
}
