//! The column of each row's largest value.

use super::{Real, expect_len};
use crate::error::Result;
use crate::shape::nonzero;

/// ids (rows) of x (rows, cols): of equal values the lowest column; NaN is never chosen, and a row of nothing else gives 0.
///
/// # Errors
/// [`crate::Error::Shape`] for a slice of another length, [`crate::Error::Option`] for a size of 0.
pub fn argmax<T: Real>(x: &[T], rows: usize, cols: usize) -> Result<Vec<u32>> {
    nonzero("rows", rows)?;
    nonzero("cols", cols)?;
    expect_len("x", &[rows, cols], x.len())?;
    Ok(x.chunks_exact(cols).map(largest).collect())
}

fn largest<T: Real>(row: &[T]) -> u32 {
    let mut best: Option<(usize, T)> = None;
    for (column, &value) in row.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|(_, most)| value > most) {
            best = Some((column, value));
        }
    }
    best.map_or(0, |(column, _)| column as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_and_nan_to_nobody() -> Result<()> {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let x = [
            [1.0, 3.0, 3.0], // a tie
            [nan, -2.0, nan],
            [nan, nan, nan],
            [nan, -inf, -inf],
            [-1.0, inf, nan],
        ];
        assert_eq!(argmax(x.as_flattened(), 5, 3)?, [1, 1, 0, 1, 1]);
        assert!(argmax::<f32>(&[], 0, 3).is_err());
        assert!(argmax(&[1.0], 1, 2).is_err());
        Ok(())
    }
}
