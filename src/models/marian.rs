//! Marian's translation models (Junczys-Dowmunt et al., arXiv 1804.00344), as the Transformers library has them: post-norm as in 2017,
//! sinusoidal positions, all sines before all cosines.

use super::Config;
use super::seq2seq::{Family, Seq2Seq};
use crate::error::Result;
use crate::spec::SinusoidOrder;

/// The model that a `config.json` describes.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) for another model type than `marian`, learned positions, pre-norm layers, norms
/// behind the embeddings or the stacks, an activation that the crate does not have, sizes that are missing or do not divide; each by
/// its key.
pub fn from_config(config: &Config) -> Result<Seq2Seq> {
    config.expect("model_type", &["marian"])?;
    let flags = [
        ("static_position_embeddings", true),
        ("normalize_before", false),
        ("normalize_embedding", false),
        ("add_final_layer_norm", false),
    ];
    let family = Family { flags: &flags, positions: Some(SinusoidOrder::Halves), first_position: 0, embedding_norm: false };
    family.model(config)
}
