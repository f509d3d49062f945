//! ONNX's `Attention`: heads that are projected already, with past, masks, windows and the scores as an output.

use tileformer::{AttentionOptions, Element, Sequences};

use super::attention::{Heads, MaskValues, Visible};
use super::case::Value;
use super::gpu::Session;
use super::host::Array;
use super::judge::{Outcome, failed, unsupported};
use super::onnx::Node;

/// Y, present key, present value and, where wanted, the output of Q·Kᵀ.
pub(crate) async fn attention(session: &Session, node: &Node<'_>) -> Outcome<Vec<Array<f32>>> {
    let (q, k, v) = (node.float(0)?, node.float(1)?, node.float(2)?);
    let flat = q.sizes().len() == 3;
    let heads = |name: &str| if flat { node.attributes.size(name) } else { Ok(0) };
    let (n_heads, n_kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let k = split_heads(k, n_kv_heads)?;
    let v = split_heads(v, n_kv_heads)?;
    let past = [node.optional(4)?, node.optional(5)?];
    if past[0].is_some() != past[1].is_some() {
        return failed("past_key and past_value belong together");
    }
    let past_length = past[0].and_then(|p| p.sizes().get(2).copied()).unwrap_or(0);
    let (k, v) = (behind(past[0], k)?, behind(past[1], v)?);
    let heads = Heads { q: split_heads(q, n_heads)?, k, v };

    heads.check()?;
    check_precision(session, node)?;
    let visible = visible(node, &heads, past_length)?;
    let attended = heads.attend(session, &visible).await?;
    let y = match flat {
        true => join_heads(attended.y)?,
        false => attended.y.swap(1, 2)?,
    };
    let mut outputs = vec![y, heads.k.swap(1, 2)?, heads.v.swap(1, 2)?];
    if node.wants(3) {
        let options = visible.options();
        outputs.push(match node.attributes.int("qk_matmul_output_mode")?.unwrap_or(0) {
            0 => heads.raw_scores(session, &AttentionOptions { softcap: None, ..options }).await?,
            1 => heads.raw_scores(session, &options).await?,
            2 => attended.scores,
            3 => attended.weights,
            mode => return failed(format!("qk_matmul_output_mode: expected 0 to 3, found {mode}")),
        });
    }
    Ok(outputs)
}

/// Leaves out a softmax of less precision than ours, which is f32: f16 (10) unless operands are f16 anyway, and bf16 (16).
fn check_precision(session: &Session, node: &Node<'_>) -> Outcome<()> {
    match node.attributes.int("softmax_precision")? {
        None | Some(1 | 11) => Ok(()),
        Some(10) if session.storage() == Element::F16 => Ok(()),
        Some(precision @ (10 | 16)) => unsupported(format!("softmax_precision {precision}")),
        Some(other) => failed(format!("softmax_precision: expected 1, 10, 11 or 16, found {other}")),
    }
}

/// (B, T, heads · size) or (B, heads, T, size) -> (B, T, heads, size)
fn split_heads(x: &Array<f32>, heads: usize) -> Outcome<Array<f32>> {
    match *x.sizes() {
        [_, _, _, _] => x.swap(1, 2),
        [batch, rows, width] if heads > 0 && width.is_multiple_of(heads) => {
            x.clone().reshape(&[batch, rows, heads, width / heads])
        }
        _ => failed(format!("{:?} does not split into {heads} heads", x.sizes())),
    }
}

/// (B, T, heads, size) -> (B, T, heads · size)
fn join_heads(x: Array<f32>) -> Outcome<Array<f32>> {
    let [batch, rows, heads, size] = x.dims("Y")?;
    x.reshape(&[batch, rows, heads * size])
}

/// The rows (B, S, heads, size) behind a past of (B, heads, P, size).
fn behind(past: Option<&Array<f32>>, rows: Array<f32>) -> Outcome<Array<f32>> {
    let Some(past) = past else { return Ok(rows) };
    past.dims::<4>("past")?;
    Array::concat(&[&past.swap(1, 2)?, &rows], 1)
}

/// Scale, softcap, causal order, windows, lengths and masks of the node.
fn visible(node: &Node<'_>, heads: &Heads, past_length: usize) -> Outcome<Visible> {
    let [batch, queries, n_heads, _] = heads.q.dims("Q")?;
    let [_, keys, ..] = heads.k.dims::<4>("K")?;
    let window = |name: &str| match node.attributes.int(name)?.unwrap_or(-1) {
        -1 => Ok(None),
        width => match u32::try_from(width) {
            Ok(width) => Ok(Some(width)),
            Err(_) => failed(format!("{name}: expected -1 or a width, found {width}")),
        },
    };
    let options = AttentionOptions {
        scale: node.attributes.float("scale")?,
        softcap: node.attributes.float("softcap")?.filter(|&cap| cap > 0.0),
        causal: node.attributes.flag("is_causal")?,
        window_left: window("left_window_size")?,
        window_right: window("right_window_size")?,
        ..AttentionOptions::default()
    };
    let sequences = match node.input(6)? {
        None => Sequences::cross(batch, queries, &vec![keys; batch], keys)?.with_offset(past_length as i32),
        Some(Value::Int(_)) if past_length > 0 => return failed("nonpad_kv_seqlen and a past exclude each other"),
        Some(Value::Int(lengths)) => padded(lengths, [batch, queries, keys])?,
        Some(_) => return failed("nonpad_kv_seqlen: expected integers"),
    };
    let mask = node.input(3)?.map(|mask| mask_values(mask, [batch, n_heads, queries, keys])).transpose()?;
    Ok(Visible::all([batch, queries, keys], options)?.with_sequences(sequences).with_mask(mask))
}

/// Sequences of which only the first `lengths` keys count; the last query stands at the last of them.
fn padded(lengths: &Array<i64>, [batch, queries, keys]: [usize; 3]) -> Outcome<Sequences> {
    if lengths.values().len() != batch {
        return failed(format!("nonpad_kv_seqlen: expected {batch} lengths, found {:?}", lengths.sizes()));
    }
    let counted: Vec<usize> = lengths.values().iter().map(|&n| n.clamp(0, keys as i64) as usize).collect();
    let mut items = Sequences::cross(batch, queries, &counted, keys)?.as_slice().to_vec();
    for (item, &length) in items.iter_mut().zip(lengths.values()) {
        let offset = length.saturating_sub(queries as i64);
        item.offset = match i32::try_from(offset) {
            Ok(offset) => offset,
            Err(_) => return failed(format!("nonpad_kv_seqlen: expected lengths, found {length}")),
        };
    }
    Ok(Sequences::new(items)?)
}

/// A mask that repeats to (B, NH, T, S); keys behind its end are hidden.
fn mask_values(mask: &Value, [batch, n_heads, queries, keys]: [usize; 4]) -> Outcome<MaskValues> {
    fn fitted<T: Copy>(mask: &Array<T>, sizes: &[usize; 4], fill: T) -> Outcome<Array<T>> {
        let mask = mask.pad_last(sizes[3], fill)?.with_rank(4)?;
        mask.broadcast(sizes)?;
        Ok(mask)
    }
    let sizes = [batch, n_heads, queries, keys];
    match mask {
        Value::Bool(mask) => Ok(MaskValues::Boolean(fitted(mask, &sizes, false)?)),
        Value::Float(mask) => Ok(MaskValues::Additive(fitted(mask, &sizes, f32::NEG_INFINITY)?)),
        Value::Int(_) | Value::Other(_) => failed("attn_mask: expected booleans or floats"),
    }
}
