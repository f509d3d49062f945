//! PyTorch's modules.

use tileformer::Activation;
use tileformer::layers::NormKind;

use super::case::{Case, Value};
use super::gpu::Session;
use super::host::Array;
use super::judge::{Outcome, Results, failed, unsupported};
use super::{kernels, pytorch_attention, pytorch_layers};

/// Runs a case of PyTorch's modules.
pub(crate) async fn run(session: &Session, case: &Case) -> Outcome<Results> {
    match case.text("op")? {
        "MultiheadAttention" => pytorch_attention::multi_head_attention(session, case).await,
        "TransformerEncoderLayer" => single(pytorch_layers::encoder_layer(session, case).await?),
        "TransformerEncoder" => single(pytorch_layers::encoder(session, case).await?),
        "TransformerDecoderLayer" => single(pytorch_layers::decoder_layer(session, case).await?),
        "TransformerDecoder" => single(pytorch_layers::decoder(session, case).await?),
        "Transformer" => single(pytorch_layers::transformer(session, case).await?),
        "LayerNorm" => single(norm(session, case, "in.input", (NormKind::Layer, 1e-5)).await?),
        // Outputs were computed in f64, and so the eps that stands for none is that type's.
        "RMSNorm" => single(norm(session, case, "in.x", (NormKind::Rms, f64::EPSILON as f32)).await?),
        "Linear" => single(linear(session, case).await?),
        "Softmax" => single(softmax(session, case).await?),
        "Embedding" => single(embedding(session, case).await?),
        "GELU" => single(gelu(session, case).await?),
        "ReLU" => single(kernels::activation(session, case.float("in.input")?, Activation::Relu).await?),
        "SiLU" => single(kernels::activation(session, case.float("in.input")?, Activation::Silu).await?),
        "Tanh" => single(kernels::activation(session, case.float("in.input")?, Activation::Tanh).await?),
        other => unsupported(format!("module {other}")),
    }
}

/// The results of a module with one output.
fn single(y: Array<f32>) -> Outcome<Results> {
    Ok(vec![("0".to_owned(), y)])
}

async fn linear(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    kernels::project(session, case.float("in.input")?, case.float("w.weight")?, case.optional("w.bias")?).await
}

async fn gelu(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let attributes = case.attributes("attrs")?;
    let kind = match attributes.text("approximate")?.unwrap_or("none") {
        "none" => Activation::Gelu,
        "tanh" => Activation::GeluTanh,
        other => return failed(format!("approximate: expected none or tanh, found {other}")),
    };
    kernels::activation(session, case.float("in.input")?, kind).await
}

/// Without a dimension it is the first for a scalar and for one or three dimensions, else the second.
async fn softmax(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let x = case.float("in.input")?;
    let unsaid = if matches!(x.sizes().len(), 0 | 1 | 3) { 0 } else { 1 };
    kernels::softmax_over(session, x, case.attributes("attrs")?.int("dim")?.unwrap_or(unsaid)).await
}

/// The norm over the last dimensions, those of `normalized_shape`; with the eps that stands for none.
async fn norm(session: &Session, case: &Case, input: &str, (kind, eps): (NormKind, f32)) -> Outcome<Array<f32>> {
    let attributes = case.attributes("attrs")?;
    let (x, inner) = (case.float(input)?, attributes.sizes("normalized_shape")?);
    let Some(outer) = x.sizes().strip_suffix(inner.as_slice()) else {
        return failed(format!("{:?} does not end in the normalized shape {inner:?}", x.sizes()));
    };
    let (rows, columns) = (outer.iter().product(), inner.iter().product());
    let vector = |name: &str| case.optional(name)?.map(|v| v.clone().reshape(&[columns])).transpose();
    let (weight, bias) = (vector("w.weight")?, vector("w.bias")?);
    let eps = attributes.float("eps")?.unwrap_or(eps);
    let flat = x.clone().reshape(&[rows, columns])?;
    kernels::layer_norm(session, &flat, [weight.as_ref(), bias.as_ref()], (kind, eps)).await?.y.reshape(x.sizes())
}

/// The table is stored as the call left it, so a `max_norm` is in it already.
async fn embedding(session: &Session, case: &Case) -> Outcome<Array<f32>> {
    let table = case.float("w.weight")?;
    let Some(Value::Int(ids)) = case.get("in.input") else { return failed("in.input: expected integers") };
    let rows = kernels::embedding(session, table, ids.values()).await?;
    rows.reshape(&[ids.sizes(), &[table.columns()]].concat())
}
