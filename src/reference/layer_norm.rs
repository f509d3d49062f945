//! Layer norm: y = (s − mean) / √(variance + eps) · weight + bias with s = x + residual (Ba et al., arXiv 1607.06450).

use super::{Real, expect_len};
use crate::error::{Error, Result};
use crate::shape::nonzero;

/// A layer norm's operands.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a, T> {
    /// Input (rows, d).
    pub x: &'a [T],
    /// Added to the input first (rows, d).
    pub residual: Option<&'a [T]>,
    /// γ (d).
    pub weight: Option<&'a [T]>,
    /// β (d).
    pub bias: Option<&'a [T]>,
    /// Added to the variance, inside the root; at least 0.
    pub eps: f32,
    /// Rows.
    pub rows: usize,
    /// Columns, over which each row is normalised.
    pub d: usize,
}

/// What a layer norm gives.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormOutput<T> {
    /// The normalised rows (rows, d).
    pub y: Vec<T>,
    /// x + residual (rows, d), x itself where there is no residual.
    pub sum: Vec<T>,
    /// (rows)
    pub mean: Vec<T>,
    /// 1/√(variance + eps) (rows)
    pub inverse_deviation: Vec<T>,
}

/// Normalises each row: mean = Σ s / d, variance = Σ (s − mean)² / d, in two passes.
///
/// The row's first element is subtracted before the first sum, so that a constant row has a deviation of exactly 0 and gives
/// `bias`, however small eps is, 0 included. What the deviations then sum to is what the mean is off by, and is taken off as well.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0 or an eps that is negative or not finite.
pub fn layer_norm<T: Real>(p: &LayerNorm<'_, T>) -> Result<LayerNormOutput<T>> {
    normalise(p, true)
}

/// RMS norm: y = s / √(Σ s² / d + eps) · weight + bias; the mean is given as 0 (Zhang and Sennrich, arXiv 1910.07467).
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm<T: Real>(p: &LayerNorm<'_, T>) -> Result<LayerNormOutput<T>> {
    normalise(p, false)
}

fn normalise<T: Real>(p: &LayerNorm<'_, T>, centered: bool) -> Result<LayerNormOutput<T>> {
    check(p)?;
    let count = T::of(p.d as f64);
    let sum: Vec<T> = match p.residual {
        Some(residual) => p.x.iter().zip(residual).map(|(&x, &r)| x + r).collect(),
        None => p.x.to_vec(),
    };
    let mut out = LayerNormOutput { y: Vec::with_capacity(sum.len()), sum, mean: vec![], inverse_deviation: vec![] };
    for row in out.sum.chunks_exact(p.d) {
        // pass 1: the mean, as seen from the first element
        let first = if centered { row[0] } else { T::zero() };
        let mut total = T::zero();
        for &s in row {
            total += s - first;
        }
        let mean = if centered { total / count } else { T::zero() };
        let mean = first + mean;
        // pass 2: the variance, and what the mean is off by (Chan, Golub and LeVeque 1983)
        let (mut rest, mut squares) = (T::zero(), T::zero());
        for &s in row {
            rest += s - mean;
            squares += (s - mean) * (s - mean);
        }
        let off = if centered { rest / count } else { T::zero() };
        let spread = (squares - rest * off) / count + T::of(p.eps);
        let inverse_deviation = if spread > T::zero() { T::one() / spread.sqrt() } else { T::zero() };
        // pass 3: the output
        for (c, &s) in row.iter().enumerate() {
            let mut y = ((s - mean) - off) * inverse_deviation;
            if let Some(weight) = p.weight {
                y *= weight[c];
            }
            if let Some(bias) = p.bias {
                y += bias[c];
            }
            out.y.push(y);
        }
        out.mean.push(mean + off);
        out.inverse_deviation.push(inverse_deviation);
    }
    Ok(out)
}

fn check<T>(p: &LayerNorm<'_, T>) -> Result<()> {
    nonzero("rows", p.rows)?;
    nonzero("d", p.d)?;
    if !(p.eps.is_finite() && p.eps >= 0.0) {
        return Err(Error::option("eps", "a finite number of at least 0", p.eps));
    }
    expect_len("x", &[p.rows, p.d], p.x.len())?;
    if let Some(residual) = p.residual {
        expect_len("residual", &[p.rows, p.d], residual.len())?;
    }
    if let Some(weight) = p.weight {
        expect_len("weight", &[p.d], weight.len())?;
    }
    if let Some(bias) = p.bias {
        expect_len("bias", &[p.d], bias.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare<T>(x: &[T], rows: usize, d: usize) -> LayerNorm<'_, T> {
        LayerNorm { x, residual: None, weight: None, bias: None, eps: 1e-5, rows, d }
    }

    fn near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn one_two_three_four() -> Result<()> {
        let x = [1.0, 2.0, 3.0, 4.0];
        let out = layer_norm(&bare(&x, 1, 4))?;
        near(&out.y, &[-1.34, -0.45, 0.45, 1.34], 5e-3);
        near(&out.mean, &[2.5], 0.0);
        near(&out.inverse_deviation, &[1.0 / 1.25001f64.sqrt()], 1e-9);
        let (weight, bias) = ([1.5; 4], [0.5; 4]);
        let out = layer_norm(&LayerNorm { weight: Some(&weight), bias: Some(&bias), ..bare(&x, 1, 4) })?;
        near(&out.y, &[-1.51, -0.17, 1.17, 2.51], 5e-3);
        Ok(())
    }

    #[test]
    fn a_constant_row_gives_the_bias_exactly() -> Result<()> {
        let (x, weight, bias) = ([0.1f32; 77], [3.0; 77], [0.7; 77]);
        let p = LayerNorm { weight: Some(&weight), bias: Some(&bias), eps: 1e-12, ..bare(&x, 1, 77) };
        let out = layer_norm(&p)?;
        assert_eq!(out.y, bias);
        assert_eq!(out.mean, [0.1]);
        Ok(())
    }

    #[test]
    fn residual_is_added_first_and_returned() -> Result<()> {
        let out = layer_norm(&LayerNorm { residual: Some(&[1.0, -1.0]), ..bare(&[1.0f64, 4.0], 1, 2) })?;
        assert_eq!(out.sum, [2.0, 3.0]);
        assert_eq!(out.y, layer_norm(&bare(&[2.0, 3.0], 1, 2))?.y);
        Ok(())
    }

    #[test]
    fn a_far_mean_costs_little() -> Result<()> {
        let far: Vec<f32> = (0..64).map(|i| 1e4 + (i % 7) as f32).collect();
        let near_zero: Vec<f32> = (0..64).map(|i| (i % 7) as f32).collect();
        assert_eq!(layer_norm(&bare(&far, 1, 64))?.y, layer_norm(&bare(&near_zero, 1, 64))?.y);
        assert!(layer_norm(&LayerNorm { eps: -1.0, ..bare(&far, 1, 64) }).is_err());
        Ok(())
    }
}
