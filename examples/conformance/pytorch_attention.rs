//! PyTorch's sequence layouts and masks, and `MultiheadAttention`.

use tileformer::layers::{Inputs, MultiHeadAttention, Projection};
use tileformer::{AttentionOptions, BatchShape};

use super::attention::{Heads, MaskValues, Visible};
use super::case::{Case, Value};
use super::gpu::{Feeds, Session};
use super::host::{Array, common_sizes};
use super::judge::{Outcome, Results, failed, unsupported};
use super::kernels;

/// How a module lays its sequences out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// (T, C)
    Unbatched,
    /// (B, T, C)
    BatchFirst,
    /// (T, B, C)
    SequenceFirst,
}

impl Order {
    /// The order of `x`, in a module with this `batch_first`.
    pub(crate) fn of(x: &Array<f32>, batch_first: bool) -> Outcome<Self> {
        match (x.sizes().len(), batch_first) {
            (2, _) => Ok(Self::Unbatched),
            (3, true) => Ok(Self::BatchFirst),
            (3, false) => Ok(Self::SequenceFirst),
            _ => failed(format!("expected sequences of 2 or 3 dimensions, found {:?}", x.sizes())),
        }
    }

    /// As (B, T, C).
    pub(crate) fn batched(self, x: &Array<f32>) -> Outcome<Array<f32>> {
        let expected = if self == Self::Unbatched { 2 } else { 3 };
        if x.sizes().len() != expected {
            return failed(format!("expected sequences of {expected} dimensions, found {:?}", x.sizes()));
        }
        match self {
            Self::Unbatched => x.clone().with_rank(3),
            Self::BatchFirst => Ok(x.clone()),
            Self::SequenceFirst => x.swap(0, 1),
        }
    }

    /// (B, T, C) as the module lays it out.
    pub(crate) fn restored(self, y: Array<f32>) -> Outcome<Array<f32>> {
        match self {
            Self::Unbatched => self.unbatched(y),
            Self::BatchFirst => Ok(y),
            Self::SequenceFirst => y.swap(0, 1),
        }
    }

    /// Without the first dimension, where the module has no batch.
    fn unbatched(self, y: Array<f32>) -> Outcome<Array<f32>> {
        if self != Self::Unbatched {
            return Ok(y);
        }
        let sizes = y.sizes().get(1..).unwrap_or_default().to_vec();
        y.reshape(&sizes)
    }
}

/// The masks of one attention. In PyTorch's boolean masks true is *not* attended; floats are added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masks<'a> {
    /// (T, S), or (B · NH, T, S)
    pub(crate) attention: Option<&'a Value>,
    /// (B, S), or (S)
    pub(crate) padding: Option<&'a Value>,
    /// The hint that the attention mask is the causal one.
    pub(crate) causal: bool,
    /// With attention weights as an output the hint is not used.
    pub(crate) needs_weights: bool,
}

impl Masks<'_> {
    /// What queries see, with `appended` keys behind the S that the masks speak of. Those are never masked.
    pub(crate) fn visible(&self, [batch, n_heads, queries, keys]: [usize; 4], appended: usize) -> Outcome<Visible> {
        // With the hint PyTorch leaves the mask unread, unless keys are padded or weights are wanted.
        let causal = self.causal && self.padding.is_none() && !self.needs_weights;
        let all = keys + appended;
        let attention = match self.attention.filter(|_| !causal) {
            None => None,
            Some(Value::Bool(mask)) => {
                let mask = over_heads(&mask.map(|hidden| !hidden), [batch, n_heads, queries, keys])?;
                Some(MaskValues::Boolean(mask.pad_last(all, true)?))
            }
            Some(Value::Float(mask)) => {
                let mask = over_heads(mask, [batch, n_heads, queries, keys])?;
                Some(MaskValues::Additive(mask.pad_last(all, 0.0)?))
            }
            Some(Value::Int(_) | Value::Other(_)) => return failed("attention mask: expected booleans or floats"),
        };
        let (key_mask, mask) = match self.padding {
            None => (None, attention),
            Some(Value::Bool(padding)) => {
                let attended = over_keys(padding, [batch, keys])?.map(|hidden| !hidden);
                (Some(attended.pad_last(all, true)?), attention)
            }
            Some(Value::Float(padding)) => {
                let padding = over_keys(padding, [batch, keys])?.pad_last(all, 0.0)?.reshape(&[batch, 1, 1, all])?;
                (None, Some(MaskValues::Additive(added(attention, padding)?)))
            }
            Some(Value::Int(_) | Value::Other(_)) => return failed("key padding mask: expected booleans or floats"),
        };
        let options = AttentionOptions { causal, ..AttentionOptions::default() };
        Ok(Visible::all([batch, queries, all], options)?.with_key_mask(key_mask).with_mask(mask))
    }
}

/// An attention mask over (B, NH, T, S).
fn over_heads<T: Copy>(mask: &Array<T>, [batch, n_heads, queries, keys]: [usize; 4]) -> Outcome<Array<T>> {
    let heads = batch.saturating_mul(n_heads);
    match *mask.sizes() {
        [t, s] if (t, s) == (queries, keys) => mask.clone().with_rank(4),
        [n, t, s] if (n, t, s) == (heads, queries, keys) => mask.clone().reshape(&[batch, n_heads, t, s]),
        _ => failed(format!(
            "attention mask: expected [{queries}, {keys}] or [{heads}, {queries}, {keys}], found {:?}",
            mask.sizes()
        )),
    }
}

/// A key padding mask over (B, S).
fn over_keys<T: Copy>(mask: &Array<T>, [batch, keys]: [usize; 2]) -> Outcome<Array<T>> {
    let found = mask.sizes().to_vec();
    match mask.clone().with_rank(2) {
        Ok(mask) if mask.sizes() == [batch, keys] => Ok(mask),
        _ => failed(format!("key padding mask: expected [{batch}, {keys}], found {found:?}")),
    }
}

/// An attention mask and a padding mask that is added to it.
fn added(attention: Option<MaskValues>, padding: Array<f32>) -> Outcome<Array<f32>> {
    let attention = match attention {
        None => return Ok(padding),
        Some(MaskValues::Boolean(mask)) => mask.map(|attended| if attended { 0.0 } else { f32::NEG_INFINITY }),
        Some(MaskValues::Additive(mask)) => mask,
    };
    let sizes = common_sizes(attention.sizes(), padding.sizes())?;
    let pairs = std::iter::zip(attention.broadcast(&sizes)?.values().to_vec(), padding.broadcast(&sizes)?.values().to_vec());
    Array::new(&sizes, pairs.map(|(a, b)| a + b).collect())
}

/// `MultiheadAttention`: output 0 is the attention, output 1 its weights.
pub(crate) async fn multi_head_attention(session: &Session, case: &Case) -> Outcome<Results> {
    let (attributes, call) = (case.attributes("attrs")?, case.attributes("call")?);
    let order = Order::of(case.float("in.query")?, attributes.flag("batch_first")?)?;
    let inputs = Attention {
        session,
        case,
        spec: spec(case, attributes.size("embed_dim")?, attributes.size("num_heads")?)?,
        rows: [
            order.batched(case.float("in.query")?)?,
            order.batched(case.float("in.key")?)?,
            order.batched(case.float("in.value")?)?,
        ],
        masks: Masks {
            attention: case.get("in.attn_mask"),
            padding: case.get("in.key_padding_mask"),
            causal: call.flag("is_causal")?,
            needs_weights: call.flag("need_weights")?,
        },
    };
    let zeros = attributes.flag("add_zero_attn")?;
    let (y, weights) = match case.get("w.bias_k").is_some() || zeros {
        true => inputs.with_appended_keys(zeros).await?,
        false => inputs.layer().await?,
    };
    let mut results = vec![("0".to_owned(), order.restored(y)?)];
    if inputs.masks.needs_weights {
        let averaged = call.flag("average_attn_weights")?;
        let weights = if averaged { weights.mean_over_heads()? } else { weights };
        results.push(("1".to_owned(), order.unbatched(weights)?));
    }
    Ok(results)
}

/// The configuration, of which the file's weights tell a part.
fn spec(case: &Case, d_model: usize, n_heads: usize) -> Outcome<MultiHeadAttention> {
    let mut spec = MultiHeadAttention::new(d_model, n_heads);
    spec.bias = case.get("w.in_proj_bias").is_some();
    if case.get("w.in_proj_weight").is_none() {
        spec.projection = Projection::Separate;
        spec.k_width = case.float("w.k_proj_weight")?.columns();
        spec.v_width = case.float("w.v_proj_weight")?.columns();
    }
    Ok(spec)
}

/// One multi-head attention.
struct Attention<'a> {
    session: &'a Session,
    case: &'a Case,
    spec: MultiHeadAttention,
    /// (B, T, d_model), (B, S, k_width), (B, S, v_width)
    rows: [Array<f32>; 3],
    masks: Masks<'a>,
}

impl Attention<'_> {
    /// B, T and S.
    fn sizes(&self) -> Outcome<[usize; 3]> {
        let [query, key, value] = &self.rows;
        let [batch, queries, _] = query.dims("query")?;
        let [_, keys, _] = key.dims("key")?;
        for (name, rows) in [("key", key), ("value", value)] {
            if rows.sizes()[..2] != [batch, keys] {
                return failed(format!("{name}: expected {batch} sequences of {keys}, found {:?}", rows.sizes()));
            }
        }
        if self.rows.iter().any(Array::is_empty) {
            return unsupported("attention over a dimension of size 0");
        }
        Ok([batch, queries, keys])
    }

    /// The layer's own program -> (B, T, d_model), (B, NH, T, S)
    async fn layer(&self) -> Outcome<(Array<f32>, Array<f32>)> {
        let [batch, queries, keys] = self.sizes()?;
        let [query, key, value] = &self.rows;
        let sizes = [batch, self.spec.n_heads, queries, keys];
        let visible = self.masks.visible(sizes, 0)?;
        if self.case.expects_nan() && visible.hides_all(sizes)? {
            return unsupported("NaN of rows that see no key, which are zeros here");
        }
        let spec = MultiHeadAttention { options: visible.options(), ..self.spec.clone() };
        let shape = BatchShape::cross(batch, queries, keys);
        let inputs = Inputs {
            mask: visible.mask_layout()?,
            ..Inputs::new(shape).with_storage(self.session.storage()).with_attention_weights()
        };
        let kernels = self.session.kernels();
        let program = match key == query && value == query {
            true => spec.program(kernels, &inputs)?,
            false => spec.cross_program(kernels, &inputs)?,
        };
        let mut feeds = Feeds::with_weights(self.case, "");
        feeds.f32("x", query).f32("memory_k", key).f32("memory_v", value);
        visible.feed(&mut feeds, "");
        let written = self.session.run(&program, &feeds).await?;
        Ok((written.get("y")?.reshape(query.sizes())?, written.get("weights")?))
    }

    /// With keys and values appended behind the projections: `bias_k` and `bias_v`, then zeros.
    async fn with_appended_keys(&self, zeros: bool) -> Outcome<(Array<f32>, Array<f32>)> {
        let [batch, queries, keys] = self.sizes()?;
        let [q, mut k, mut v] = self.projected().await?;
        let mut appended = 0;
        if let Some(bias_k) = self.case.optional("w.bias_k")? {
            k = with_row(&k, bias_k)?;
            v = with_row(&v, self.case.float("w.bias_v")?)?;
            appended += 1;
        }
        if zeros {
            let zero = Array::new(&[1, 1, 1], vec![0.0])?;
            (k, v) = (with_row(&k, &zero)?, with_row(&v, &zero)?);
            appended += 1;
        }
        let n_heads = self.spec.n_heads;
        let visible = self.masks.visible([batch, n_heads, queries, keys], appended)?;
        let split = |x: Array<f32>, rows: usize| match x.columns().checked_rem(n_heads) {
            Some(0) => {
                let size = x.columns() / n_heads;
                x.reshape(&[batch, rows, n_heads, size])
            }
            _ => failed(format!("{} columns do not split into {n_heads} heads", x.columns())),
        };
        let heads = Heads { q: split(q, queries)?, k: split(k, keys + appended)?, v: split(v, keys + appended)? };
        let attended = heads.attend(self.session, &visible).await?;
        let y = attended.y.reshape(&[batch, queries, self.spec.d_model])?;
        let (weight, bias) = (self.case.float("w.out_proj.weight")?, self.case.optional("w.out_proj.bias")?);
        Ok((kernels::project(self.session, &y, weight, bias).await?, attended.weights))
    }

    /// Queries, keys and values (B, ·, d_model).
    async fn projected(&self) -> Outcome<[Array<f32>; 3]> {
        let d_model = self.spec.d_model;
        let part = async |i: usize| {
            let weight = match self.spec.projection {
                Projection::Stacked => self.case.float("w.in_proj_weight")?.narrow(d_model.saturating_mul(i), d_model)?,
                Projection::Separate => {
                    self.case.float(["w.q_proj_weight", "w.k_proj_weight", "w.v_proj_weight"][i])?.clone()
                }
            };
            let bias =
                self.case.optional("w.in_proj_bias")?.map(|b| b.narrow(d_model.saturating_mul(i), d_model)).transpose()?;
            kernels::project(self.session, &self.rows[i], &weight, bias.as_ref()).await
        };
        Ok([part(0).await?, part(1).await?, part(2).await?])
    }
}

/// Rows (B, S, C) with one more row behind each sequence, the same for all.
fn with_row(rows: &Array<f32>, row: &Array<f32>) -> Outcome<Array<f32>> {
    let [batch, _, columns] = rows.dims("projected rows")?;
    Array::concat(&[rows, &row.broadcast(&[batch, 1, columns])?], 1)
}
