//! Values averaged by their weights: out = probs · v.

use super::attention::has_key;
use super::{Attention, Real, count, expect_len};
use crate::error::Result;

/// out (q_rows, n_heads, value_head_size) of probs (B, NH, T, S) and v (k_rows, n_kv_heads, value_head_size):
/// `out[i, h, d] = Σ_j probs[b, h, i, j] · v[j, h / group, d]`.
///
/// A key at or behind k_len, or with key mask 0, is skipped, so that a NaN in it goes nowhere. Rows that belong to no
/// sequence stay 0.
///
/// # Errors
/// As [`Attention::check`]; [`crate::Error::Shape`] for a slice of another length.
pub fn attention_values<T: Real>(att: &Attention<'_, T>, probs: &[T], v: &[T]) -> Result<Vec<T>> {
    att.check()?;
    let [_, n_heads, longest_q, longest_k] = att.score_sizes();
    let d = att.value_head_size;
    expect_len("probs", &att.score_sizes(), probs.len())?;
    expect_len("v", &[att.shape.k_rows, att.n_kv_heads, d], v.len())?;
    let mut out = vec![T::zero(); count("out", &[att.shape.q_rows, n_heads, d])?];
    for (b, sequence) in att.sequences.iter().enumerate() {
        for h in 0..n_heads {
            for i in 0..sequence.q_len as usize {
                let probs = &probs[((b * n_heads + h) * longest_q + i) * longest_k..][..longest_k];
                let out = &mut out[((sequence.q_start as usize + i) * n_heads + h) * d..][..d];
                out.fill(T::zero());
                for j in (0..sequence.k_len as usize).filter(|&j| has_key(att, b, j)) {
                    let v = &v[((sequence.k_start as usize + j) * att.n_kv_heads + att.kv_head(h)) * d..][..d];
                    for c in 0..d {
                        out[c] += probs[j] * v[c];
                    }
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::attention;
    use crate::spec::{AttentionOptions, BatchShape, Sequence, Sequences};

    #[test]
    fn weights_pick_values_of_their_own_group() -> Result<()> {
        let (sequences, options) = (Sequences::cross(1, 1, &[2], 2)?, AttentionOptions::default());
        let att = Attention {
            shape: sequences.shape(),
            n_heads: 2,
            n_kv_heads: 1,
            head_size: 4,
            value_head_size: 3,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        let v = [1.0f32, 2.0, 3.0, 10.0, 20.0, 30.0];
        let out = attention_values(&att, &[1.0, 0.0, 0.5, 0.5], &v)?;
        assert_eq!(out, [1.0, 2.0, 3.0, 5.5, 11.0, 16.5]);
        Ok(())
    }

    /// Two sequences in rows 0..2 and 3..4: row 2 belongs to none; the last key of the first is masked, the row behind the
    /// second is padding, and both are NaN.
    #[test]
    fn nan_in_a_hidden_key_reaches_nothing() -> Result<()> {
        let sequence =
            |start, q_len, k_len| Sequence { q_start: start, q_len, k_start: start, k_len, ..Sequence::default() };
        let sequences = [sequence(0, 2, 3), sequence(3, 1, 1)];
        let options = AttentionOptions { key_mask: true, ..Default::default() };
        let att = Attention {
            shape: BatchShape { sequences: 2, q_rows: 5, longest_q: 2, k_rows: 5, longest_k: 3 },
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: &sequences,
            key_mask: Some(&[1, 1, 0, 1, 1, 1]),
            mask: None,
        };
        let nan = f64::NAN;
        let (q, k, v) = ([0.0; 5], [1.0, 1.0, nan, 1.0, nan], [2.0, 4.0, nan, 7.0, nan]);
        let (out, probs) = attention(&att, &q, &k, &v)?;
        assert_eq!(out, [3.0, 3.0, 0.0, 7.0, 0.0]);
        assert_eq!(probs, [0.5, 0.5, 0.0, 0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        Ok(())
    }

    /// "time flies like an arrow": each word's new vector is Σ w_ji x_j over all five, and the weights sum to 1.
    #[test]
    fn time_flies_like_an_arrow() -> Result<()> {
        let (sequences, options) = (Sequences::padded(&[5], 5)?, AttentionOptions::default());
        let att = Attention {
            shape: sequences.shape(),
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 2,
            value_head_size: 2,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        let x = [0.1f64, 0.9, 0.8, -0.3, 0.2, 0.2, -0.5, 0.4, 0.7, 0.6];
        let (out, probs) = attention(&att, &x, &x, &x)?;
        for (i, row) in probs.chunks_exact(5).enumerate() {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-15);
            for c in 0..2 {
                let expected: f64 = (0..5).map(|j| row[j] * x[2 * j + c]).sum();
                assert!((out[2 * i + c] - expected).abs() < 1e-15);
            }
        }
        let flies = |j: usize| ((0.8 * x[2 * j] - 0.3 * x[2 * j + 1]) / 2f64.sqrt()).exp();
        let expected = flies(4) / (0..5).map(flies).sum::<f64>();
        assert!((probs[5 + 4] - expected).abs() < 1e-7); // 1/√2 is an f32 in the options
        Ok(())
    }

    #[test]
    fn sequences_must_fit_the_shape() -> Result<()> {
        let (sequences, options) = (Sequences::padded(&[2], 2)?, AttentionOptions::default());
        let att = Attention {
            shape: sequences.shape(),
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        assert!(attention_values(&att, &[0.5f32; 4], &[1.0; 2]).is_ok());
        assert!(attention_values(&att, &[0.5f32; 4], &[1.0; 3]).is_err());
        let far = [Sequence { q_start: 1, ..sequences.as_slice()[0] }];
        assert!(attention_values(&Attention { sequences: &far, ..att }, &[0.5f32; 4], &[1.0; 2]).is_err());
        let endless = BatchShape { q_rows: usize::MAX, ..att.shape };
        assert!(attention_values(&Attention { shape: endless, ..att }, &[0.5f32; 4], &[1.0; 2]).is_err());
        let endless = BatchShape { longest_q: usize::MAX, ..endless };
        assert!(attention_values(&Attention { shape: endless, ..att }, &[0.5f32; 4], &[1.0; 2]).is_err());
        assert!(attention_values(&Attention { sequences: &[], ..att }, &[0.5f32; 4], &[1.0; 2]).is_err());
        Ok(())
    }
}
