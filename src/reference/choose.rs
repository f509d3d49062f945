//! The next token of a row, and the row's state behind it.

use super::{Real, expect_len};
use crate::error::Result;
use crate::shape::nonzero;
use crate::spec::cache::{DecodeState, STATE_WORDS};
use crate::spec::sampling::{Sampling, seen_words};

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words by a counter
/// and a key.
#[must_use]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut first, mut second]) = (counter, key);
    for _ in 0..10 {
        let [x, y] = [0xd251_1f53_u64 * u64::from(a), 0xcd9e_8d57_u64 * u64::from(c)];
        [a, b, c, d] = [(y >> 32) as u32 ^ b ^ first, y as u32, (x >> 32) as u32 ^ d ^ second, x as u32];
        (first, second) = (first.wrapping_add(0x9e37_79b9), second.wrapping_add(0xbb67_ae85));
    }
    [a, b, c, d]
}

/// The share of the probabilities at which a row with this seed and position draws: 0 to 1, a multiple of 2⁻²⁴.
#[must_use]
pub fn share(seed: u64, position: u32) -> f64 {
    let [word, ..] = philox([position, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    f64::from(word >> 8) / f64::from(1 << 24)
}

/// A chosen token, and what it was chosen from.
#[derive(Clone, Debug)]
pub struct Choice<T> {
    /// `None` where every token is banned.
    pub token: Option<u32>,
    /// log softmax of the model's own logits at the token; 0 without one.
    pub log_prob: T,
    /// (V): of the tokens that are kept, adding up to 1; a greedy row's own token has 1.
    pub probabilities: Vec<T>,
    /// How far the sets of kept tokens are from others: the smallest difference, in a probability or relative to a logit, that would
    /// change one. Infinite where nothing is close.
    pub margin: f64,
    /// (V): logits with bias and penalty, `None` for what cannot be chosen.
    logits: Vec<Option<T>>,
    edited: bool,
    share: Option<f64>,
}

impl<T: Real> Choice<T> {
    /// Whether `token` is right for arithmetic that is off by `tolerance`: it is this one, or a threshold that decides between the
    /// two is as close as that.
    #[must_use]
    pub fn allows(&self, token: u32, tolerance: f64) -> bool {
        let (at, own) = (token as usize, self.token.map(|t| t as usize));
        if Some(at) == own {
            return true;
        }
        let (Some(own), Some(Some(logit))) = (own, self.logits.get(at).copied()) else { return false };
        match self.share {
            None => {
                let most = self.logits[own].map_or(0.0, Real::widen);
                self.edited && logit.widen() >= most - tolerance * most.abs().max(1.0)
            }
            Some(_) if self.margin < tolerance => true,
            Some(share) => {
                let before: f64 = self.probabilities[..at].iter().map(|p| p.widen()).sum();
                let own = self.probabilities[at].widen();
                own > 0.0 && before - tolerance <= share && share <= before + own + tolerance
            }
        }
    }
}

/// Chooses from logits (V) and an optional bias (V), where `seen` has a bit for each token that the text has; `position` is that of
/// the row that the logits are of.
///
/// # Errors
/// [`crate::Error::Shape`] for a slice of another length, [`crate::Error::Option`] for no logits.
pub fn choose<T: Real>(
    logits: &[T],
    bias: Option<&[T]>,
    seen: Option<&[u32]>,
    options: &Sampling,
    position: u32,
) -> Result<Choice<T>> {
    nonzero("V", logits.len())?;
    if let Some(bias) = bias {
        expect_len("bias", &[logits.len()], bias.len())?;
    }
    if let Some(seen) = seen {
        expect_len("seen", &[seen_words(logits.len())], seen.len())?;
    }
    let penalty = T::of(options.repetition_penalty());
    let penalised = |token: usize| seen.is_some_and(|seen| is_marked(seen, token));
    let edited = bias.is_some() || (seen.is_some() && options.repetition_penalty() != 1.0);
    let own: Vec<Option<T>> = logits.iter().map(|x| possible(*x).map(finite)).collect();
    let edit = |(token, own): (usize, &Option<T>)| {
        let mut x = limited((*own)?);
        if let Some(bias) = bias {
            x += limited(possible(bias[token])?);
        }
        if penalised(token) {
            x = if x > T::zero() { x / penalty } else { x * penalty };
        }
        Some(x)
    };
    // NaN-free, the model's own order holds to the last bit, infinities and all.
    let edited_logits: Vec<Option<T>> = if edited { own.iter().enumerate().map(edit).collect() } else { own.clone() };
    let order: Vec<Option<T>> = if edited { edited_logits.clone() } else { logits.iter().map(|x| possible(*x)).collect() };
    let mut choice = Choice {
        token: largest(&order),
        log_prob: T::zero(),
        probabilities: vec![T::zero(); logits.len()],
        margin: f64::INFINITY,
        logits: edited_logits,
        edited,
        share: None,
    };
    let Some(best) = choice.token else { return Ok(choice) };
    if options.temperature() == 0.0 {
        choice.probabilities[best as usize] = T::one();
    } else {
        let most = choice.logits[best as usize].unwrap_or_default();
        keep(&mut choice, most, options);
        let share = share(options.seed(), position);
        choice.share = Some(share);
        choice.token = Some(drawn(&choice.probabilities, T::of(share)));
    }
    let token = choice.token.unwrap_or_default() as usize;
    let most = largest(&own).and_then(|t| own[t as usize]).unwrap_or_default();
    let sum: T = own.iter().flatten().fold(T::zero(), |sum, &x| sum + (x - most).exp());
    choice.log_prob = own[token].unwrap_or_default() - most - sum.ln();
    Ok(choice)
}

/// A logit or bias of what can be chosen.
pub(super) fn possible<T: Real>(x: T) -> Option<T> {
    Some(x).filter(|x| !x.is_nan() && *x != T::neg_infinity())
}

/// A logit without an infinity.
pub(super) fn finite<T: Real>(x: T) -> T {
    within(x, 127f64.exp2())
}

/// A logit or bias that others may be added to.
pub(super) fn limited<T: Real>(x: T) -> T {
    within(x, 8e34)
}

fn within<T: Real>(x: T, most: f64) -> T {
    x.max(-T::of(most)).min(T::of(most))
}

/// Whether a row of bits, one a token, has this token's.
pub(super) fn is_marked(bits: &[u32], token: usize) -> bool {
    bits[token / 32] >> (token % 32) & 1 == 1
}

/// The column of the largest, the lowest of several.
fn largest<T: Real>(values: &[Option<T>]) -> Option<u32> {
    let mut best: Option<(usize, T)> = None;
    for (column, value) in values.iter().enumerate() {
        if let Some(value) = value.filter(|v| best.is_none_or(|(_, most)| *v > most)) {
            best = Some((column, value));
        }
    }
    best.map(|(column, _)| column as u32)
}

/// The probabilities of what top-k and top-p keep.
fn keep<T: Real>(choice: &mut Choice<T>, most: T, options: &Sampling) {
    let temperature = T::of(options.temperature());
    // Depths below the largest; those of 104 and more have a weight of 0.
    let depth = |x: &Option<T>| x.map(|x| (most - x) / temperature).filter(|d| *d < T::of(104.0));
    let depths: Vec<Option<T>> = choice.logits.iter().map(depth).collect();
    let mut sorted: Vec<T> = depths.iter().flatten().copied().collect();
    sorted.sort_by(|a, b| a.widen().total_cmp(&b.widen()));
    let mut margin = f64::INFINITY;
    let scale = (most.widen() / temperature.widen()).abs().max(1.0);
    // What equals the last kept one is kept too; the next one's distance is a margin.
    let mut cut = |sorted: &mut Vec<T>, count: usize| {
        let last = sorted[count - 1];
        let end = sorted.partition_point(|d| *d <= last);
        if let Some(next) = sorted.get(end) {
            margin = margin.min((next.widen() - last.widen()) / scale.max(last.widen()));
        }
        sorted.truncate(end);
        end
    };
    let top_k = options.top_k() as usize;
    if top_k != 0 && top_k < sorted.len() {
        cut(&mut sorted, top_k);
    }
    let mut close = f64::INFINITY;
    if options.top_p() < 1.0 {
        let p = f64::from(options.top_p());
        let total: T = sorted.iter().fold(T::zero(), |sum, d| sum + (-*d).exp());
        let share = |sorted: &[T]| (sorted.iter().fold(T::zero(), |sum, d| sum + (-*d).exp()) / total).widen();
        let (mut walked, mut count) = (T::zero(), 0);
        while count < sorted.len() && (count == 0 || (walked / total).widen() < p) {
            walked += (-sorted[count]).exp();
            count += 1;
        }
        let all = sorted.len();
        let first_of_last = sorted.partition_point(|d| *d < sorted[count - 1]);
        if first_of_last > 0 {
            close = p - share(&sorted[..first_of_last]);
        }
        if cut(&mut sorted, count) < all {
            close = close.min(share(&sorted) - p);
        }
    }
    choice.margin = margin.min(close.abs());
    let deepest = sorted[sorted.len() - 1];
    let total: T = sorted.iter().fold(T::zero(), |sum, d| sum + (-*d).exp());
    for (p, depth) in choice.probabilities.iter_mut().zip(depths) {
        *p = depth.filter(|d| *d <= deepest).map_or(T::zero(), |d| (-d).exp() / total);
    }
}

/// The first column at which the sum of probabilities exceeds `share`, else the last that has one.
fn drawn<T: Real>(probabilities: &[T], share: T) -> u32 {
    let (mut walked, mut token) = (T::zero(), 0);
    for (column, &p) in probabilities.iter().enumerate().filter(|(_, p)| **p > T::zero()) {
        token = column as u32;
        walked += p;
        if walked > share {
            break;
        }
    }
    token
}

/// Moves row `b` of a decode state on by the token that was chosen, or ends it.
///
/// The state is its words, 2 B or, with `cross`, 3 B rows of 8; a row that rests has its step counted alone. Gives what is handed out:
/// the token, or `padding`.
///
/// # Errors
/// [`crate::Error::Shape`] for words that are no state of a batch that has the row.
pub fn advance(
    state: &mut [u32],
    cross: bool,
    b: usize,
    token: Option<u32>,
    options: &Sampling,
    capacity: u32,
    padding: u32,
) -> Result<u32> {
    let parts = DecodeState::rows(1, cross);
    let batch = state.len() / STATE_WORDS / parts;
    expect_len("state", &[parts, batch.max(b.saturating_add(1)), STATE_WORDS], state.len())?;
    let [sequence, own] = [b, b + (parts - 1) * batch].map(|row| row * STATE_WORDS);
    state[own + 1] = state[own + 1].wrapping_add(1);
    if state[sequence + 1] == 0 {
        return Ok(padding);
    }
    let keys = state[sequence + 3];
    let stopped = token.is_some_and(|t| options.stops().any(|stop| stop == t));
    let full = keys >= capacity;
    let handed_out = token.unwrap_or(padding);
    state[own] = handed_out;
    if token.is_some() && !stopped && !full && keys < options.limit() {
        state[sequence + 3] += 1;
        state[sequence + 4] = state[sequence + 4].wrapping_add(1);
        return Ok(handed_out);
    }
    state[sequence + 1] = 0;
    if cross {
        state[(b + batch) * STATE_WORDS + 1] = 0;
    }
    state[own + 2] |= match token {
        None => 1 | 4,
        Some(_) if full && !stopped => 1 | 2,
        Some(_) => 1,
    };
    Ok(handed_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123.
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let digits_of_pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let words = philox(digits_of_pi, [0xa409_3822, 0x299f_31d0]);
        assert_eq!(words, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125 of logits in a base of 2.
    fn halves() -> [f64; 4] {
        [-1.0, -2.0, -3.0, -3.0].map(|x: f64| x * std::f64::consts::LN_2)
    }

    #[test]
    fn greedy_in_the_order_bias_then_penalty() -> Result<()> {
        let greedy = Sampling::greedy();
        let token = |bias: Option<&[f64]>, seen: Option<&[u32]>, penalty: f32| -> Result<Option<u32>> {
            Ok(choose(&[1.0, 3.0, 3.0, -1.0], bias, seen, &greedy.with_repetition_penalty(penalty)?, 0)?.token)
        };
        assert_eq!(token(None, None, 1.0)?, Some(1));
        assert_eq!(token(Some(&[0.0, f64::NEG_INFINITY, 0.0, 3.0]), None, 1.0)?, Some(2));
        // seen 1 and 2: 3 / 4 is below 1
        assert_eq!(token(None, Some(&[0b110]), 4.0)?, Some(0));
        // the bias comes first: (3 + 6) / 4 against 1
        assert_eq!(token(Some(&[0.0, 6.0, 0.0, 0.0]), Some(&[0b110]), 4.0)?, Some(1));
        // a negative logit is multiplied
        let negative = choose(&[-1.0, -2.0], None, Some(&[1]), &greedy.with_repetition_penalty(3.0)?, 0)?;
        assert_eq!(negative.token, Some(1));
        let nothing = choose(&[f64::NAN, f64::NEG_INFINITY], None, None, &greedy, 0)?;
        assert_eq!((nothing.token, nothing.log_prob), (None, 0.0));
        Ok(())
    }

    #[test]
    fn top_k_keeps_ties_and_top_p_the_fewest() -> Result<()> {
        let kept = |options: Sampling| -> Result<Vec<f64>> {
            Ok(choose(&halves(), None, None, &options, 0)?.probabilities.iter().map(|p| (p * 840.0).round()).collect())
        };
        let all = Sampling::sampled(1);
        assert_eq!(kept(all)?, [420.0, 210.0, 105.0, 105.0]);
        assert_eq!(kept(all.with_top_k(2))?, [560.0, 280.0, 0.0, 0.0]);
        assert_eq!(kept(all.with_top_k(3))?, [420.0, 210.0, 105.0, 105.0]);
        assert_eq!(kept(all.with_top_p(0.6)?)?, [560.0, 280.0, 0.0, 0.0]);
        assert_eq!(kept(all.with_top_p(0.0)?)?, [840.0, 0.0, 0.0, 0.0]);
        // of the two that top-k leaves, the first has 2/3
        assert_eq!(kept(all.with_top_k(2).with_top_p(0.66)?)?, [840.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(all.with_temperature(0.5)?.with_top_k(2))?, [672.0, 168.0, 0.0, 0.0]);
        Ok(())
    }

    #[test]
    fn the_logarithm_is_of_the_models_own_probability() -> Result<()> {
        let chosen = choose(&halves(), Some(&[f64::NEG_INFINITY, 0.0, 0.0, 0.0]), None, &Sampling::greedy(), 0)?;
        assert_eq!(chosen.token, Some(1));
        assert!((chosen.log_prob - 0.25f64.ln()).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn rows_go_on_and_end() -> Result<()> {
        let live = |keys: u32| [0, 1, 0, keys, keys - 1, 0, 0, 0, 9, 5, 0, 0, 0, 0, 0, 0];
        let stops = Sampling::greedy().with_stops(&[3])?.with_limit(7);
        let after = |mut state: [u32; 16], token: Option<u32>| -> Result<[u32; 6]> {
            let out = advance(&mut state, false, 0, token, &stops, 8, 50)?;
            Ok([out, state[1], state[3], state[8], state[9], state[10]])
        };
        assert_eq!(after(live(4), Some(2))?, [2, 1, 5, 2, 6, 0]);
        assert_eq!(after(live(4), Some(3))?, [3, 0, 4, 3, 6, 1]);
        assert_eq!(after(live(7), Some(2))?, [2, 0, 7, 2, 6, 1]);
        assert_eq!(after(live(8), Some(2))?, [2, 0, 8, 2, 6, 3]);
        assert_eq!(after(live(4), None)?, [50, 0, 4, 50, 6, 5]);
        let resting = {
            let mut s = live(4);
            s[1] = 0;
            s
        };
        assert_eq!(after(resting, Some(2))?, [50, 0, 4, 9, 6, 0]);
        assert!(advance(&mut [0; 15], false, 0, None, &stops, 8, 0).is_err());
        Ok(())
    }
}
