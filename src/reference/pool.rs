//! One row of each sequence.

use super::{Real, expect_len};
use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::spec::{Pooling, Sequence};

/// y (B, columns) of x (rows, columns): the first row of each sequence, or the mean of all.
///
/// The rows of a sequence are `k_start .. k_start + k_len`. Then y / max(‖y‖, 1e-12) where `normalize` is set. A sequence without rows gives zeros.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0 or a sequence that leaves the rows.
pub fn pool<T: Real>(
    x: &[T],
    sequences: &[Sequence],
    pooling: Pooling,
    normalize: bool,
    rows: usize,
    columns: usize,
) -> Result<Vec<T>> {
    nonzero("rows", rows)?;
    nonzero("columns", columns)?;
    expect_len("x", &[rows, columns], x.len())?;
    let mut y = Vec::with_capacity(sequences.len().saturating_mul(columns));
    for (b, s) in sequences.iter().enumerate() {
        let (first, len) = (s.k_start as usize, s.k_len as usize);
        if first + len > rows {
            let what = format!("sequences[{b}]: k_start + k_len");
            return Err(Error::option(what, format!("at most {rows}"), first + len));
        }
        let count = if pooling == Pooling::First { len.min(1) } else { len };
        let mut row = vec![T::zero(); columns];
        for x in x[first * columns..(first + count) * columns].chunks_exact(columns) {
            row.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
        }
        row.iter_mut().for_each(|sum| *sum = if count == 0 { T::zero() } else { *sum / T::of(count as f64) });
        if normalize {
            let squares = row.iter().fold(T::zero(), |sum, &v| sum + v * v);
            let length = squares.sqrt().max(T::of(1e-12));
            row.iter_mut().for_each(|v| *v /= length);
        }
        y.extend(row);
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Sequences;

    #[test]
    fn first_mean_and_length() -> Result<()> {
        let x = [3.0, 0.0, 1.0, 8.0, f64::NAN, f64::NAN, 5.0, 6.0];
        let padded = Sequences::padded(&[2, 0], 2)?;
        let run = |pooling, normalize| pool(&x, padded.as_slice(), pooling, normalize, 4, 2);
        assert_eq!(run(Pooling::First, false)?, [3.0, 0.0, 0.0, 0.0]);
        assert_eq!(run(Pooling::Mean, false)?, [2.0, 4.0, 0.0, 0.0]);
        let length = 20f64.sqrt();
        assert_eq!(run(Pooling::Mean, true)?, [2.0 / length, 4.0 / length, 0.0, 0.0]);
        assert!(pool(&x, padded.as_slice(), Pooling::Mean, false, 4, 3).is_err());
        assert!(pool(&x, Sequences::padded(&[2, 3], 3)?.as_slice(), Pooling::Mean, false, 4, 2).is_err());
        Ok(())
    }
}
