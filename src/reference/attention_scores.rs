//! Scores: softcap(scale · q·k) − slope · |p − j| + additive, −∞ where a key is hidden.

use super::linear::dot;
use super::{Attention, Real, expect_len};
use crate::error::Result;

/// scores (B, NH, T, S) of q (q_rows, n_heads, head_size) and k (k_rows, n_kv_heads, head_size).
///
/// By the formula of [`crate::AttentionOptions`]: −∞ wherever query i does not see key j, i ≥ q_len and j ≥ k_len included.
///
/// # Errors
/// As [`Attention::check`]; [`crate::Error::Shape`] for a slice of another length.
pub fn attention_scores<T: Real>(att: &Attention<'_, T>, q: &[T], k: &[T]) -> Result<Vec<T>> {
    att.check()?;
    let d = att.head_size;
    expect_len("q", &[att.shape.q_rows, att.n_heads, d], q.len())?;
    expect_len("k", &[att.shape.k_rows, att.n_kv_heads, d], k.len())?;
    Ok(att.scores(att.options.scale_for(d), |h, q_row, k_row| {
        let q = &q[(q_row * att.n_heads + h) * d..][..d];
        let k = &k[(k_row * att.n_kv_heads + att.kv_head(h)) * d..][..d];
        dot(q, k)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::MaskValues;
    use crate::spec::{AttentionOptions, BatchShape, Mask, Sequences};

    const HIDDEN: f64 = f64::NEG_INFINITY;

    /// One head of size 1, one sequence of `lens` queries and keys with q = 1 and k = 1, 2, 3, …: scores are 1, 2, 3, ….
    fn counting(options: &AttentionOptions, lens: [usize; 2], offset: i32) -> Result<Vec<f64>> {
        let sequences = Sequences::cross(1, lens[0], &[lens[1]], lens[1])?.with_offset(offset);
        let att = Attention {
            shape: sequences.shape(),
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        let k: Vec<f64> = (1..=lens[1]).map(|j| j as f64).collect();
        attention_scores(&att, &vec![1.0; lens[0]], &k)
    }

    #[test]
    fn causal_with_a_window() -> Result<()> {
        let mut options = AttentionOptions::causal();
        assert_eq!(counting(&options, [3, 3], 0)?, [1.0, HIDDEN, HIDDEN, 1.0, 2.0, HIDDEN, 1.0, 2.0, 3.0]);
        options.window_left = Some(1);
        assert_eq!(counting(&options, [3, 3], 0)?, [1.0, HIDDEN, HIDDEN, 1.0, 2.0, HIDDEN, HIDDEN, 2.0, 3.0]);
        let around = AttentionOptions { window_left: Some(0), window_right: Some(1), ..Default::default() };
        assert_eq!(counting(&around, [3, 3], 0)?, [1.0, 2.0, HIDDEN, HIDDEN, 2.0, 3.0, HIDDEN, HIDDEN, 3.0]);
        Ok(())
    }

    #[test]
    fn offsets_move_the_diagonal() -> Result<()> {
        let causal = AttentionOptions::causal();
        // the past is two keys long
        assert_eq!(counting(&causal, [2, 4], 2)?, [1.0, 2.0, 3.0, HIDDEN, 1.0, 2.0, 3.0, 4.0]);
        // query 0 stands before all keys
        assert_eq!(counting(&causal, [3, 2], -1)?, [HIDDEN, HIDDEN, 1.0, HIDDEN, 1.0, 2.0]);
        let narrow = AttentionOptions { window_left: Some(0), window_right: Some(0), ..Default::default() };
        assert_eq!(counting(&narrow, [3, 2], -1)?, [HIDDEN, HIDDEN, 1.0, HIDDEN, HIDDEN, 2.0]);
        Ok(())
    }

    #[test]
    fn cap_then_slope() -> Result<()> {
        let options = AttentionOptions { scale: Some(2.0), softcap: Some(3.0), alibi: vec![0.5], ..Default::default() };
        let capped = |x: f64| 3.0 * (x / 3.0).tanh();
        let expected = [capped(2.0) - 0.5, capped(4.0), capped(6.0) - 0.5]; // p = 1
        assert_eq!(counting(&options, [1, 3], 1)?, expected);
        // the default scale is 1/√head_size
        assert_eq!(counting(&AttentionOptions::default(), [1, 1], 0)?, [1.0]);
        Ok(())
    }

    /// One head's biases of distances −1, 0 and 1, which those further away share; the query stands at position 2.
    #[test]
    fn biases_by_distance() -> Result<()> {
        let options = AttentionOptions { mask: Some(Mask::Relative { reach: 1 }), ..Default::default() };
        let sequences = Sequences::cross(1, 1, &[5], 5)?.with_offset(2);
        let mut att = Attention {
            shape: sequences.shape(),
            n_heads: 2,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: Some(MaskValues::Relative { reach: 1, values: &[0.5, 0.25, HIDDEN, 3.0, 2.0, 1.0] }),
        };
        let found = attention_scores(&att, &[0.0; 2], &[0.0; 5])?;
        assert_eq!(found, [0.5, 0.5, 0.25, HIDDEN, HIDDEN, 3.0, 3.0, 2.0, 1.0, 1.0]);
        att.mask = Some(MaskValues::Relative { reach: 1, values: &[0.5, 0.25, 0.0] });
        assert_eq!(attention_scores(&att, &[0.0; 2], &[0.0; 5])?, [0.5, 0.5, 0.25, 0.0, 0.0].repeat(2));
        for mask in [
            None,
            Some(MaskValues::Relative { reach: 2, values: &[0.0; 5] }),
            Some(MaskValues::Relative { reach: 1, values: &[0.0; 5] }),
            Some(MaskValues::Additive { sizes: [1, 1, 1, 5], values: &[0.0; 5] }),
        ] {
            att.mask = mask;
            assert!(attention_scores(&att, &[0.0; 2], &[0.0; 5]).is_err(), "{mask:?}");
        }
        Ok(())
    }

    /// Two sequences of different lengths, masks of both kinds.
    #[test]
    fn lengths_and_masks() -> Result<()> {
        let sequences = Sequences::packed(&[1, 2])?;
        let q = [1.0f64, 10.0, 100.0];
        let k = [1.0f64, 2.0, f64::NAN];
        let options = AttentionOptions { key_mask: true, mask: Some(Mask::Boolean), ..Default::default() };
        let plain = AttentionOptions { mask: None, ..options.clone() };
        let mut att = Attention {
            shape: sequences.shape(),
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: Some(&[1, 1, 1, 0]),
            mask: Some(MaskValues::Boolean { sizes: [1, 1, 2, 1], values: &[1, 0] }),
        };
        let (h, seen) = (HIDDEN, attention_scores(&att, &q, &k)?);
        assert_eq!(seen, [1.0, h, h, h, 20.0, h, h, h]);

        let additive = AttentionOptions { mask: Some(Mask::Additive), ..options.clone() };
        att.options = &additive;
        let values = [h, 0.0, 0.5, 0.0];
        att.mask = Some(MaskValues::Additive { sizes: [2, 1, 1, 2], values: &values });
        assert_eq!(attention_scores(&att, &q, &k)?, [h, h, h, h, 20.5, h, 200.5, h]);

        att.mask = None;
        assert!(attention_scores(&att, &q, &k).is_err());
        att.options = &plain;
        assert!(attention_scores(&att, &q, &k).is_ok());
        att.key_mask = Some(&[1, 1, 1]);
        assert!(attention_scores(&att, &q, &k).is_err());
        Ok(())
    }

    #[test]
    fn a_key_head_serves_a_group_of_query_heads() -> Result<()> {
        let (sequences, options) = (Sequences::padded(&[1], 1)?, AttentionOptions::default());
        let att = Attention {
            shape: BatchShape::padded(1, 1),
            n_heads: 4,
            n_kv_heads: 2,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        assert_eq!(attention_scores(&att, &[1.0f32; 4], &[3.0, 5.0])?, [3.0, 3.0, 5.0, 5.0]);
        assert!(attention_scores(&Attention { n_kv_heads: 3, ..att }, &[1.0f32; 4], &[3.0; 3]).is_err());
        Ok(())
    }
}
