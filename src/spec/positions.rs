//! Position tables: sinusoidal ones that are added, rotary ones that turn. Both are made here, in f64, and bound like learned ones.

use crate::error::{Error, Result};
use crate::shape::Layout;
use crate::spec::{AttentionOptions, Mask};

/// The two published orders of the sinusoidal positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SinusoidOrder {
    /// sin and cos take turns: P(pos, 2i) = sin, P(pos, 2i + 1) = cos (Vaswani et al., arXiv 1706.03762).
    Interleaved,
    /// All sines, then all cosines, as Marian and tensor2tensor publish them.
    Halves,
}

/// The sinusoidal position table, `f32` (positions, d_model): sin and cos of pos / 10000^(2i/d_model), computed in f64.
/// An odd `d_model` has one sine more than cosines.
///
/// WGSL's `sin` is only good to 2⁻¹¹, so the table is made here and bound like a learned one.
///
/// # Errors
/// [`Error::Option`] for a size of 0 or [`crate::shape::MAX_ELEMENTS`] and more elements.
pub fn sinusoidal_positions(positions: usize, d_model: usize, order: SinusoidOrder) -> Result<Vec<f32>> {
    let layout = Layout::contiguous(&[positions, d_model])?;
    let sines = d_model.div_ceil(2);
    let angle = |position: usize, pair: usize| position as f64 / 10000f64.powf((2 * pair) as f64 / d_model as f64);
    let mut table = Vec::with_capacity(layout.len());
    for position in 0..positions {
        table.extend((0..d_model).map(|c| {
            let (pair, is_sine) = match order {
                SinusoidOrder::Interleaved => (c / 2, c % 2 == 0),
                SinusoidOrder::Halves => (c % sines, c < sines),
            };
            let angle = angle(position, pair);
            (if is_sine { angle.sin() } else { angle.cos() }) as f32
        }));
    }
    Ok(table)
}

/// Which of `buckets` learned relative position biases each distance from −reach to reach has, as T5 shares them (Raffel et al., arXiv
/// 1910.10683): 2 · reach + 1 numbers, the columns of a [`Mask::Relative`](crate::Mask::Relative).
///
/// A distance is how far a key stands behind its query. In a `causal` attention all buckets are for keys in front of it and itself, else half
/// of them are; of these, half are for one distance each, the others for ranges that grow to `furthest`, from where on the last one serves.
///
/// ```
/// // Four buckets for keys in front and the query itself, four for keys behind it; of distances −3 to 3 the outer two share one.
/// let buckets = tileformer::spec::relative_position_buckets(3, 8, 20, false)?;
/// assert_eq!(buckets, [2, 2, 1, 0, 5, 6, 6]);
/// # Ok::<(), tileformer::Error>(())
/// ```
///
/// # Errors
/// [`Error::Option`] for buckets that do not divide so, a `furthest` within the distances that have a bucket each, a reach past 2²⁴.
pub fn relative_position_buckets(reach: u32, buckets: usize, furthest: usize, causal: bool) -> Result<Vec<u32>> {
    let sides = if causal { 1 } else { 2 };
    if buckets == 0 || !buckets.is_multiple_of(2 * sides) || buckets > 1 << 24 {
        let expected = format!("a multiple of {} up to 2^24", 2 * sides);
        return Err(Error::option("buckets of relative positions", expected, buckets));
    }
    let side = (buckets / sides) as u32;
    let exact = side / 2;
    if furthest <= exact as usize {
        return Err(Error::option("furthest of relative positions", format!("more than {exact}"), furthest));
    }
    AttentionOptions { mask: Some(Mask::Relative { reach }), ..AttentionOptions::default() }.check(1)?;
    let bucket = |distance: i64| {
        let behind = distance > 0;
        let away = if causal && behind { 0 } else { distance.unsigned_abs() as u32 };
        let within = if away < exact {
            away
        } else {
            // In f32, as models were trained: where a logarithm is a whole number, its rounding decides.
            let share = (away as f32 / exact as f32).ln() / (furthest as f64 / f64::from(exact)).ln() as f32;
            (exact + (share * (side - exact) as f32) as u32).min(side - 1)
        };
        within + if behind && !causal { side } else { 0 }
    };
    Ok((-i64::from(reach)..=i64::from(reach)).map(bucket).collect())
}

/// Which columns of a head rotary positions turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RotaryOrder {
    /// Columns 2 i and 2 i + 1, as published (Su et al., arXiv 2104.09864).
    Interleaved,
    /// Columns i and i + turned / 2, as in GPT-NeoX and the Llama checkpoints.
    #[default]
    Halves,
}

/// How the frequencies of rotary positions are stretched for texts longer than those of the training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// base^(−2i / turned), as published.
    #[default]
    None,
    /// All divided by the factor (Chen et al., arXiv 2306.15595).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by the factor, high ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the training.
        original: f64,
    },
}

impl RotaryScaling {
    fn scale(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let wave = 2.0 * std::f64::consts::PI / frequency;
                if wave < original / high_freq_factor {
                    frequency
                } else if wave > original / low_freq_factor {
                    frequency / factor
                } else {
                    let kept = (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            }
        }
    }
}

/// The rotary table, `f32` (positions, turned): cosines, then sines, of position · base^(−2i / turned), computed in f64.
///
/// # Errors
/// [`Error::Option`] for a size of 0 or [`crate::shape::MAX_ELEMENTS`] and more elements, an odd `turned`, or a base or factor that is
/// not finite and positive.
#[doc(alias = "rope")]
pub fn rotary_table(positions: usize, turned: usize, base: f64, scaling: RotaryScaling) -> Result<Vec<f32>> {
    let layout = Layout::contiguous(&[positions, turned])?;
    if !turned.is_multiple_of(2) {
        return Err(Error::option("turned columns", "an even number", turned));
    }
    let numbers = match scaling {
        RotaryScaling::None => vec![base],
        RotaryScaling::Linear { factor } => vec![base, factor],
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            vec![base, factor, low_freq_factor, high_freq_factor, original]
        }
    };
    if let Some(wrong) = numbers.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
        return Err(Error::option("base and factors of rotary positions", "finite positive numbers", wrong));
    }
    let pairs = turned / 2;
    let frequencies: Vec<f64> = (0..pairs).map(|i| scaling.scale(base.powf(-((2 * i) as f64) / turned as f64))).collect();
    let mut table = Vec::with_capacity(layout.len());
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| position as f64 * f);
        table.extend(angles.clone().map(|a| a.cos() as f32));
        table.extend(angles.map(|a| a.sin() as f32));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each bucket in the order of distances, with the first distance that has it.
    fn begins(reach: u32, buckets: usize, furthest: usize, causal: bool) -> Result<Vec<(i64, u32)>> {
        let all = relative_position_buckets(reach, buckets, furthest, causal)?;
        let mut begins: Vec<_> = (-i64::from(reach)..).zip(all).collect();
        begins.dedup_by_key(|&mut (_, bucket)| bucket);
        Ok(begins)
    }

    /// As the Transformers library has them, where a logarithm's rounding decides (64 and 91 of 128) too.
    #[test]
    fn distances_share_buckets() -> Result<()> {
        let exact =
            |range: std::ops::RangeInclusive<i64>, first: i64| range.map(move |d| (d, (d - first).unsigned_abs() as u32));
        let far = [(-200, 15), (-90, 14), (-63, 13), (-45, 12), (-31, 11), (-22, 10), (-15, 9), (-11, 8)];
        let behind = [(8, 24), (12, 25), (16, 26), (23, 27), (32, 28), (46, 29), (64, 30), (91, 31)];
        let near = exact(-7..=0, 0).chain(exact(1..=7, -16));
        let expected: Vec<_> = far.into_iter().chain(near).chain(behind).collect();
        assert_eq!(begins(200, 32, 128, false)?, expected);
        let far = [(-130, 31), (-112, 30), (-98, 29), (-86, 28), (-76, 27), (-66, 26), (-58, 25), (-51, 24), (-45, 23)];
        let middle = [(-39, 22), (-34, 21), (-30, 20), (-26, 19), (-23, 18), (-20, 17), (-18, 16)];
        let expected: Vec<_> = far.into_iter().chain(middle).chain(exact(-15..=0, 0)).collect();
        assert_eq!(begins(130, 32, 128, true)?, expected);
        assert_eq!(begins(700, 8, 20, false)?, [(-700, 3), (-6, 2), (-1, 1), (0, 0), (1, 5), (2, 6), (7, 7)]);
        assert_eq!(relative_position_buckets(0, 4, 2, false)?, [0]);
        Ok(())
    }

    #[test]
    fn buckets_that_do_not_divide_are_refused() {
        for (buckets, furthest, causal) in
            [(0, 9, true), (3, 9, true), (6, 9, false), (8, 2, false), (8, 4, true), (usize::MAX - 3, usize::MAX, false)]
        {
            assert!(relative_position_buckets(3, buckets, furthest, causal).is_err(), "{buckets} up to {furthest}");
        }
        assert!(relative_position_buckets(1 << 25, 8, 9, true).is_err());
    }
}
