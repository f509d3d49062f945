//! ONNX's `LayerNormalization` and `RMSNormalization`.

use tileformer::layers::NormKind;

use super::gpu::Session;
use super::host::{Array, axis};
use super::judge::{Outcome, unsupported};
use super::kernels::{self, Normed};
use super::onnx::Node;

/// The norm over all dimensions from `axis` on, with mean and inverse deviation. Scale and bias repeat to the sizes of X, as they like:
/// rows that have the same ones are normed together.
pub(crate) async fn normalization(session: &Session, node: &Node<'_>, kind: NormKind) -> Outcome<Vec<Array<f32>>> {
    let (x, scale, bias) = (node.float(0)?, node.float(1)?, node.optional(2)?);
    if let Some(precision @ (10 | 16)) = node.attributes.int("stash_type")? {
        return unsupported(format!("stash_type {precision}: sums are f32 or better"));
    }
    let from = axis(node.attributes.int("axis")?.unwrap_or(-1), x.sizes().len())?;
    let eps = node.attributes.float("epsilon")?.unwrap_or(1e-5);
    let (outer, inner) = x.sizes().split_at(from);
    let (rows, columns) = (outer.iter().product(), inner.iter().product());
    let over_rows = |array: &Array<f32>| array.broadcast(x.sizes())?.reshape(&[rows, columns]);
    let flat = x.clone().reshape(&[rows, columns])?;
    let (scale, bias) = (over_rows(scale)?, bias.map(over_rows).transpose()?);
    let normed = by_rows(session, &flat, [Some(&scale), bias.as_ref()], (kind, eps)).await?;
    let reduced = [outer, &vec![1; inner.len()]].concat();
    let statistics = normed.statistics.swap(0, 1)?;
    let statistic = |i: usize| statistics.narrow(i, 1)?.reshape(&reduced);
    Ok(vec![normed.y.reshape(x.sizes())?, statistic(0)?, statistic(1)?])
}

/// The norm of rows (rows, columns) by scales and biases (rows, columns), those of equal scales and biases in one program.
async fn by_rows(
    session: &Session,
    x: &Array<f32>,
    vectors: [Option<&Array<f32>>; 2],
    kind: (NormKind, f32),
) -> Outcome<Normed> {
    let [rows, columns] = x.dims("x")?;
    let row = |array: &Array<f32>, at: usize| array.narrow(at, 1)?.reshape(&[columns]);
    let rows_of = |array: &Array<f32>, at: &[usize]| {
        let width = array.columns();
        let values = at.iter().flat_map(|&at| &array.values()[at * width..(at + 1) * width]).copied();
        Array::new(&[at.len(), width], values.collect())
    };
    let bits =
        |at: usize| vectors.map(|v| v.map(|v| v.values()[at * columns..(at + 1) * columns].iter().map(|v| v.to_bits())));
    let alike = |a: usize, b: usize| {
        std::iter::zip(bits(a), bits(b)).all(|(a, b)| a.into_iter().flatten().eq(b.into_iter().flatten()))
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in 0..rows {
        match groups.iter_mut().find(|group| alike(group[0], at)) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    if groups.is_empty() {
        return kernels::layer_norm(session, x, [None, None], kind).await;
    }
    let (mut order, mut y, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
    for group in groups {
        let [scale, bias] = vectors.map(|v| v.map(|v| row(v, group[0])).transpose());
        let (scale, bias) = (scale?, bias?);
        let normed = kernels::layer_norm(session, &rows_of(x, &group)?, [scale.as_ref(), bias.as_ref()], kind).await?;
        order.extend(group);
        y.push(normed.y);
        statistics.push(normed.statistics);
    }
    let mut places = vec![0; rows];
    order.iter().enumerate().for_each(|(place, &at)| places[at] = place);
    let restored = |parts: &[Array<f32>]| rows_of(&Array::concat(&parts.iter().collect::<Vec<_>>(), 0)?, &places);
    Ok(Normed { y: restored(&y)?, statistics: restored(&statistics)? })
}
