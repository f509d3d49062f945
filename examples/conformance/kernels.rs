//! Single kernels as programs of their own, from arrays to arrays.

use tileformer::kernels::{
    ActivationRows, EmbeddingRows, Gate, LayerNorm, Linear, MaskedSoftmax, Rotary, RotaryPositions, Visibility,
};
use tileformer::layers::NormKind;
use tileformer::spec::RotaryOrder;
use tileformer::{Activation, AttentionOptions, Builder, Element, Layout, Tensor};

use super::gpu::{Feeds, Session};
use super::host::{Array, axis};
use super::judge::{Outcome, Stop, failed, unsupported};

/// An input without gaps, stored as the program stores floats.
pub(crate) fn input(b: &mut Builder, name: &str, sizes: &[usize]) -> tileformer::Result<Tensor> {
    b.input(name, b.storage(), Layout::contiguous(sizes)?)
}

/// An output without gaps, stored as the program stores floats.
pub(crate) fn output(b: &mut Builder, name: &str, sizes: &[usize]) -> tileformer::Result<Tensor> {
    b.output(name, b.storage(), Layout::contiguous(sizes)?)
}

/// An output without gaps that is `f32` whatever the storage: scores, probabilities, statistics.
pub(crate) fn wide_output(b: &mut Builder, name: &str, sizes: &[usize]) -> tileformer::Result<Tensor> {
    b.output(name, Element::F32, Layout::contiguous(sizes)?)
}

/// An output of no elements, where these sizes make one; sums over nothing are not supported.
fn without_elements(out: &[usize], inner: usize) -> Outcome<Option<Array<f32>>> {
    if out.contains(&0) {
        return Array::new(out, Vec::new()).map(Some);
    }
    if inner == 0 { unsupported("a sum over no elements") } else { Ok(None) }
}

/// The optional parts of a projection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Epilogue<'a> {
    /// (d_out)
    pub(crate) bias: Option<&'a Array<f32>>,
    /// (rows, d_out)
    pub(crate) residual: Option<&'a Array<f32>>,
}

/// x (batch, rows, d_in) · Wᵀ of weight (batch, d_out, d_in), batch by batch -> (batch, rows, d_out)
pub(crate) async fn linear(
    session: &Session,
    x: &Array<f32>,
    weight: &Array<f32>,
    epilogue: Epilogue<'_>,
) -> Outcome<Array<f32>> {
    let [batch, rows, d_in] = x.dims("x")?;
    let [weights, d_out, inner] = weight.dims("weight")?;
    if (weights, inner) != (batch, d_in) {
        return failed(format!("{:?} and {:?} have no product", x.sizes(), weight.sizes()));
    }
    let sizes = [batch, rows, d_out];
    if let Some(empty) = without_elements(&sizes, d_in)? {
        return Ok(empty);
    }
    let mut b = session.builder("linear")?;
    let x_rows = input(&mut b, "x", &[batch * rows, d_in])?;
    let w_rows = b.weight("weight", Layout::contiguous(&[batch * d_out, d_in])?)?;
    let y = output(&mut b, "y", &[batch * rows, d_out])?;
    let mut feeds = Feeds::new();
    feeds.f32("x", x).f32("weight", weight);
    let mut bias = None;
    if let Some(values) = epilogue.bias {
        bias = Some(b.weight("bias", Layout::contiguous(&[d_out])?)?);
        feeds.f32("bias", values);
    }
    let mut residual = None;
    if let Some(values) = epilogue.residual {
        residual = Some(input(&mut b, "residual", &[batch * rows, d_out])?);
        feeds.f32("residual", values);
    }
    for i in 0..batch {
        let part = |t: Tensor, size: usize| t.narrow(0, i * size, size);
        let residual = residual.map(|r| part(r, rows)).transpose()?;
        let product = Linear::new(part(x_rows, rows)?, part(w_rows, d_out)?, part(y, rows)?);
        b.linear("linear", &Linear { bias, residual, ..product })?;
    }
    session.run(&b.finish()?, &feeds).await?.get("y")?.reshape(&sizes)
}

/// Rows of any rank, projected: x (…, d_in) -> (…, d_out)
pub(crate) async fn project(
    session: &Session,
    x: &Array<f32>,
    weight: &Array<f32>,
    bias: Option<&Array<f32>>,
) -> Outcome<Array<f32>> {
    let (mut sizes, [d_out, d_in]) = (x.sizes().to_vec(), weight.dims("weight")?);
    let Some(last) = sizes.last_mut().filter(|last| **last == d_in) else {
        return failed(format!("{:?} and {:?} have no product", x.sizes(), weight.sizes()));
    };
    *last = d_out;
    let rows = x.sizes()[..x.sizes().len() - 1].iter().product();
    let (x, weight) = (x.clone().reshape(&[1, rows, d_in])?, weight.clone().reshape(&[1, d_out, d_in])?);
    linear(session, &x, &weight, Epilogue { bias, residual: None }).await?.reshape(&sizes)
}

/// Every element through an activation.
pub(crate) async fn activation(session: &Session, x: &Array<f32>, activation: Activation) -> Outcome<Array<f32>> {
    if x.is_empty() {
        return Ok(x.clone());
    }
    let columns = x.columns();
    let sizes = [x.values().len() / columns, columns];
    let mut b = session.builder("activation")?;
    let (rows, y) = (input(&mut b, "x", &sizes)?, output(&mut b, "y", &sizes)?);
    b.activation("activation", &ActivationRows { x: rows, activation, y })?;
    session.run(&b.finish()?, Feeds::new().f32("x", x)).await?.get("y")?.reshape(x.sizes())
}

/// activation(gate) · up.
pub(crate) async fn gate(
    session: &Session,
    gate: &Array<f32>,
    up: &Array<f32>,
    activation: Activation,
) -> Outcome<Array<f32>> {
    if gate.sizes() != up.sizes() {
        return failed(format!("{:?} and {:?} do not gate each other", gate.sizes(), up.sizes()));
    }
    if gate.is_empty() {
        return Ok(gate.clone());
    }
    let columns = gate.columns();
    let sizes = [gate.values().len() / columns, columns];
    let mut b = session.builder("gate")?;
    let args = Gate {
        gate: input(&mut b, "gate", &sizes)?,
        up: input(&mut b, "up", &sizes)?,
        activation,
        y: output(&mut b, "y", &sizes)?,
    };
    b.gate("gate", &args)?;
    session.run(&b.finish()?, Feeds::new().f32("gate", gate).f32("up", up)).await?.get("y")?.reshape(gate.sizes())
}

/// Rotary positions of x (rows, heads, size), with cosines and sines (P, turned) and a position for each row.
pub(crate) async fn rotary(
    session: &Session,
    x: &Array<f32>,
    table: &Array<f32>,
    order: RotaryOrder,
    positions: Vec<u32>,
) -> Outcome<Array<f32>> {
    let [rows, heads, size] = x.dims("x")?;
    if x.is_empty() {
        return Ok(x.clone());
    }
    let [table_rows, turned] = table.dims("table")?;
    let mut b = session.builder("rotary")?;
    let ids = b.input("positions", Element::U32, Layout::contiguous(&[rows])?)?;
    let args = Rotary {
        x: input(&mut b, "x", &[rows, heads, size])?,
        table: b.input("table", Element::F32, Layout::contiguous(&[table_rows, turned])?)?,
        order,
        positions: RotaryPositions::Ids(ids),
        y: output(&mut b, "y", &[rows, heads, size])?,
    };
    b.rotary("rotary", &args)?;
    let mut feeds = Feeds::new();
    feeds.f32("x", x).f32("table", table).u32("positions", positions);
    session.run(&b.finish()?, &feeds).await?.get("y")?.reshape(x.sizes())
}

/// Softmax over the last dimension of x (rows, columns).
pub(crate) async fn softmax(session: &Session, x: &Array<f32>) -> Outcome<Array<f32>> {
    let [rows, columns] = x.dims("x")?;
    if x.is_empty() {
        return Ok(x.clone());
    }
    let mut b = session.builder("softmax")?;
    let sizes = [1, 1, rows, columns];
    let scores = b.input("x", Element::F32, Layout::contiguous(&sizes)?)?;
    let y = wide_output(&mut b, "y", &sizes)?;
    let visibility = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
    b.masked_softmax("softmax", &MaskedSoftmax { x: scores, visibility, y })?;
    session.run(&b.finish()?, Feeds::new().f32("x", x)).await?.get("y")?.reshape(x.sizes())
}

/// Softmax over any dimension.
pub(crate) async fn softmax_over(session: &Session, x: &Array<f32>, over: i64) -> Outcome<Array<f32>> {
    let sizes = x.sizes().to_vec();
    let x = if sizes.is_empty() { x.clone().with_rank(1)? } else { x.clone() };
    let (last, over) = (x.sizes().len() - 1, axis(over, x.sizes().len())?);
    let turned = x.swap(over, last)?;
    let (columns, rows) = (turned.columns(), turned.sizes()[..last].iter().product());
    let flat = softmax(session, &turned.clone().reshape(&[rows, columns])?).await?;
    flat.reshape(turned.sizes())?.swap(over, last)?.reshape(&sizes)
}

/// What a layer norm gives.
pub(crate) struct Normed {
    /// (rows, columns)
    pub(crate) y: Array<f32>,
    /// (rows, 2): mean and inverse deviation
    pub(crate) statistics: Array<f32>,
}

/// Layer norm or RMS norm over the last dimension of x (rows, columns); weight and bias are (columns).
pub(crate) async fn layer_norm(
    session: &Session,
    x: &Array<f32>,
    [weight, bias]: [Option<&Array<f32>>; 2],
    (kind, eps): (NormKind, f32),
) -> Outcome<Normed> {
    let [rows, columns] = x.dims("x")?;
    if rows == 0 {
        return Ok(Normed { y: x.clone(), statistics: Array::new(&[0, 2], Vec::new())? });
    }
    if columns == 0 {
        return unsupported("a sum over no elements");
    }
    let mut b = session.builder("layer norm")?;
    let mut feeds = Feeds::new();
    feeds.f32("x", x);
    let mut vector = |b: &mut Builder, name: &str, values| -> Outcome<Option<Tensor>> {
        let Some(values) = values else { return Ok(None) };
        feeds.f32(name, values);
        Ok(Some(b.weight(name, Layout::contiguous(&[columns])?)?))
    };
    let (weight, bias) = (vector(&mut b, "weight", weight)?, vector(&mut b, "bias", bias)?);
    let (x, y) = (input(&mut b, "x", &[rows, columns])?, output(&mut b, "y", &[rows, columns])?);
    let statistics = Some(wide_output(&mut b, "statistics", &[rows, 2])?);
    let args = LayerNorm { weight, bias, eps, statistics, ..LayerNorm::new(x, y) };
    match kind {
        NormKind::Layer => b.layer_norm("layer norm", &args)?,
        NormKind::Rms => b.rms_norm("RMS norm", &args)?,
    }
    let written = session.run(&b.finish()?, &feeds).await?;
    Ok(Normed { y: written.get("y")?, statistics: written.get("statistics")? })
}

/// Rows of a table (rows, columns) by ids -> (ids, columns).
pub(crate) async fn embedding(session: &Session, table: &Array<f32>, ids: &[i64]) -> Outcome<Array<f32>> {
    let [rows, columns] = table.dims("table")?;
    let id = |&id: &i64| match u32::try_from(id) {
        Ok(found) if (found as usize) < rows => Ok(found),
        _ => Err(Stop::Failed(format!("id {id} is outside the table of {rows} rows"))),
    };
    let ids = ids.iter().map(id).collect::<Outcome<Vec<u32>>>()?;
    let sizes = [ids.len(), columns];
    if sizes.contains(&0) {
        return Array::new(&sizes, Vec::new());
    }
    let mut b = session.builder("embedding")?;
    let row_ids = b.input("ids", Element::U32, Layout::contiguous(&[ids.len()])?)?;
    let token = b.weight("table", Layout::contiguous(&[rows, columns])?)?;
    let y = output(&mut b, "y", &sizes)?;
    b.embedding("embedding", &EmbeddingRows::new(row_ids, token, y))?;
    session.run(&b.finish()?, Feeds::new().f32("table", table).u32("ids", ids)).await?.get("y")
}
