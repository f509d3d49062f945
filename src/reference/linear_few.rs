//! Projections of the rows that some sequence has, with a norm in front, and the largest of each group of columns.

use super::{LayerNorm, Linear, Real, expect_len, layer_norm, linear, rms_norm};
use crate::error::Result;
use crate::shape::nonzero;
use crate::spec::Sequence;
use crate::spec::layers::NormKind;

/// A norm in front of a projection.
#[derive(Clone, Copy, Debug)]
pub struct FusedNorm<'a, T> {
    /// Layer norm or RMS norm.
    pub kind: NormKind,
    /// γ (d_in).
    pub weight: Option<&'a [T]>,
    /// β (d_in).
    pub bias: Option<&'a [T]>,
    /// Added to the variance, inside the root; at least 0.
    pub eps: f32,
}

/// y (rows, d_out) = linear(norm(x)), `None` in rows that none of the sequences has; without sequences every row counts.
///
/// # Errors
/// As [`linear()`] and [`layer_norm()`].
pub fn linear_few<T: Real>(
    p: &Linear<'_, T>,
    norm: Option<FusedNorm<'_, T>>,
    sequences: Option<&[Sequence]>,
) -> Result<Vec<Option<T>>> {
    let y = match norm {
        Some(FusedNorm { kind, weight, bias, eps }) => {
            let args = LayerNorm { x: p.x, residual: None, weight, bias, eps, rows: p.rows, d: p.d_in };
            let normed = match kind {
                NormKind::Layer => layer_norm(&args)?,
                NormKind::Rms => rms_norm(&args)?,
            };
            linear(&Linear { x: &normed.y, ..*p })?
        }
        None => linear(p)?,
    };
    let row = |i: usize| i / p.d_out;
    let counts = |i: usize| sequences.is_none_or(|all| all.iter().any(|s| has_row(s, row(i))));
    Ok(y.into_iter().enumerate().map(|(i, y)| counts(i).then_some(y)).collect())
}

fn has_row(s: &Sequence, row: usize) -> bool {
    (s.q_start as usize..s.q_start as usize + s.q_len as usize).contains(&row)
}

/// maxima (rows, groups, 2) of x (rows, columns): the largest element of each group of `group` columns, and its column.
///
/// The last group may be shorter. The element is a number that orders as the floats do, 0 for NaN; the column is the lowest of equals.
///
/// # Errors
/// [`crate::Error::Shape`] for a slice of another length, [`crate::Error::Option`] for a size of 0.
pub fn maxima(x: &[f32], rows: usize, columns: usize, group: usize) -> Result<Vec<u32>> {
    for (name, size) in [("rows", rows), ("columns", columns), ("group", group)] {
        nonzero(name, size)?;
    }
    expect_len("x", &[rows, columns], x.len())?;
    let mut out = Vec::new();
    for row in x.chunks_exact(columns) {
        for (g, part) in row.chunks(group).enumerate() {
            let mut best = (0, 0);
            for (i, &value) in part.iter().enumerate() {
                if order(value) > best.0 {
                    best = (order(value), i);
                }
            }
            out.extend([best.0, (g * group + best.1) as u32]);
        }
    }
    Ok(out)
}

/// A number that orders as floats do, −0 equal to +0; 0 for NaN.
fn order(value: f32) -> u32 {
    let magnitude = value.abs().to_bits();
    match () {
        () if value.is_nan() => 0,
        () if value.is_sign_negative() => 0x8000_0000 - magnitude,
        () => 0x8000_0000 + magnitude,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Activation;

    #[test]
    fn resting_rows_are_left_out() -> Result<()> {
        let p = Linear {
            x: &[1.0f32, 3.0, 2.0, 2.0],
            weight: &[1.0, 0.0],
            bias: None,
            residual: None,
            activation: Activation::Identity,
            rows: 2,
            d_in: 2,
            d_out: 1,
        };
        let second = [Sequence { q_start: 1, q_len: 1, ..Sequence::default() }, Sequence::default()];
        assert_eq!(linear_few(&p, None, Some(&second))?, [None, Some(2.0)]);
        let norm = FusedNorm { kind: NormKind::Layer, weight: None, bias: Some(&[5.0, 0.0]), eps: 0.0 };
        assert_eq!(linear_few(&p, Some(norm), None)?, [Some(4.0), Some(5.0)]);
        Ok(())
    }

    #[test]
    fn maxima_are_the_lowest_of_equals() -> Result<()> {
        let one = 0x8000_0000 + 1.0f32.to_bits();
        assert_eq!(maxima(&[-0.0, 1.0, 1.0, f32::NAN, -1.0], 1, 5, 3)?, [one, 1, 0x8000_0000 - 1.0f32.to_bits(), 4]);
        assert_eq!(maxima(&[-0.0, 0.0, f32::NAN], 1, 3, 2)?, [0x8000_0000, 0, 0, 2]);
        assert!(maxima(&[1.0], 1, 1, 0).is_err());
        Ok(())
    }
}
