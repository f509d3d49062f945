//! BART (Lewis et al., arXiv 1910.13461): post-norm as in 2017, learned positions of which the first two rows are unused, a norm behind
//! the embeddings.

use super::Config;
use super::seq2seq::{Family, Seq2Seq};
use crate::error::Result;

/// Rows of the position table in front of position 0.
const FIRST_POSITION: usize = 2;

/// The model that a `config.json` describes.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) for another model type than `bart`, sinusoidal positions, pre-norm layers,
/// embeddings without a norm, norms behind the stacks, an activation that the crate does not have, sizes that are missing or do not
/// divide; each by its key.
pub fn from_config(config: &Config) -> Result<Seq2Seq> {
    config.expect("model_type", &["bart"])?;
    if config.optional_size("extra_pos_embeddings")?.is_some_and(|extra| extra != FIRST_POSITION) {
        return Err(config.refusal("extra_pos_embeddings", FIRST_POSITION));
    }
    let flags = [
        ("static_position_embeddings", false),
        ("normalize_before", false),
        ("normalize_embedding", true),
        ("add_final_layer_norm", false),
    ];
    let family = Family { flags: &flags, positions: None, first_position: FIRST_POSITION, embedding_norm: true };
    family.model(config)
}
