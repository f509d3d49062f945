//! GPT-2 (Radford et al., 2019): pre-norm layers, GELU by tanh, learned positions, the token table as the projection.

use super::causal::{CausalModel, Family, RotaryFrequencies};
use super::{Config, Source, WeightMap};
use crate::error::Result;
use crate::layers::{Embedding, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement};
use crate::spec::{Activation, AttentionOptions};

/// The model that a `config.json` of a GPT-2 describes.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) for another model type than `gpt2`, cross-attention, scores that are scaled by their
/// layer's number or computed in another order, attention to later tokens or to a window, an activation that the crate does not have,
/// sizes that are missing or do not divide; each by its key.
pub fn from_config(config: &Config) -> Result<CausalModel> {
    config.expect("model_type", &["gpt2"])?;
    for key in ["add_cross_attention", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"] {
        if config.flag(key, false)? {
            return Err(config.refusal(key, "false"));
        }
    }
    for (key, alias) in [
        ("n_embd", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("n_positions", "max_position_embeddings"),
    ] {
        config.expect_alias(key, alias)?;
    }
    let positions = config.size("n_positions")?;
    config.expect_causal(positions)?;
    config.expect_wide("sliding_window", positions)?;
    let (d_model, n_heads) = (config.size("n_embd")?, config.size("n_head")?);
    if !d_model.is_multiple_of(n_heads) {
        return Err(config.refusal("n_head", format!("a divisor of n_embd, {d_model}")));
    }
    let eps = config.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    if eps < 0.0 {
        return Err(config.refusal("layer_norm_epsilon", "at least 0"));
    }
    let norm = Norm { eps, ..Norm::default() };
    let scale = if config.flag("scale_attn_weights", true)? { None } else { Some(1.0) };
    let mut attention = MultiHeadAttention::new(d_model, n_heads);
    attention.options = AttentionOptions { scale, ..AttentionOptions::causal() };
    let feed_forward = FeedForward {
        d_model,
        d_ff: config.optional_size("n_inner")?.unwrap_or(d_model.saturating_mul(4)),
        activation: config.activation("activation_function", Activation::GeluTanh)?,
        bias: true,
        gated: false,
    };
    let layer = EncoderLayer { attention, feed_forward, norm, placement: Placement::Pre };
    layer.check()?;
    Ok(CausalModel {
        embedding: Embedding { positions: Some(positions), ..Embedding::new(config.size("vocab_size")?, d_model) },
        layer,
        n_layers: config.layers("n_layer")?,
        final_norm: norm,
        tied: config.flag("tie_word_embeddings", true)?,
        frequencies: RotaryFrequencies::default(),
        family: Family::Gpt2,
    })
}

/// The token table of a checkpoint.
pub(super) const TOKENS: &str = "transformer.wte.weight";

/// The names of `GPT2LMHeadModel`, whose projections are stored (in, out).
pub(super) fn weights(model: &CausalModel) -> WeightMap {
    let mut map = WeightMap::new();
    let token = Source::tensor(TOKENS);
    map.insert("token_embedding.weight", if model.tied { token.or("lm_head.weight") } else { token })
        .insert("position_embedding.weight", Source::tensor("transformer.wpe.weight"));
    for layer in 0..model.n_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("transformer.h.{layer}"));
        for (weight, bias, name) in [
            ("self_attn.in_proj_weight", "self_attn.in_proj_bias", "attn.c_attn"),
            ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "attn.c_proj"),
            ("linear1.weight", "linear1.bias", "mlp.c_fc"),
            ("linear2.weight", "linear2.bias", "mlp.c_proj"),
        ] {
            let tensor = |part: &str| Source::tensor(format!("{theirs}.{name}.{part}"));
            map.insert(format!("{ours}.{weight}"), tensor("weight").transposed());
            map.insert(format!("{ours}.{bias}"), tensor("bias"));
        }
        map.insert_pair(&format!("{ours}.norm1"), &format!("{theirs}.ln_1"))
            .insert_pair(&format!("{ours}.norm2"), &format!("{theirs}.ln_2"));
    }
    map.insert_pair("norm", "transformer.ln_f");
    if !model.tied {
        map.insert("lm_head.weight", Source::tensor("lm_head.weight"));
    }
    map
}
