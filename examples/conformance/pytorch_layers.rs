//! PyTorch's transformer layers, stacks and `Transformer`, each through the crate's layer programs.

use tileformer::layers::{
    Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, Inputs, MultiHeadAttention, Norm, NormKind, Placement, Stack,
};
use tileformer::{Activation, BatchShape};

use super::attention::Visible;
use super::case::{Attributes, Case};
use super::gpu::{Feeds, Session};
use super::host::Array;
use super::judge::{Outcome, failed, unsupported};
use super::pytorch_attention::{Masks, Order};

pub(crate) async fn encoder_layer(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let module = Module::new(session, case, "src")?;
    let x = module.rows("in.src")?;
    let masks = module.masks("src_mask", "src_key_padding_mask", "is_causal")?;
    module.order.restored(module.encode("", &x, &masks, None).await?)
}

pub(crate) async fn encoder(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let module = Module::new(session, case, "src")?;
    let x = module.rows("in.src")?;
    let masks = module.masks("mask", "src_key_padding_mask", "is_causal")?;
    let n_layers = module.attributes.size("num_layers")?;
    module.order.restored(module.encode("", &x, &masks, Some(n_layers)).await?)
}

pub(crate) async fn decoder_layer(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let module = Module::new(session, case, "tgt")?;
    let memory = module.rows("in.memory")?;
    module.decode("", &memory, None).await
}

pub(crate) async fn decoder(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let module = Module::new(session, case, "tgt")?;
    let memory = module.rows("in.memory")?;
    module.decode("", &memory, Some(module.attributes.size("num_layers")?)).await
}

/// Encoder and decoder, each with a final norm, in two programs.
pub(crate) async fn transformer(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let module = Module::new(session, case, "tgt")?;
    for name in ["custom_encoder", "custom_decoder"] {
        if module.attributes.text(name)?.is_some() {
            return unsupported(format!("a {name}"));
        }
    }
    let src = module.rows("in.src")?;
    let masks = module.masks("src_mask", "src_key_padding_mask", "src_is_causal")?;
    let memory = module.encode("encoder.", &src, &masks, Some(module.attributes.size("num_encoder_layers")?)).await?;
    module.decode("decoder.", &memory, Some(module.attributes.size("num_decoder_layers")?)).await
}

/// A module of layers that are alike.
struct Module<'a> {
    session: &'a Session,
    case: &'a Case,
    attributes: Attributes,
    call: Attributes,
    order: Order,
}

impl<'a> Module<'a> {
    /// The sequences `in.NAME` tell whether there is a batch.
    fn new(session: &'a Session, case: &'a Case, name: &str) -> Outcome<Self> {
        let (attributes, call) = (case.attributes("attrs")?, case.attributes("call")?);
        let order = Order::of(case.float(&format!("in.{name}"))?, attributes.flag("batch_first")?)?;
        Ok(Self { session, case, attributes, call, order })
    }

    /// A tensor of sequences as (B, T, C).
    fn rows(&self, name: &str) -> Outcome<Array<f32>> {
        let rows = self.order.batched(self.case.float(name)?)?;
        if rows.is_empty() { unsupported("sequences with a dimension of size 0") } else { Ok(rows) }
    }

    fn masks(&self, attention: &str, padding: &str, causal: &str) -> Outcome<Masks<'a>> {
        Ok(Masks {
            attention: self.case.get(&format!("in.{attention}")),
            padding: self.case.get(&format!("in.{padding}")),
            causal: self.call.flag(causal)?,
            needs_weights: false,
        })
    }

    /// Whether the file has a weight.
    fn has(&self, name: &str) -> bool {
        self.case.get(&format!("w.{name}")).is_some()
    }

    fn norm(&self, prefix: &str) -> Outcome<Norm> {
        let eps = self.attributes.float("layer_norm_eps")?.unwrap_or(1e-5);
        Ok(Norm {
            kind: NormKind::Layer,
            eps,
            weight: self.has(&format!("{prefix}weight")),
            bias: self.has(&format!("{prefix}bias")),
        })
    }

    /// The norm behind a stack, where the file has one.
    fn final_norm(&self, prefix: &str) -> Outcome<Option<Norm>> {
        let prefix = format!("{prefix}norm.");
        if self.has(&format!("{prefix}weight")) { self.norm(&prefix).map(Some) } else { Ok(None) }
    }

    /// The layer, or that of a stack of `n_layers` under `prefix`, without any mask.
    fn layer(&self, prefix: &str, n_layers: Option<usize>) -> Outcome<EncoderLayer> {
        let prefix = match n_layers {
            None => prefix.to_owned(),
            Some(n) if n > 0 && self.has(&format!("{prefix}layers.{}.linear1.weight", n - 1)) => {
                format!("{prefix}layers.0.")
            }
            Some(n) => return failed(format!("the file has no {n} layers {prefix}layers")),
        };
        let attributes = &self.attributes;
        let d_model = attributes.size("d_model")?;
        let attention = MultiHeadAttention {
            bias: self.has(&format!("{prefix}self_attn.in_proj_bias")),
            ..MultiHeadAttention::new(d_model, attributes.size("nhead")?)
        };
        let feed_forward = FeedForward {
            d_model,
            d_ff: attributes.size("dim_feedforward")?,
            activation: activation(attributes.text("activation")?.unwrap_or("relu"))?,
            bias: self.has(&format!("{prefix}linear1.bias")),
            gated: false,
        };
        let placement = if attributes.flag("norm_first")? { Placement::Pre } else { Placement::Post };
        Ok(EncoderLayer { attention, feed_forward, norm: self.norm(&format!("{prefix}norm1."))?, placement })
    }

    fn inputs(&self, shape: BatchShape) -> Inputs {
        Inputs::new(shape).with_storage(self.session.storage())
    }

    /// One encoder layer, or a stack of `n_layers` -> (B, T, C)
    async fn encode(&self, prefix: &str, x: &Array<f32>, masks: &Masks<'_>, n_layers: Option<usize>) -> Outcome<Array<f32>> {
        let [batch, rows, _] = x.dims("sequences")?;
        let mut layer = self.layer(prefix, n_layers)?;
        let visible = masks.visible([batch, layer.attention.n_heads, rows, rows], 0)?;
        layer.attention.options = visible.options();
        let inputs = Inputs { mask: visible.mask_layout()?, ..self.inputs(BatchShape::padded(batch, rows)) };
        let kernels = self.session.kernels();
        let program = match n_layers {
            None => layer.program(kernels, &inputs)?,
            Some(n_layers) => {
                let final_norm = self.final_norm(prefix)?;
                Encoder { final_norm, ..Stack::new(layer, n_layers) }.program(kernels, &inputs)?
            }
        };
        let mut feeds = Feeds::with_weights(self.case, prefix);
        feeds.f32("x", x);
        visible.feed(&mut feeds, "");
        self.session.run(&program, &feeds).await?.get("y")?.reshape(x.sizes())
    }

    /// One decoder layer, or a stack of `n_layers`, over `in.tgt` and a memory (B, S, C), as the module lays it out.
    async fn decode(&self, prefix: &str, memory: &Array<f32>, n_layers: Option<usize>) -> Outcome<Array<f32>> {
        let x = self.rows("in.tgt")?;
        let ([batch, queries, _], [memories, keys, _]) = (x.dims("tgt")?, memory.dims("memory")?);
        if memories != batch {
            return failed(format!("memory: expected {batch} sequences, found {:?}", memory.sizes()));
        }
        let EncoderLayer { attention, feed_forward, norm, placement } = self.layer(prefix, n_layers)?;
        let n_heads = attention.n_heads;
        let own = self.masks("tgt_mask", "tgt_key_padding_mask", "tgt_is_causal")?;
        let own = own.visible([batch, n_heads, queries, queries], 0)?;
        let cross = self.masks("memory_mask", "memory_key_padding_mask", "memory_is_causal")?;
        let cross = cross.visible([batch, n_heads, queries, keys], 0)?;
        let with = |visible: &Visible| MultiHeadAttention { options: visible.options(), ..attention.clone() };
        let (attention, cross_attention) = (with(&own), with(&cross));
        let layer = DecoderLayer { attention, cross_attention, feed_forward, norm, placement };
        let inputs = Inputs {
            mask: own.mask_layout()?,
            cross_mask: cross.mask_layout()?,
            ..self.inputs(BatchShape::cross(batch, queries, keys))
        };
        let kernels = self.session.kernels();
        let program = match n_layers {
            None => layer.program(kernels, &inputs)?,
            Some(n_layers) => {
                let final_norm = self.final_norm(prefix)?;
                Decoder { final_norm, ..Stack::new(layer, n_layers) }.program(kernels, &inputs)?
            }
        };
        let mut feeds = Feeds::with_weights(self.case, prefix);
        feeds.f32("x", &x).f32("memory", memory);
        own.feed(&mut feeds, "");
        cross.feed(&mut feeds, "cross_");
        self.order.restored(self.session.run(&program, &feeds).await?.get("y")?.reshape(x.sizes())?)
    }
}

/// An activation by the name of its function, or as a module is shown.
fn activation(name: &str) -> Outcome<Activation> {
    match name.replace("inplace=True", "").as_str() {
        "relu" | "ReLU()" => Ok(Activation::Relu),
        "gelu" | "GELU(approximate='none')" => Ok(Activation::Gelu),
        "GELU(approximate='tanh')" => Ok(Activation::GeluTanh),
        "silu" | "SiLU()" => Ok(Activation::Silu),
        "tanh" | "Tanh()" => Ok(Activation::Tanh),
        "Identity()" => Ok(Activation::Identity),
        other => unsupported(format!("activation {other}")),
    }
}
