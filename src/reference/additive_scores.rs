//! Additive scores: Σ_d v\[h, d\] · tanh(q\[i, d\] + k\[j, d\]) in the place of q·k (Bahdanau et al., arXiv 1409.0473).

use super::{Attention, Real, expect_len};
use crate::error::{Error, Result};

/// scores (B, NH, T, S) as [`super::attention_scores()`] gives them, with vᵀ tanh(q + k) in the place of q·k.
///
/// q (q_rows, n_heads, head_size) and k (k_rows, n_heads, head_size) are already projected; `vector` is (n_heads, head_size). The default
/// scale is 1.
///
/// # Errors
/// As [`Attention::check`]; [`Error::Shape`] for a slice of another length; [`Error::Option`] for grouped key heads.
pub fn additive_scores<T: Real>(att: &Attention<'_, T>, q: &[T], k: &[T], vector: &[T]) -> Result<Vec<T>> {
    att.check()?;
    let (n_heads, d) = (att.n_heads, att.head_size);
    if att.n_kv_heads != n_heads {
        return Err(Error::option("n_kv_heads", format!("n_heads, {n_heads}, with an additive score"), att.n_kv_heads));
    }
    expect_len("q", &[att.shape.q_rows, n_heads, d], q.len())?;
    expect_len("k", &[att.shape.k_rows, n_heads, d], k.len())?;
    expect_len("vector", &[n_heads, d], vector.len())?;
    Ok(att.scores(att.options.scale.unwrap_or(1.0), |h, q_row, k_row| {
        let q = &q[(q_row * n_heads + h) * d..][..d];
        let k = &k[(k_row * n_heads + h) * d..][..d];
        let vector = &vector[h * d..][..d];
        let mut sum = T::zero();
        for c in 0..d {
            sum += vector[c] * (q[c] + k[c]).tanh();
        }
        sum
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{AttentionOptions, Sequences};

    #[test]
    fn by_hand() -> Result<()> {
        let (sequences, options) = (Sequences::padded(&[2], 2)?, AttentionOptions::causal());
        let att = Attention {
            shape: sequences.shape(),
            n_heads: 2,
            n_kv_heads: 2,
            head_size: 1,
            value_head_size: 1,
            options: &options,
            sequences: sequences.as_slice(),
            key_mask: None,
            mask: None,
        };
        // q, k (2 rows, 2 heads)
        let (q, k, vector) = ([0.1f64, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0], [2.0, -1.0]);
        let t = |x: f64| x.tanh();
        let h = f64::NEG_INFINITY;
        let head0 = [2.0 * t(0.1 + 1.0), h, 2.0 * t(0.3 + 1.0), 2.0 * t(0.3 + 3.0)];
        let head1 = [-t(0.2 + 2.0), h, -t(0.4 + 2.0), -t(0.4 + 4.0)];
        assert_eq!(additive_scores(&att, &q, &k, &vector)?, [head0, head1].concat());
        assert!(additive_scores(&Attention { n_kv_heads: 1, ..att }, &q, &k[..2], &vector).is_err());
        Ok(())
    }
}
