//! Position tables: sinusoidal ones that are added, rotary ones that turn. Both are made here, in f64, and bound like learned ones.

use crate::error::{Error, Result};
use crate::shape::Layout;

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
