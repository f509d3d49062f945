//! Softmax over the last dimension: e^(x − max) / Σ e^(x − max), a masked element counting as 0.

use super::attention::{biased, visible};
use super::{Attention, Real, expect_len};
use crate::error::{Error, Result};
use crate::shape::nonzero;

/// probs (rows, cols): softmax of scale · x over each row. −∞ in x is a masked element, whatever the scale; a row of nothing
/// else gives zeros.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0 or a scale that is not finite.
pub fn masked_softmax<T: Real>(x: &[T], rows: usize, cols: usize, scale: f32) -> Result<Vec<T>> {
    nonzero("rows", rows)?;
    nonzero("cols", cols)?;
    if !scale.is_finite() {
        return Err(Error::option("scale", "a finite number", scale));
    }
    expect_len("x", &[rows, cols], x.len())?;
    let masked = T::neg_infinity();
    let mut probs: Vec<T> = x.iter().map(|&x| if x == masked { masked } else { T::of(scale) * x }).collect();
    probs.chunks_exact_mut(cols).for_each(softmax_row);
    Ok(probs)
}

/// probs (B, NH, T, S) of x (B, NH, T, S): softmax over the keys of scale · x − slope\[h\] · |p − j| + additive\[i, j\].
///
/// Zeros where query i does not see key j (i ≥ q_len and j ≥ k_len included) and where x is −∞. Scale is the option's, 1 if it has
/// none.
///
/// # Errors
/// As [`Attention::check`]; [`Error::Shape`] for a slice of another length; [`Error::Option`] for a softcap, which belongs to
/// the scores.
pub fn masked_softmax_options<T: Real>(att: &Attention<'_, T>, x: &[T]) -> Result<Vec<T>> {
    att.check()?;
    if let Some(cap) = att.options.softcap {
        return Err(Error::option("softcap", "none, as it belongs to the scores", cap));
    }
    let [sequences, n_heads, longest_q, longest_k] = att.score_sizes();
    expect_len("x", &att.score_sizes(), x.len())?;
    let scale = T::of(att.options.scale.unwrap_or(1.0));
    let mut probs = vec![T::neg_infinity(); x.len()];
    for b in 0..sequences {
        for h in 0..n_heads {
            for i in 0..longest_q {
                let row = ((b * n_heads + h) * longest_q + i) * longest_k;
                for j in 0..longest_k {
                    if visible(att, b, h, i, j) && x[row + j] != T::neg_infinity() {
                        probs[row + j] = biased(att, scale * x[row + j], b, h, i, j);
                    }
                }
                softmax_row(&mut probs[row..row + longest_k]);
            }
        }
    }
    Ok(probs)
}

/// ln Σ e^x of each row of x (rows, cols), as [`crate::kernels::FusedAttention`] gives it: −∞ for a row of nothing but −∞.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0.
pub fn log_sum_exp<T: Real>(x: &[T], rows: usize, cols: usize) -> Result<Vec<T>> {
    nonzero("rows", rows)?;
    nonzero("cols", cols)?;
    expect_len("x", &[rows, cols], x.len())?;
    let row = |row: &[T]| {
        let max = row.iter().copied().fold(T::neg_infinity(), T::max);
        let sum = row.iter().fold(T::zero(), |sum, &x| sum + (x - max).exp());
        if max == T::neg_infinity() { max } else { max + sum.ln() }
    };
    Ok(x.chunks_exact(cols).map(row).collect())
}

/// In place.
fn softmax_row<T: Real>(row: &mut [T]) {
    // pass 1: the maximum, so that no exponential overflows
    let mut max = T::neg_infinity();
    for &x in row.iter() {
        if x > max {
            max = x;
        }
    }
    if row.iter().all(|&x| x == T::neg_infinity()) {
        row.fill(T::zero());
        return;
    }
    // pass 2: exponentials and their sum; e^(−∞) is 0
    let mut sum = T::zero();
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    // pass 3: normalise
    for x in row.iter_mut() {
        *x /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::MaskValues;
    use crate::spec::{AttentionOptions, BatchShape, Mask, Sequences};

    const MASKED: f64 = f64::NEG_INFINITY;

    fn near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn two_one_and_a_tenth() -> Result<()> {
        let probs = masked_softmax(&[2.0, 1.0, 0.1], 1, 3, 1.0)?;
        near(&probs, &[7.39 / 11.22, 2.72 / 11.22, 1.11 / 11.22], 1e-3);
        near(&masked_softmax(&[4.0, 2.0, 0.2], 1, 3, 0.5)?, &probs, 1e-15);
        near(&[probs.iter().sum()], &[1.0], 1e-15);
        Ok(())
    }

    #[test]
    fn masked_rows_give_zeros_and_large_scores_do_not_overflow() -> Result<()> {
        let x = [MASKED, MASKED, MASKED, 0.0, 1000.0, 1000.0];
        assert_eq!(masked_softmax(&x, 3, 2, 1.0)?, [0.0, 0.0, 0.0, 1.0, 0.5, 0.5]);
        assert_eq!(masked_softmax(&x, 3, 2, 0.0)?, [0.0, 0.0, 0.0, 1.0, 0.5, 0.5]);
        assert_eq!(masked_softmax(&x, 3, 2, -1.0)?, [0.0, 0.0, 0.0, 1.0, 0.5, 0.5]);
        assert_eq!(masked_softmax(&[f32::MIN, f32::MIN], 1, 2, 1.0)?, [0.5, 0.5]);
        assert!(masked_softmax(&[f64::NAN, 0.0], 1, 2, 1.0)?.iter().all(|p| p.is_nan()));
        assert!(masked_softmax(&[f64::NAN, MASKED], 1, 2, 1.0)?.iter().all(|p| p.is_nan()));
        assert!(masked_softmax(&x, 2, 2, 1.0).is_err());
        Ok(())
    }

    #[test]
    fn logarithms_of_sums() -> Result<()> {
        let found = log_sum_exp(&[0.0, 0.0, 1000.0, MASKED, MASKED, MASKED], 3, 2)?;
        assert_eq!(found, [2.0f64.ln(), 1000.0, MASKED]);
        assert!(log_sum_exp(&[0.0], 1, 2).is_err());
        Ok(())
    }

    #[test]
    fn options_are_applied_to_given_scores() -> Result<()> {
        // two sequences of 2 and 1 keys, both in rows of T = S = 2; the second has one query
        let sequences = Sequences::packed(&[2, 1])?;
        let options = AttentionOptions {
            scale: Some(2.0),
            alibi: vec![1.0],
            mask: Some(Mask::Additive),
            ..AttentionOptions::causal()
        };
        let att = Attention {
            shape: BatchShape::of(sequences.as_slice()),
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: Some(MaskValues::Additive { sizes: [1, 1, 1, 2], values: &[0.25, 0.0] }),
        };
        let nan = f64::NAN; // hidden, and so never looked at
        let x = [7.0, nan, 0.5, 0.125, 7.0, nan, nan, nan];
        let (a, b) = ((1.0f64 - 1.0 + 0.25).exp(), 0.25f64.exp());
        let expected = [1.0, 0.0, a / (a + b), b / (a + b), 1.0, 0.0, 0.0, 0.0];
        near(&masked_softmax_options(&att, &x)?, &expected, 1e-15);
        let capped = AttentionOptions { softcap: Some(1.0), ..options.clone() };
        assert!(masked_softmax_options(&Attention { options: &capped, ..att }, &x).is_err());
        Ok(())
    }
}
