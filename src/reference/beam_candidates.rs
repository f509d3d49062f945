//! The most probable tokens of a row.

use super::choose::{finite, is_marked, limited, possible};
use super::{Real, expect_len};
use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::spec::beams::MAX_CANDIDATES;
use crate::spec::sampling::seen_words;

/// The `count` most probable tokens by logits (V) and an optional bias (V), without those that have a bit in `banned`, each with its
/// log-probability: log softmax(logits) + bias, or with `renormalized` the log softmax of logits + bias over the tokens that are
/// left. Of equal tokens the lowest comes first; where there are fewer, the last ones are `u32::MAX` at −∞.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for no logits, and for more candidates than the GPU gives.
pub fn beam_candidates<T: Real>(
    logits: &[T],
    bias: Option<&[T]>,
    banned: Option<&[u32]>,
    renormalized: bool,
    count: usize,
) -> Result<Vec<(u32, T)>> {
    nonzero("V", logits.len())?;
    if count > MAX_CANDIDATES {
        return Err(Error::option("candidates", format!("at most {MAX_CANDIDATES}"), count));
    }
    if let Some(bias) = bias {
        expect_len("bias", &[logits.len()], bias.len())?;
    }
    if let Some(banned) = banned {
        expect_len("banned", &[seen_words(logits.len())], banned.len())?;
    }
    let own: Vec<Option<T>> = logits.iter().map(|x| possible(*x)).collect();
    let edit = |(token, own): (usize, &Option<T>)| {
        let x = own.filter(|_| !banned.is_some_and(|banned| is_marked(banned, token)))?;
        match bias {
            Some(bias) => Some(limited(x) + limited(possible(bias[token])?)),
            None => Some(x),
        }
    };
    let edited: Vec<Option<T>> = own.iter().enumerate().map(edit).collect();
    let summed = || if renormalized { &edited } else { &own }.iter().flatten().map(|x| finite(*x));
    let most = summed().fold(T::neg_infinity(), T::max);
    let log_sum = summed().fold(T::zero(), |sum, x| sum + (x - most).exp()).ln();
    let mut order: Vec<(u32, T)> = (0..).zip(&edited).filter_map(|(token, x)| Some((token, (*x)?))).collect();
    // Stable: of equal tokens, −0 and 0 among them, the lowest stays first.
    let key = |x: T| x.widen() + 0.0;
    order.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)));
    let mut candidates: Vec<_> = order.into_iter().take(count).map(|(t, x)| (t, finite(x) - most - log_sum)).collect();
    candidates.resize(count, (u32::MAX, T::neg_infinity()));
    Ok(candidates)
}
