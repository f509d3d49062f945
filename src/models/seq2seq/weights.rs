//! Which tensors of a checkpoint the weights of a model come from.

use super::{HEAD, SHARED_TOKENS, SOURCE_TOKENS, Seq2Seq, TARGET_TOKENS};
use crate::error::{Error, Result};
use crate::models::{Source, WeightMap, t5};
use crate::spec::sinusoidal_positions;

/// The most numbers of what is computed, a table of positions or of their biases: a configuration alone asks for 256 MiB, and no more.
pub(in crate::models) const MOST_COMPUTED: usize = 1 << 26;

/// How checkpoints call the tensors of their layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum Names {
    /// As BART and Marian.
    Bart,
    /// As T5, whose biases of distances are shared so.
    T5(t5::Buckets),
}

/// `source`, times `factor` where that is another than 1.
fn scaled(source: Source, factor: f32) -> Source {
    if factor == 1.0 { source } else { source.scaled(factor) }
}

impl Seq2Seq {
    /// For each weight of the programs, which tensors of a checkpoint it comes from: those of `MarianMTModel`,
    /// `BartForConditionalGeneration`, `T5ForConditionalGeneration` and `MT5ForConditionalGeneration`.
    ///
    /// # Errors
    /// [`Error::Option`] for a table of sinusoidal positions, or relative position biases of all layers, of more than 2²⁶ numbers.
    pub fn weights(&self) -> Result<WeightMap> {
        let mut map = WeightMap::new();
        for (ours, theirs, embedding) in [("source", "encoder", &self.source), ("target", "decoder", &self.target)] {
            let (own, other) =
                if theirs == "encoder" { (SOURCE_TOKENS, TARGET_TOKENS) } else { (TARGET_TOKENS, SOURCE_TOKENS) };
            let token = match (self.shared, self.tied) {
                (true, true) => Source::tensor(own).or(SHARED_TOKENS).or(other).or(HEAD),
                (true, false) => Source::tensor(own).or(SHARED_TOKENS).or(other),
                (false, _) => Source::tensor(own),
            };
            map.insert(format!("{ours}.token_embedding.weight"), scaled(token, self.table_scale(ours == "source")));
            if let Some(rows) = embedding.positions {
                let table = match self.sinusoids {
                    Some(order) => {
                        if rows.saturating_mul(embedding.d_model) > MOST_COMPUTED {
                            let most = MOST_COMPUTED / embedding.d_model;
                            return Err(Error::option("positions that are computed", format!("at most {most}"), rows));
                        }
                        let table = sinusoidal_positions(rows, embedding.d_model, order)?;
                        Source::values(&[rows, embedding.d_model], table)
                    }
                    None => Source::tensor(format!("model.{theirs}.embed_positions.weight")),
                };
                map.insert(format!("{ours}.position_embedding.weight"), table);
            }
            if embedding.norm.is_some() {
                map.insert_pair(&format!("{ours}.norm"), &format!("model.{theirs}.layernorm_embedding"));
            }
        }
        match self.names {
            Names::Bart => self.layers(&mut map),
            Names::T5(buckets) => t5::layers(self, buckets, &mut map)?,
        }
        if !self.tied {
            map.insert("head.weight", scaled(Source::tensor(HEAD).or(SHARED_TOKENS), self.logits_scale));
        }
        if self.logits_bias {
            map.insert("head.bias", Source::tensor("final_logits_bias").reshaped(&[self.target.vocabulary]));
        }
        Ok(map)
    }

    /// The layers of BART and Marian.
    fn layers(&self, map: &mut WeightMap) {
        let attention = |map: &mut WeightMap, ours: &str, theirs: &str| {
            for part in ["weight", "bias"] {
                let parts = ["q", "k", "v"].map(|name| format!("{theirs}.{name}_proj.{part}"));
                map.insert(format!("{ours}.in_proj_{part}"), Source::rows(parts.map(Source::tensor)));
            }
            map.insert_pair(&format!("{ours}.out_proj"), &format!("{theirs}.out_proj"));
        };
        for (part, layers) in [("encoder", self.encoder.n_layers), ("decoder", self.decoder.n_layers)] {
            for layer in 0..layers {
                let (ours, theirs) = (format!("{part}.layers.{layer}"), format!("model.{part}.layers.{layer}"));
                let is_decoder = part == "decoder";
                attention(map, &format!("{ours}.self_attn"), &format!("{theirs}.self_attn"));
                if is_decoder {
                    attention(map, &format!("{ours}.multihead_attn"), &format!("{theirs}.encoder_attn"));
                    map.insert_pair(&format!("{ours}.norm2"), &format!("{theirs}.encoder_attn_layer_norm"));
                }
                let last = if is_decoder { "norm3" } else { "norm2" };
                map.insert_pair(&format!("{ours}.norm1"), &format!("{theirs}.self_attn_layer_norm"))
                    .insert_pair(&format!("{ours}.linear1"), &format!("{theirs}.fc1"))
                    .insert_pair(&format!("{ours}.linear2"), &format!("{theirs}.fc2"))
                    .insert_pair(&format!("{ours}.{last}"), &format!("{theirs}.final_layer_norm"));
            }
        }
    }
}
