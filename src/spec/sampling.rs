//! How a row's next token is chosen: what the GPU reads for each row.

use crate::error::{Error, Result};

/// How many stop tokens a row can have.
pub const MAX_STOPS: usize = 8;

/// A stop token that is none.
const NO_STOP: u32 = u32::MAX;

/// The largest and, inverted, the smallest repetition penalty.
const LARGEST_PENALTY: f32 = 1024.0;

const TEMPERATURES: [f32; 2] = [1e-6, 1e6];

/// How a row's next token is chosen, and what ends the row: a row of 16 words of a `u32` (B, 16) tensor.
///
/// In this order: bias and banned tokens, repetition penalty, temperature, top-k, top-p; then the most probable token, or one drawn
/// from what is left by the row's seed and the position alone.
///
/// ```
/// use tileformer::Sampling;
/// let rows = [Sampling::greedy(), Sampling::sampled(7).with_temperature(0.8)?.with_top_k(40).with_top_p(0.95)?];
/// let words: &[u32] = Sampling::words(&rows); // a (2, 16) tensor
/// assert_eq!(words.len(), 32);
/// # Ok::<(), tileformer::Error>(())
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sampling {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    repetition_penalty: f32,
    seed: [u32; 2],
    limit: u32,
    reserved: u32,
    stops: [u32; MAX_STOPS],
}

/// How many `u32` a [`Sampling`] has in its tensor.
pub const SAMPLING_WORDS: usize = size_of::<Sampling>() / 4;

impl Default for Sampling {
    fn default() -> Self {
        Self::greedy()
    }
}

impl Sampling {
    /// The most probable token, the lowest of several; nothing ends the row but a full cache.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: [0; 2],
            limit: u32::MAX,
            reserved: 0,
            stops: [NO_STOP; MAX_STOPS],
        }
    }

    /// A token by its probability at temperature 1. The same seed draws the same at the same position.
    #[must_use]
    pub fn sampled(seed: u64) -> Self {
        Self { temperature: 1.0, seed: [seed as u32, (seed >> 32) as u32], ..Self::greedy() }
    }

    /// Divides the logits by a temperature of 10⁻⁶ to 10⁶; 0 is greedy.
    ///
    /// # Errors
    /// [`Error::Option`] for another temperature.
    pub fn with_temperature(self, temperature: f32) -> Result<Self> {
        let [low, high] = TEMPERATURES;
        if temperature != 0.0 && !(low..=high).contains(&temperature) {
            return Err(Error::option("temperature", format!("0, or {low:e} to {high:e}"), temperature));
        }
        Ok(Self { temperature: temperature.abs(), ..self })
    }

    /// Draws from the k tokens of the largest logits (Fan et al., arXiv 1805.04833), and from those that equal the last of them; 0
    /// for all.
    #[must_use]
    pub fn with_top_k(self, top_k: u32) -> Self {
        Self { top_k, ..self }
    }

    /// Draws from the fewest tokens that have a probability of p together, the most probable ones of those that top-k leaves
    /// (Holtzman et al., arXiv 1904.09751), and from those that equal the last of them; one token at least, 1 for all.
    ///
    /// # Errors
    /// [`Error::Option`] for a p that is not 0 to 1.
    pub fn with_top_p(self, top_p: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&top_p) {
            return Err(Error::option("top_p", "0 to 1", top_p));
        }
        Ok(Self { top_p: top_p.abs(), ..self })
    }

    /// Divides positive logits of tokens that the text has, and multiplies others, once for each token (Keskar et al.,
    /// arXiv 1909.05858). It counts where the choice has a `seen` tensor; 1 for none.
    ///
    /// # Errors
    /// [`Error::Option`] for a penalty that is not 1/1024 to 1024.
    pub fn with_repetition_penalty(self, penalty: f32) -> Result<Self> {
        if !(LARGEST_PENALTY.recip()..=LARGEST_PENALTY).contains(&penalty) {
            let expected = format!("1/{LARGEST_PENALTY} to {LARGEST_PENALTY}");
            return Err(Error::option("repetition_penalty", expected, penalty));
        }
        Ok(Self { repetition_penalty: penalty, ..self })
    }

    /// Ends the row once its text has this many keys in the cache, the token that is then chosen being its last.
    #[must_use]
    pub fn with_limit(self, keys: u32) -> Self {
        Self { limit: keys, ..self }
    }

    /// Ends the row with any of these tokens.
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_STOPS`], or `u32::MAX`, which is no token.
    pub fn with_stops(self, stops: &[u32]) -> Result<Self> {
        if stops.len() > MAX_STOPS {
            return Err(Error::option("stop tokens", format!("at most {MAX_STOPS}"), stops.len()));
        }
        if stops.contains(&NO_STOP) {
            return Err(Error::option("stop tokens", "below 2^32 - 1", NO_STOP));
        }
        let mut all = [NO_STOP; MAX_STOPS];
        all[..stops.len()].copy_from_slice(stops);
        Ok(Self { stops: all, ..self })
    }

    /// 0 is greedy.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// 0 is all.
    #[must_use]
    pub fn top_k(&self) -> u32 {
        self.top_k
    }

    /// 1 is all.
    #[must_use]
    pub fn top_p(&self) -> f32 {
        self.top_p
    }

    /// 1 is none.
    #[must_use]
    pub fn repetition_penalty(&self) -> f32 {
        self.repetition_penalty
    }

    /// What draws depend on, beside the position.
    #[must_use]
    pub fn seed(&self) -> u64 {
        u64::from(self.seed[0]) | u64::from(self.seed[1]) << 32
    }

    /// The most keys of the text; `u32::MAX` is any number.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The tokens that end the row.
    pub fn stops(&self) -> impl Iterator<Item = u32> + '_ {
        self.stops.iter().copied().filter(|&stop| stop != NO_STOP)
    }

    /// The words of a `u32` (B, 16) tensor.
    #[must_use]
    pub fn words(rows: &[Self]) -> &[u32] {
        bytemuck::cast_slice(rows)
    }
}

/// How many words of 32 bits a row of `seen` has for a vocabulary: a bit a token.
#[must_use]
pub fn seen_words(vocabulary: usize) -> usize {
    vocabulary.div_ceil(32)
}
