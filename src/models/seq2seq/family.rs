//! From a configuration to a model of a family.

use super::{Names, Seq2Seq, Tokens};
use crate::error::Result;
use crate::layers::{Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, Norm};
use crate::models::Config;
use crate::spec::{Activation, SinusoidOrder};

/// What tells one family of models from another.
pub(in crate::models) struct Family<'a> {
    /// Options, most of them of older checkpoints, that must have these values where they are given.
    pub(in crate::models) flags: &'a [(&'a str, bool)],
    /// The order of sinusoidal positions; `None` for learned ones.
    pub(in crate::models) positions: Option<SinusoidOrder>,
    /// The row of the position table that position 0 has.
    pub(in crate::models) first_position: usize,
    /// Whether there is a norm behind the embeddings.
    pub(in crate::models) embedding_norm: bool,
}

impl Family<'_> {
    /// The model of this family that a `config.json` describes.
    pub(in crate::models) fn model(&self, config: &Config) -> Result<Seq2Seq> {
        for &(key, expected) in self.flags.iter().chain(&[("is_causal", true)]) {
            if config.flag(key, expected)? != expected {
                return Err(config.refusal(key, expected));
            }
        }
        for (key, alias) in [
            ("encoder_layers", "num_hidden_layers"),
            ("encoder_attention_heads", "num_attention_heads"),
            ("d_model", "hidden_size"),
        ] {
            config.expect_alias(key, alias)?;
        }
        let d_model = config.size("d_model")?;
        let heads = |key: &str| {
            let heads = config.size(key)?;
            match d_model.is_multiple_of(heads) {
                true => Ok(heads),
                false => Err(config.refusal(key, format!("a divisor of d_model, {d_model}"))),
            }
        };
        let activation = config.activation("activation_function", Activation::Gelu)?;
        let mut encoder = EncoderLayer::new(d_model, heads("encoder_attention_heads")?, config.size("encoder_ffn_dim")?);
        encoder.feed_forward.activation = activation;
        encoder.check()?;
        let mut decoder = DecoderLayer::new(d_model, heads("decoder_attention_heads")?, config.size("decoder_ffn_dim")?);
        decoder.feed_forward.activation = activation;
        decoder.check()?;

        let positions = config.size("max_position_embeddings")?.saturating_add(self.first_position);
        let scale = if config.flag("scale_embedding", false)? { (d_model as f32).sqrt() } else { 1.0 };
        let source = Embedding {
            positions: Some(positions),
            first_position: self.first_position,
            scale,
            norm: self.embedding_norm.then(Norm::default),
            ..Embedding::new(config.size("vocab_size")?, d_model)
        };
        let vocabulary = config.optional_size("decoder_vocab_size")?.unwrap_or(source.vocabulary);
        let shared = config.flag("share_encoder_decoder_embeddings", true)?;
        if shared && vocabulary != source.vocabulary {
            let expected = format!("vocab_size, {}, of embeddings that are shared", source.vocabulary);
            return Err(config.refusal("decoder_vocab_size", expected));
        }
        Ok(Seq2Seq {
            source,
            encoder: Encoder::new(encoder, config.layers("encoder_layers")?),
            target: Embedding { vocabulary, ..source },
            decoder: Decoder::new(decoder, config.layers("decoder_layers")?),
            shared,
            tied: config.flag("tie_word_embeddings", true)?,
            logits_bias: true,
            logits_scale: 1.0,
            sinusoids: self.positions,
            tokens: Tokens::read(config, vocabulary)?,
            names: Names::Bart,
        })
    }
}

impl Tokens {
    /// Those of a vocabulary that a configuration names.
    pub(in crate::models) fn read(config: &Config, vocabulary: usize) -> Result<Self> {
        let token = |key: &str| token(config, key, vocabulary);
        Ok(Self {
            start: token("decoder_start_token_id")?,
            end: token("eos_token_id")?,
            padding: token("pad_token_id")?,
            forced_first: token("forced_bos_token_id")?,
            forced_last: token("forced_eos_token_id")?,
        })
    }
}

/// A token, where there is one.
pub(super) fn token(config: &Config, key: &str, vocabulary: usize) -> Result<Option<u32>> {
    let token = |value: &serde_json::Value| {
        let token = value.as_u64().and_then(|v| u32::try_from(v).ok()).filter(|&v| (v as usize) < vocabulary);
        token.ok_or_else(|| config.refusal(key, format!("a token below {vocabulary}")))
    };
    config.get(key).map(token).transpose()
}
