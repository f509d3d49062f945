//! The CPU twins of the kernels and layers: plain loops that a reader can check against the formula.
//!
//! One module a kernel, with the kernel's name, and [`layers`] above them, with the names of [`crate::spec::layers`]. All is
//! generic over [`Real`]: the `f64` twin says what is right, the `f32` twin, which sums one term after another in plain
//! `f32`, says how far off a right kernel may be.
//!
//! Slices are contiguous and row major, shapes stand behind the names: `x (rows, d_in)`. B sequences, T query positions,
//! S key positions, NH heads.

pub mod activation;
pub mod additive_scores;
pub mod argmax;
pub mod attention;
pub mod attention_scores;
pub mod attention_values;
pub mod beam_candidates;
pub mod cache;
pub mod choose;
pub mod embedding;
pub mod gate;
pub mod layer_norm;
pub mod layers;
pub mod linear;
pub mod linear_few;
pub mod masked_softmax;
pub mod pool;
pub mod real;
pub mod rotary;

pub use activation::{activation, activation_rows};
pub use additive_scores::additive_scores;
pub use argmax::argmax;
pub use attention::{Attention, MaskValues, attention, visible};
pub use attention_scores::attention_scores;
pub use attention_values::attention_values;
pub use beam_candidates::beam_candidates;
pub use cache::{cache_append, cache_gather};
pub use choose::{Choice, advance, choose, philox};
pub use embedding::{EmbeddingInputs, add_positions, embedding};
pub use gate::gate;
pub use layer_norm::{LayerNorm, LayerNormOutput, layer_norm, rms_norm};
pub use linear::{Linear, linear};
pub use linear_few::{FusedNorm, linear_few, maxima};
pub use masked_softmax::{log_sum_exp, masked_softmax, masked_softmax_options};
pub use pool::pool;
pub use real::Real;
pub use rotary::rotary;

use crate::error::{Error, Result};
use crate::shape::MAX_ELEMENTS;

/// Refuses a slice that does not hold exactly `sizes`, naming it.
fn expect_len(tensor: &str, sizes: &[usize], found: usize) -> Result<()> {
    let expected = sizes.iter().fold(1usize, |n, &size| n.saturating_mul(size));
    if found == expected {
        Ok(())
    } else {
        Err(Error::shape(tensor, format!("{expected} elements {sizes:?}"), format!("{found} elements")))
    }
}

/// How many elements a result of `sizes` has; refuses more than a tensor can have.
fn count(tensor: &str, sizes: &[usize]) -> Result<usize> {
    let count = sizes.iter().fold(1usize, |n, &size| n.saturating_mul(size));
    if count as u64 <= MAX_ELEMENTS {
        Ok(count)
    } else {
        Err(Error::option(tensor, format!("at most {MAX_ELEMENTS} elements"), format!("{sizes:?}")))
    }
}
