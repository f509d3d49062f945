//! Llama (Touvron et al., arXiv 2302.13971): RMS norms in front, rotary positions, grouped heads, gated feed-forward networks.
//! Mistral (Jiang et al., arXiv 2310.06825) is the same with a window, Qwen2 (Yang et al., arXiv 2407.10671) with biases of q, k and v.

use super::causal::{CausalModel, Family, RotaryFrequencies};
use super::{Config, Source, WeightMap};
use crate::error::Result;
use crate::layers::{Embedding, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement, RotaryOptions};
use crate::spec::{Activation, AttentionOptions, RotaryOrder, RotaryScaling};

/// The model that a `config.json` of a Llama, a Mistral or a Qwen2 describes.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) for another model type than `llama`, `mistral` and `qwen2`, rotary positions that are
/// stretched in another way than `linear` and `llama3` (`dynamic` stretches nothing within the model's positions) or turn a part of a
/// head, attention to later tokens, a window of a Llama or of some layers of a Qwen2 alone, an activation that the crate does not have,
/// sizes that are missing or do not divide; each by its key.
pub fn from_config(config: &Config) -> Result<CausalModel> {
    config.expect("model_type", &["llama", "mistral", "qwen2"])?;
    // What the Transformers library takes for keys that are left out.
    let (family, usual_kv_heads, usual_positions) = match config.text("model_type")? {
        Some("mistral") => (Family::Mistral, Some(8), 131_072),
        Some("qwen2") => (Family::Qwen2, Some(32), 32_768),
        _ => (Family::Llama, None, 2048),
    };
    let (d_model, n_heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let n_kv_heads = config.size_or("num_key_value_heads", usual_kv_heads)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(config.refusal("num_key_value_heads", format!("a divisor of num_attention_heads, {n_heads}")));
    }
    let head_size = match config.optional_size("head_dim")? {
        Some(size) => size,
        None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => return Err(config.refusal("num_attention_heads", format!("a divisor of hidden_size, {d_model}"))),
    };
    if !head_size.is_multiple_of(2) {
        return Err(config.refusal("head_dim", format!("an even size, not {head_size}")));
    }
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6);
    if eps < 0.0 {
        return Err(config.refusal("rms_norm_eps", "at least 0"));
    }
    let positions = config.optional_size("max_position_embeddings")?.unwrap_or(usual_positions);
    let n_layers = config.layers("num_hidden_layers")?;
    // A window of W tokens is a token and the W − 1 before it.
    let window_left = window(config, family, n_layers, positions)?.map(|window| window as u32 - 1);
    let attention = MultiHeadAttention {
        n_kv_heads,
        head_size,
        value_head_size: head_size,
        bias: family == Family::Qwen2 || config.flag("attention_bias", false)?,
        rotary: Some(RotaryOptions { positions, columns: head_size, order: RotaryOrder::Halves }),
        options: AttentionOptions { window_left, ..AttentionOptions::causal() },
        ..MultiHeadAttention::new(d_model, n_heads)
    };
    let feed_forward = FeedForward {
        d_model,
        d_ff: config.size("intermediate_size")?,
        activation: config.activation("hidden_act", Activation::Silu)?,
        bias: config.flag("mlp_bias", false)?,
        gated: true,
    };
    let norm = Norm::rms(eps);
    let layer = EncoderLayer { attention, feed_forward, norm, placement: Placement::Pre };
    layer.check()?;
    Ok(CausalModel {
        embedding: Embedding::new(config.size("vocab_size")?, d_model),
        layer,
        n_layers,
        final_norm: norm,
        tied: config.flag("tie_word_embeddings", false)?,
        frequencies: frequencies(config)?,
        family,
    })
}

/// How many tokens a row sees, itself included, where those are fewer than there may be.
fn window(config: &Config, family: Family, n_layers: usize, positions: usize) -> Result<Option<usize>> {
    config.expect_causal(positions)?;
    let windowed = match family {
        Family::Mistral => n_layers,
        Family::Qwen2 => windowed_layers(config, n_layers)?,
        _ => return config.expect_wide("sliding_window", positions).map(|()| None),
    };
    let window = config.size_or("sliding_window", Some(4096))?.filter(|&window| windowed > 0 && window < positions);
    if window.is_some() && windowed < n_layers {
        return Err(config.refusal("sliding_window", format!("one of all {n_layers} layers, not of {windowed}: none")));
    }
    Ok(window)
}

/// How many layers of a Qwen2 have a window.
fn windowed_layers(config: &Config, n_layers: usize) -> Result<usize> {
    if !config.flag("use_sliding_window", false)? {
        return Ok(0);
    }
    match config.texts("layer_types")? {
        Some(kinds) if kinds.len() != n_layers => {
            Err(config.refusal("layer_types", format!("one for each of {n_layers} layers")))
        }
        Some(kinds) => Ok(kinds.iter().filter(|&&kind| kind == "sliding_attention").count()),
        None => Ok(n_layers.saturating_sub(config.count("max_window_layers")?.unwrap_or(28))),
    }
}

/// From `rope_theta` and `rope_scaling`, as older configurations have them, or from `rope_parameters`.
fn frequencies(config: &Config) -> Result<RotaryFrequencies> {
    let parameters = match config.object("rope_scaling")? {
        None => config.object("rope_parameters")?,
        found => found,
    };
    let positive = |config: &Config, key: &str| match config.number(key)? {
        Some(number) if number <= 0.0 => Err(config.refusal(key, "a positive number")),
        found => Ok(found.map(f64::from)),
    };
    let mut found = RotaryFrequencies::default();
    found.base = positive(config, "rope_theta")?.unwrap_or(found.base);
    let Some(parameters) = parameters else { return Ok(found) };
    found.base = positive(&parameters, "rope_theta")?.unwrap_or(found.base);
    if parameters.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(parameters.refusal("partial_rotary_factor", "1: all of a head is turned"));
    }
    let key = if parameters.get("rope_type").is_none() { "type" } else { "rope_type" };
    let number = |key: &str| positive(&parameters, key)?.ok_or_else(|| parameters.refusal(key, "a positive number"));
    let factor = || match number("factor")? {
        factor if factor < 1.0 => Err(parameters.refusal("factor", "at least 1")),
        factor => Ok(factor),
    };
    found.scaling = match parameters.text(key)? {
        None | Some("default") => RotaryScaling::None,
        // Frequencies change in texts beyond the model's positions, which are refused.
        Some("dynamic") => factor().map(|_| RotaryScaling::None)?,
        Some("linear") => RotaryScaling::Linear { factor: factor()? },
        Some("llama3") => {
            let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high_freq_factor <= low_freq_factor {
                return Err(parameters.refusal("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}")));
            }
            let key = "original_max_position_embeddings";
            let original = positive(config, key)?.map_or_else(|| number(key), Ok)?;
            RotaryScaling::Llama3 { factor: factor()?, low_freq_factor, high_freq_factor, original }
        }
        Some(_) => return Err(parameters.refusal(key, "default, dynamic, linear or llama3")),
    };
    Ok(found)
}

/// The token table of a checkpoint.
pub(super) const TOKENS: &str = "model.embed_tokens.weight";

/// The names of `LlamaForCausalLM`, `MistralForCausalLM` and `Qwen2ForCausalLM`.
pub(super) fn weights(model: &CausalModel) -> WeightMap {
    let (mut map, d_model) = (WeightMap::new(), model.embedding.d_model);
    let token = Source::tensor(TOKENS);
    map.insert("token_embedding.weight", if model.tied { token.or("lm_head.weight") } else { token });
    let parts = |bias: bool| if bias { &["weight", "bias"][..] } else { &["weight"][..] };
    for layer in 0..model.n_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("model.layers.{layer}"));
        let stacked = |names: &[&str], part: &str| {
            Source::rows(names.iter().map(|name| Source::tensor(format!("{theirs}.{name}_proj.{part}"))))
        };
        for part in parts(model.layer.attention.bias) {
            let names = ["self_attn.q", "self_attn.k", "self_attn.v"];
            map.insert(format!("{ours}.self_attn.in_proj_{part}"), stacked(&names, part));
            let out = match (model.family, part) {
                // A bias of the others comes with one of the output, which is zeros here.
                (Family::Qwen2, &"bias") => Source::values(&[d_model], vec![0.0; d_model]),
                _ => stacked(&["self_attn.o"], part),
            };
            map.insert(format!("{ours}.self_attn.out_proj.{part}"), out);
        }
        for part in parts(model.layer.feed_forward.bias) {
            map.insert(format!("{ours}.linear1.{part}"), stacked(&["mlp.gate", "mlp.up"], part));
            map.insert(format!("{ours}.linear2.{part}"), stacked(&["mlp.down"], part));
        }
        for (norm, name) in [("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")] {
            map.insert(format!("{ours}.{norm}.weight"), Source::tensor(format!("{theirs}.{name}.weight")));
        }
    }
    map.insert("norm.weight", Source::tensor("model.norm.weight"));
    if !model.tied {
        map.insert("lm_head.weight", Source::tensor("lm_head.weight"));
    }
    map
}
