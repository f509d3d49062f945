//! The embedding layer: tables and norm.

use super::{Weights, norm};
use crate::error::Result;
use crate::reference::{EmbeddingInputs, Real, embedding};
use crate::spec::Sequence;
use crate::spec::layers::Embedding;

/// y (rows, d_model) of ids (rows): `token_embedding.weight`, `position_embedding.weight` and `segment_embedding.weight` as
/// [`embedding()`] adds them, then `norm.` where the embedding has one.
///
/// # Errors
/// As [`embedding()`]; [`crate::Error::Missing`] or [`crate::Error::Shape`] for a weight.
pub fn embeddings<T: Real>(
    spec: &Embedding,
    weights: &Weights<'_, T>,
    prefix: &str,
    ids: &[u32],
    segment_ids: Option<&[u32]>,
    sequences: Option<&[Sequence]>,
) -> Result<Vec<T>> {
    let d = spec.d_model;
    let table = |name: &str, rows: usize| weights.get(&format!("{prefix}{name}_embedding.weight"), &[rows, d]);
    let inputs = EmbeddingInputs {
        token_table: table("token", spec.vocabulary)?,
        position_table: spec.positions.map(|rows| table("position", rows)).transpose()?,
        segment_table: spec.segments.map(|rows| table("segment", rows)).transpose()?,
        ids,
        segment_ids,
        sequences,
    };
    let y = embedding(spec, &inputs)?;
    match &spec.norm {
        Some(spec) => norm(spec, weights, &format!("{prefix}norm."), &y, ids.len(), d),
        None => Ok(y),
    }
}
