//! y = activation(gate) · up (Shazeer, arXiv 2002.05202).

use super::{Real, activation, expect_len};
use crate::error::Result;
use crate::spec::Activation;

/// `y[i] = activation(gate[i]) · up[i]`.
///
/// # Errors
/// [`crate::Error::Shape`] for slices of different lengths.
pub fn gate<T: Real>(gate: &[T], up: &[T], kind: Activation) -> Result<Vec<T>> {
    expect_len("up", &[gate.len()], up.len())?;
    Ok(gate.iter().zip(up).map(|(&g, &u)| activation(g, kind) * u).collect())
}
