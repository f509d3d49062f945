//! T5 (Raffel et al., arXiv 1910.10683): RMS norms in front, no biases, scores that are not scaled, and in place of positions a learned
//! bias of each head for each range of distances. T5 1.1 and Flan-T5 have gated feed-forward networks and a projection of their own, mT5 (Xue et al., arXiv
//! 2010.11934) besides a larger vocabulary.

use std::sync::Arc;

use super::config::activation;
use super::seq2seq::{MOST_COMPUTED, Names, Seq2Seq, Tokens};
use super::{Config, Source, WeightMap};
use crate::error::{Error, Result};
use crate::layers::{
    Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement,
};
use crate::spec::{Activation, AttentionOptions, Mask, relative_position_buckets};

/// The largest distance that a configuration may tell apart.
const FURTHEST: usize = 1 << 16;

/// How distances share biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buckets {
    count: usize,
    furthest: usize,
}

/// The model that a `config.json` of a T5 or an mT5 describes.
///
/// Its hidden rows grow large: those of the larger checkpoints leave the range of f16.
///
/// # Errors
/// [`Error::Checkpoint`] for another model type than `t5` and `mt5`, an encoder or decoder alone, an activation that the
/// crate does not have, sizes that are missing, buckets that do not divide; each by its key.
pub fn from_config(config: &Config) -> Result<Seq2Seq> {
    config.expect("model_type", &["t5", "mt5"])?;
    for (key, expected) in [("is_encoder_decoder", true), ("is_decoder", false)] {
        if config.flag(key, expected)? != expected {
            return Err(config.refusal(key, expected));
        }
    }
    for (key, alias) in [
        ("d_model", "hidden_size"),
        ("num_heads", "num_attention_heads"),
        ("num_layers", "num_hidden_layers"),
        ("d_kv", "head_dim"),
    ] {
        config.expect_alias(key, alias)?;
    }
    let (d_model, n_heads, head_size) = (config.size("d_model")?, config.size("num_heads")?, config.size("d_kv")?);
    let eps = config.number("layer_norm_epsilon")?.unwrap_or(1e-6);
    if eps < 0.0 {
        return Err(config.refusal("layer_norm_epsilon", "at least 0"));
    }
    let norm = Norm::rms(eps);
    let feed_forward = feed_forward(config, d_model)?;
    let buckets = buckets(config)?;
    let attention = MultiHeadAttention {
        head_size,
        value_head_size: head_size,
        bias: false,
        options: AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() },
        ..MultiHeadAttention::new(d_model, n_heads)
    };
    let relative = Some(Mask::Relative { reach: buckets.furthest as u32 });
    let own = |causal: bool| MultiHeadAttention {
        options: AttentionOptions { causal, mask: relative, ..attention.options.clone() },
        ..attention.clone()
    };
    let encoder = EncoderLayer { attention: own(false), feed_forward, norm, placement: Placement::Pre };
    encoder.check()?;
    let decoder = DecoderLayer {
        attention: own(true),
        cross_attention: attention.clone(),
        feed_forward,
        norm,
        placement: Placement::Pre,
    };
    decoder.check()?;

    let n_layers = config.layers("num_layers")?;
    let decoder_layers = match config.get("num_decoder_layers") {
        Some(_) => config.layers("num_decoder_layers")?,
        None => n_layers,
    };
    let embedding = Embedding::new(config.size("vocab_size")?, d_model);
    // T5 1.1 is told from T5 by its untied projection, and by a key of its own since that is tied or not by what a checkpoint has. An mT5's
    // logits are never scaled.
    let tied = config.flag("tie_word_embeddings", true)?;
    let scaled = config.flag("scale_decoder_outputs", tied)? && config.text("model_type")? != Some("mt5");
    Ok(Seq2Seq {
        source: embedding,
        encoder: Encoder::new(encoder, n_layers).with_final_norm(norm),
        target: embedding,
        decoder: Decoder::new(decoder, decoder_layers).with_final_norm(norm),
        shared: true,
        tied,
        logits_bias: false,
        logits_scale: if scaled { (1.0 / (d_model as f64).sqrt()) as f32 } else { 1.0 },
        sinusoids: None,
        tokens: Tokens::read(config, embedding.vocabulary)?,
        names: Names::T5(buckets),
    })
}

/// By `feed_forward_proj`: the name of an activation, `gated-` in front of that of a gate.
fn feed_forward(config: &Config, d_model: usize) -> Result<FeedForward> {
    let key = "feed_forward_proj";
    let usual = if config.text("model_type")? == Some("mt5") { "gated-gelu" } else { "relu" };
    let found = config.text(key)?.unwrap_or(usual);
    let (gated, name) = found.strip_prefix("gated-").map_or((false, found), |name| (true, name));
    let activation = match name {
        "gelu" if gated => Some(Activation::GeluTanh),
        name => activation(name),
    };
    let activation = activation
        .ok_or_else(|| config.refusal(key, "relu, gelu, silu or another activation, or gated- in front of one"))?;
    if config.activation("dense_act_fn", activation)? != activation {
        return Err(config.refusal("dense_act_fn", format!("that of {key}, {found}")));
    }
    if config.flag("is_gated_act", gated)? != gated {
        return Err(config.refusal("is_gated_act", format!("{gated}, as {key} is {found}")));
    }
    Ok(FeedForward { d_model, d_ff: config.size("d_ff")?, activation, bias: false, gated })
}

fn buckets(config: &Config) -> Result<Buckets> {
    let (key, furthest_key) = ("relative_attention_num_buckets", "relative_attention_max_distance");
    let count = config.optional_size(key)?.unwrap_or(32);
    let furthest = config.optional_size(furthest_key)?.unwrap_or(128);
    // Encoders have half as many a side as decoders: what serves both serves either.
    if relative_position_buckets(0, count, count, false).is_err() {
        return Err(config.refusal(key, "a multiple of 4"));
    }
    if relative_position_buckets(0, count, furthest, true).is_err() || furthest > FURTHEST {
        let expected = format!("more than {}, half of {key}, and at most {FURTHEST}", count / 2);
        return Err(config.refusal(furthest_key, expected));
    }
    Ok(Buckets { count, furthest })
}

/// The names of the layers of `T5ForConditionalGeneration` and `MT5ForConditionalGeneration`, each of which has the biases of all.
pub(super) fn layers(model: &Seq2Seq, Buckets { count, furthest }: Buckets, map: &mut WeightMap) -> Result<()> {
    let biases = |n_layers: usize, attention: &MultiHeadAttention| match attention.options.mask {
        Some(Mask::Relative { reach }) => n_layers.saturating_mul(attention.n_heads).saturating_mul(Mask::distances(reach)),
        _ => 0,
    };
    let all = biases(model.encoder.n_layers, &model.encoder.layer.attention)
        .saturating_add(biases(model.decoder.n_layers, &model.decoder.layer.attention));
    if all > MOST_COMPUTED {
        return Err(Error::option("relative position biases of all layers", format!("at most {MOST_COMPUTED}"), all));
    }
    let weight = |name: String| Source::tensor(format!("{name}.weight"));
    let mut stack = |part: &str, n_layers: usize, attention: &MultiHeadAttention, gated: bool| -> Result<()> {
        let is_decoder = part == "decoder";
        let columns: Option<Arc<[u32]>> = match attention.options.mask {
            Some(Mask::Relative { reach }) => Some(relative_position_buckets(reach, count, furthest, is_decoder)?.into()),
            _ => None,
        };
        for layer in 0..n_layers {
            let (ours, theirs) = (format!("{part}.layers.{layer}"), format!("{part}.block.{layer}.layer"));
            let attentions: &[_] = match is_decoder {
                true => &[("self_attn", "SelfAttention"), ("multihead_attn", "EncDecAttention")],
                false => &[("self_attn", "SelfAttention")],
            };
            for (at, (own, other)) in attentions.iter().enumerate() {
                let parts = ["q", "k", "v"].map(|name| weight(format!("{theirs}.{at}.{other}.{name}")));
                map.insert(format!("{ours}.{own}.in_proj_weight"), Source::rows(parts));
                map.insert(format!("{ours}.{own}.out_proj.weight"), weight(format!("{theirs}.{at}.{other}.o")));
            }
            if let Some(columns) = columns.clone() {
                // The first layer's serves all.
                let biases = weight(format!("{part}.block.0.layer.0.SelfAttention.relative_attention_bias"));
                map.insert(format!("{ours}.self_attn.relative_position_bias"), biases.gathered(columns).transposed());
            }
            let last = attentions.len();
            for at in 0..=last {
                map.insert(format!("{ours}.norm{}.weight", at + 1), weight(format!("{theirs}.{at}.layer_norm")));
            }
            let dense = |name: &str| weight(format!("{theirs}.{last}.DenseReluDense.{name}"));
            let up = if gated { Source::rows(["wi_0", "wi_1"].map(dense)) } else { dense("wi") };
            map.insert(format!("{ours}.linear1.weight"), up).insert(format!("{ours}.linear2.weight"), dense("wo"));
        }
        map.insert(format!("{part}.norm.weight"), weight(format!("{part}.final_layer_norm")));
        Ok(())
    };
    let (encoder, decoder) = (&model.encoder, &model.decoder);
    stack("encoder", encoder.n_layers, &encoder.layer.attention, encoder.layer.feed_forward.gated)?;
    stack("decoder", decoder.n_layers, &decoder.layer.attention, decoder.layer.feed_forward.gated)
}
