//! ONNX's operators.

use tileformer::layers::NormKind;
use tileformer::spec::RotaryOrder;
use tileformer::{Activation, Element};

use super::case::{Attributes, Case, Value};
use super::gpu::Session;
use super::host::{Array, axis, common_sizes};
use super::judge::{Outcome, Results, Stop, failed, unsupported};
use super::kernels::{self, Epilogue};
use super::{onnx_attention, onnx_norm};

/// A node of an ONNX graph.
pub(crate) struct Node<'a> {
    case: &'a Case,
    pub(crate) attributes: Attributes,
    opset: i64,
    /// Names, "" for one left out.
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl<'a> Node<'a> {
    fn new(case: &'a Case) -> Outcome<Self> {
        let opset = case.text("opset")?.trim().parse();
        Ok(Self {
            case,
            attributes: case.attributes("attrs")?,
            opset: opset.map_err(|e| Stop::Failed(format!("opset in the metadata: {e}")))?,
            inputs: case.names("inputs")?,
            outputs: case.names("outputs")?,
        })
    }

    /// Argument number `i`, where it is given.
    pub(crate) fn input(&self, i: usize) -> Outcome<Option<&'a Value>> {
        match self.inputs.get(i).filter(|name| !name.is_empty()) {
            None => Ok(None),
            Some(name) => match self.case.get(&format!("in.{name}")) {
                None => failed(format!("no in.{name} in the file")),
                found => Ok(found),
            },
        }
    }

    /// Argument number `i`, floats, where it is given.
    pub(crate) fn optional(&self, i: usize) -> Outcome<Option<&'a Array<f32>>> {
        self.input(i)?.map(|value| value.floats(&format!("in.{}", self.inputs[i]))).transpose()
    }

    /// Argument number `i`, floats.
    pub(crate) fn float(&self, i: usize) -> Outcome<&'a Array<f32>> {
        match self.optional(i)? {
            Some(array) => Ok(array),
            None => failed(format!("argument {i} of {} is missing", self.case.text("op")?)),
        }
    }

    /// Leaves out integers, where the operator has them as well as floats.
    fn expect_floats(&self, op: &str) -> Outcome<()> {
        let has_integers = matches!(op, "Gather" | "MatMul" | "Gemm" | "Relu");
        match self.input(0)? {
            Some(Value::Int(_) | Value::Bool(_)) if has_integers => unsupported(format!("{op} of integers or booleans")),
            _ => Ok(()),
        }
    }

    /// Whether output number `i` is wanted.
    pub(crate) fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).is_some_and(|name| !name.is_empty())
    }

    /// The outputs under their names.
    fn results(&self, outputs: Vec<Array<f32>>) -> Results {
        self.outputs.iter().cloned().zip(outputs).collect()
    }
}

/// Runs a case of ONNX's suite.
pub(crate) async fn run(session: &Session, case: &Case) -> Outcome<Results> {
    let node = Node::new(case)?;
    let op = case.text("op")?;
    let Some(known) = attributes_of(op) else { return unsupported(format!("operator {op}")) };
    node.attributes.expect(known)?;
    node.expect_floats(op)?;
    let outputs = match op {
        "Attention" => onnx_attention::attention(session, &node).await?,
        "LayerNormalization" => onnx_norm::normalization(session, &node, NormKind::Layer).await?,
        "RMSNormalization" => onnx_norm::normalization(session, &node, NormKind::Rms).await?,
        "Softmax" => vec![softmax(session, &node).await?],
        "Gelu" => vec![gelu(session, &node).await?],
        "Relu" => vec![kernels::activation(session, node.float(0)?, Activation::Relu).await?],
        "MatMul" => vec![mat_mul(session, node.float(0)?, node.float(1)?).await?],
        "Gemm" => vec![gemm(session, &node).await?],
        "Gather" => vec![gather(session, &node).await?],
        "RotaryEmbedding" => vec![rotary(session, &node).await?],
        "SwiGLU" => vec![swi_glu(session, &node).await?],
        other => return unsupported(format!("operator {other}")),
    };
    Ok(node.results(outputs))
}

/// The attributes of an operator that are read, and those that change nothing here; none for an operator that is not known.
fn attributes_of(op: &str) -> Option<&'static [&'static str]> {
    Some(match op {
        "Attention" => &[
            "is_causal",
            "kv_num_heads",
            "left_window_size",
            "q_num_heads",
            "qk_matmul_output_mode",
            "right_window_size",
            "scale",
            "softcap",
            "softmax_precision",
        ],
        "LayerNormalization" | "RMSNormalization" => &["axis", "epsilon", "stash_type"],
        "Softmax" | "Gather" => &["axis"],
        "Gelu" => &["approximate"],
        // Of old: memory that the result may use.
        "Relu" => &["consumed_inputs"],
        "MatMul" => &[],
        // Of old: leave to repeat C.
        "Gemm" => &["alpha", "beta", "broadcast", "transA", "transB"],
        // The caches have as many columns as `rotary_embedding_dim` turns.
        "RotaryEmbedding" => &["interleaved", "num_heads", "rotary_embedding_dim"],
        "SwiGLU" => &["alpha"],
        _ => return None,
    })
}

/// a · sigmoid(alpha · a) · b, as silu(alpha · a) · (b / alpha); the sigmoid of 0 is ½.
async fn swi_glu(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let (a, b, alpha) = (node.float(0)?, node.float(1)?, node.attributes.float("alpha")?.unwrap_or(1.0));
    if alpha == 1.0 {
        return kernels::gate(session, a, b, Activation::Silu).await;
    }
    // What the factor makes of an operand may be beyond f16.
    let session = &session.stored(Element::F32);
    if alpha == 0.0 {
        return kernels::gate(session, a, &b.map(|v| 0.5 * v), Activation::Identity).await;
    }
    kernels::gate(session, &a.map(|v| alpha * v), &b.map(|v| v / alpha), Activation::Silu).await
}

/// Heads turned by positions, which are ids into the caches of cosines and sines, or the rows themselves.
async fn rotary(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let (x, cos, sin) = (node.float(0)?, node.float(1)?, node.float(2)?);
    // (B, NH, T, HS), or (B, T, NH · HS) with the number of heads as an attribute
    let rows = match x.sizes() {
        &[_, _, _, _] => x.swap(1, 2)?,
        &[batch, t, width] => match node.attributes.int("num_heads")?.map(usize::try_from) {
            Some(Ok(heads)) if heads > 0 && width.is_multiple_of(heads) => {
                x.clone().reshape(&[batch, t, heads, width / heads])?
            }
            other => return failed(format!("num_heads: {other:?} for {:?}", x.sizes())),
        },
        other => return failed(format!("input: expected 3 or 4 dimensions, found {other:?}")),
    };
    let &[batch, t, heads, size] = rows.sizes() else { return failed("input: 4 dimensions") };
    let half = cos.columns();
    // Positions and caches of one sequence are those of all.
    let over_rows = |cache: &Array<f32>| cache.broadcast(&[batch, t, half])?.reshape(&[batch * t, half]);
    let (positions, cos, sin) = match node.input(3)? {
        Some(Value::Int(ids)) => (ids.broadcast(&[batch, t])?.values().to_vec(), cos.clone(), sin.clone()),
        Some(_) => return failed("position_ids: expected integers"),
        None => ((0..(batch * t) as i64).collect(), over_rows(cos)?, over_rows(sin)?),
    };
    let positions = positions.iter().map(|&p| u32::try_from(p).map_err(|e| Stop::Failed(format!("position {p}: {e}"))));
    let positions = positions.collect::<Outcome<Vec<u32>>>()?;
    let [caches, _] = cos.dims("cos_cache")?;
    if sin.sizes() != cos.sizes() || half == 0 {
        return failed(format!("cos_cache and sin_cache: {:?} and {:?}", cos.sizes(), sin.sizes()));
    }
    let pairs = cos.values().chunks(half).zip(sin.values().chunks(half));
    let table = Array::new(&[caches, 2 * half], pairs.flat_map(|(c, s)| [c, s].concat()).collect())?;
    let order = if node.attributes.flag("interleaved")? { RotaryOrder::Interleaved } else { RotaryOrder::Halves };
    let turned = kernels::rotary(session, &rows.reshape(&[batch * t, heads, size])?, &table, order, positions).await?;
    let y = turned.reshape(&[batch, t, heads, size])?;
    if x.sizes().len() == 4 { y.swap(1, 2) } else { y.reshape(x.sizes()) }
}

/// Before opset 13 all dimensions from the axis on are one.
async fn softmax(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let x = node.float(0)?;
    let wanted = node.attributes.int("axis")?;
    if node.opset >= 13 {
        return kernels::softmax_over(session, x, wanted.unwrap_or(-1)).await;
    }
    let (outer, inner) = x.sizes().split_at(axis(wanted.unwrap_or(1), x.sizes().len())?);
    let flat = x.clone().reshape(&[outer.iter().product(), inner.iter().product()])?;
    kernels::softmax(session, &flat).await?.reshape(x.sizes())
}

async fn gelu(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let kind = match node.attributes.text("approximate")?.unwrap_or("none") {
        "none" => Activation::Gelu,
        "tanh" => Activation::GeluTanh,
        other => return failed(format!("approximate: expected none or tanh, found {other}")),
    };
    kernels::activation(session, node.float(0)?, kind).await
}

/// numpy's matmul: operands of one dimension are a row and a column, leading dimensions are batches and broadcast.
async fn mat_mul(session: &Session, a: &Array<f32>, b: &Array<f32>) -> Outcome<Array<f32>> {
    let row = a.sizes().len() == 1;
    let a = if row { a.clone().with_rank(2)? } else { a.clone() };
    let column = b.sizes().len() == 1;
    let b = if column { b.clone().with_rank(2)?.swap(0, 1)? } else { b.clone() };
    let (&[ref a_batch @ .., m, k], &[ref b_batch @ .., inner, n]) = (a.sizes(), b.sizes()) else {
        return failed("a product of scalars");
    };
    let weight = b.swap(b_batch.len(), b_batch.len() + 1)?;
    let mut sizes = common_sizes(a_batch, b_batch)?;
    let product = if b_batch.is_empty() {
        kernels::project(session, &a, &weight, None).await?
    } else {
        let count = sizes.iter().product();
        let a = a.broadcast(&[&sizes[..], &[m, k]].concat())?.reshape(&[count, m, k])?;
        let weight = weight.broadcast(&[&sizes[..], &[n, inner]].concat())?.reshape(&[count, n, inner])?;
        kernels::linear(session, &a, &weight, Epilogue::default()).await?
    };
    sizes.extend((!row).then_some(m));
    sizes.extend((!column).then_some(n));
    product.reshape(&sizes)
}

/// alpha · A'B' + beta · C, where C repeats to the product's sizes. The factors are applied to A and C beforehand.
async fn gemm(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let turned = |array: &Array<f32>, turn: bool| if turn { array.swap(0, 1) } else { Ok(array.clone()) };
    let alpha = node.attributes.float("alpha")?.unwrap_or(1.0);
    let beta = node.attributes.float("beta")?.unwrap_or(1.0);
    let a = turned(node.float(0)?, node.attributes.flag("transA")?)?.map(|v| alpha * v);
    let weight = turned(node.float(1)?, !node.attributes.flag("transB")?)?;
    let ([m, k], [n, inner]) = (a.dims("A")?, weight.dims("B")?);
    let c = node.optional(2)?.filter(|_| beta != 0.0).map(|c| c.map(|v| beta * v));
    let is_row = |c: &Array<f32>| matches!(c.sizes(), [] | [_] | [1, _]);
    let (bias, residual) = match c {
        None => (None, None),
        Some(c) if is_row(&c) => (Some(c.broadcast(&[1, n])?), None),
        Some(c) => (None, Some(c.broadcast(&[m, n])?)),
    };
    let epilogue = Epilogue { bias: bias.as_ref(), residual: residual.as_ref() };
    let (a, weight) = (a.reshape(&[1, m, k])?, weight.reshape(&[1, n, inner])?);
    kernels::linear(session, &a, &weight, epilogue).await?.reshape(&[m, n])
}

/// Slices of the data along an axis, by indices of any rank that may be counted from the end.
async fn gather(session: &Session, node: &Node<'_>) -> Outcome<Array<f32>> {
    let data = node.float(0)?;
    let Some(Value::Int(indices)) = node.input(1)? else { return failed("indices: expected integers") };
    let at = axis(node.attributes.int("axis")?.unwrap_or(0), data.sizes().len())?;
    let mut order: Vec<usize> = (0..data.sizes().len()).collect();
    order.remove(at);
    order.insert(0, at);
    let table = data.permute(&order)?;
    let (rows, rest) = (data.sizes()[at], table.sizes()[1..].to_vec());
    let table = table.reshape(&[rows, rest.iter().product()])?;
    let ids = indices.map(|i| if i < 0 { i + rows as i64 } else { i });
    let found = kernels::embedding(session, &table, ids.values()).await?.reshape(&[indices.sizes(), &rest].concat())?;
    // The dimensions of the indices go where the axis was.
    let rank = indices.sizes().len();
    let order = (rank..rank + at).chain(0..rank).chain(rank + at..rank + rest.len());
    found.permute(&order.collect::<Vec<_>>())
}
