use super::*;
use crate::spec::layers::{Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, MultiHeadAttention, Projection, Score};
use crate::spec::{AttentionOptions, Mask, Sequences};

/// Weights that own their numbers: every one differs, none is large.
#[derive(Default)]
struct Made {
    all: Vec<(String, Vec<usize>, Vec<f64>)>,
}

impl Made {
    fn add(&mut self, name: &str, sizes: &[usize]) {
        let seed = self.all.len() as f64;
        let data = (0..sizes.iter().product()).map(|i: usize| (1.7 * seed + 0.61 * i as f64).sin() / 2.0).collect();
        self.all.push((name.into(), sizes.to_vec(), data));
    }

    fn set(&mut self, name: &str, sizes: &[usize], data: &[f64]) {
        self.all.push((name.into(), sizes.to_vec(), data.to_vec()));
    }

    fn get(&self, name: &str) -> &[f64] {
        self.all.iter().find(|(n, ..)| n == name).map_or(&[], |(.., data)| data)
    }

    fn attention(&mut self, prefix: &str, d: usize) {
        self.add(&format!("{prefix}in_proj_weight"), &[3 * d, d]);
        self.add(&format!("{prefix}in_proj_bias"), &[3 * d]);
        self.add(&format!("{prefix}out_proj.weight"), &[d, d]);
        self.add(&format!("{prefix}out_proj.bias"), &[d]);
    }

    fn layer(&mut self, prefix: &str, d: usize, d_ff: usize, attentions: &[&str]) {
        for name in attentions {
            self.attention(&format!("{prefix}{name}."), d);
        }
        self.add(&format!("{prefix}linear1.weight"), &[d_ff, d]);
        self.add(&format!("{prefix}linear1.bias"), &[d_ff]);
        self.add(&format!("{prefix}linear2.weight"), &[d, d_ff]);
        self.add(&format!("{prefix}linear2.bias"), &[d]);
        for n in 1..=attentions.len() + 1 {
            self.add(&format!("{prefix}norm{n}.weight"), &[d]);
            self.add(&format!("{prefix}norm{n}.bias"), &[d]);
        }
    }

    fn weights(&self) -> Result<Weights<'_, f64>> {
        let mut weights = Weights::new();
        for (name, sizes, data) in &self.all {
            weights.insert(name, sizes, data)?;
        }
        Ok(weights)
    }
}

fn rows(n: usize) -> Vec<f64> {
    (0..n).map(|i| (0.37 * i as f64).cos()).collect()
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-12, "{found:?} is not {expected:?}");
    }
}

#[test]
fn weights_are_named_in_errors() -> Result<()> {
    let made = Made::default();
    let sequences = Sequences::padded(&[2], 2)?;
    let batch = Batch::new(sequences.shape(), sequences.as_slice());
    let run = |weights: &Weights<'_, f64>, x: &[f64]| {
        encoder_layer(&EncoderLayer::new(4, 2, 8), weights, "layers.0.", x, &batch).map(drop).map_err(|e| e.to_string())
    };
    let missing = "layers.0.self_attn.in_proj_weight: not bound; this program needs [12, 4]";
    assert_eq!(run(&made.weights()?, &rows(8)), Err(missing.into()));
    let data = rows(16);
    let mut weights = Weights::new();
    weights.insert("layers.0.self_attn.in_proj_weight", &[4, 4], &data)?;
    let other = "layers.0.self_attn.in_proj_weight: expected [12, 4], found [4, 4]";
    assert_eq!(run(&weights, &rows(8)), Err(other.into()));
    assert_eq!(run(&weights, &rows(7)), Err("x: expected 8 elements [2, 4], found 7 elements".into()));
    assert!(Weights::new().insert("w", &[2], &data).is_err());
    Ok(())
}

/// Separate projections of the stacked one's rows give the same; identity score weights give the plain dot product.
#[test]
fn projections_and_scores_agree() -> Result<()> {
    let (d, n) = (4, 16);
    let mut made = Made::default();
    made.attention("", d);
    let stacked = made.get("in_proj_weight").to_vec();
    for (i, name) in ["q_proj_weight", "k_proj_weight", "v_proj_weight"].iter().enumerate() {
        made.set(name, &[d, d], &stacked[i * n..(i + 1) * n]);
    }
    let identity: Vec<f64> = (0..n).map(|i| if i / d == i % d { 1.0 } else { 0.0 }).collect();
    made.set("score_weight", &[d, d], &identity);
    let weights = made.weights()?;
    let sequences = Sequences::padded(&[3, 2], 3)?;
    let batch = Batch::new(sequences.shape().to_self(), sequences.as_slice());
    let x = rows(6 * d);
    let run = |spec: &MultiHeadAttention| multi_head_attention(spec, &weights, "", &x, &x, &x, &batch);

    let spec = MultiHeadAttention::new(d, 2);
    let (y, probs) = run(&spec)?;
    assert_eq!((y.len(), probs.len()), (6 * d, 2 * 2 * 3 * 3));
    let separate = MultiHeadAttention { projection: Projection::Separate, ..spec.clone() };
    assert_eq!(run(&separate)?, (y.clone(), probs.clone()));
    let scale = Some(spec.options.scale_for(2));
    let general =
        MultiHeadAttention { score: Score::General, options: AttentionOptions { scale, ..Default::default() }, ..spec };
    assert_eq!(run(&general)?, (y, probs));
    Ok(())
}

/// One query, two keys, everything 1 by 1.
#[test]
fn an_additive_score_by_hand() -> Result<()> {
    let mut made = Made::default();
    made.set("in_proj_weight", &[3, 1], &[2.0, 3.0, 5.0]);
    made.set("out_proj.weight", &[1, 1], &[7.0]);
    made.set("score_query_weight", &[1, 1], &[0.5]);
    made.set("score_key_weight", &[1, 1], &[-0.25]);
    made.set("score_vector", &[1, 1], &[1.5]);
    let spec = MultiHeadAttention { bias: false, score: Score::Additive { width: 1 }, ..MultiHeadAttention::new(1, 1) };
    let sequences = Sequences::cross(1, 1, &[2], 2)?;
    let batch = Batch::new(sequences.shape(), sequences.as_slice());
    let (x, memory) = ([0.3], [0.4, -0.8]);
    let (y, probs) = multi_head_attention(&spec, &made.weights()?, "", &x, &memory, &memory, &batch)?;
    let e = |k: f64| (1.5 * (0.5 * 2.0 * 0.3 - 0.25 * 3.0 * k).tanh()).exp();
    let (a, b) = (e(0.4), e(-0.8));
    near(&probs, &[a / (a + b), b / (a + b)]);
    near(&y, &[7.0 * 5.0 * (0.4 * a - 0.8 * b) / (a + b)]);
    Ok(())
}

#[test]
fn placement_of_the_norms() -> Result<()> {
    let d = 4;
    let mut made = Made::default();
    made.layer("", d, 8, &["self_attn"]);
    let weights = made.weights()?;
    let sequences = Sequences::padded(&[3], 3)?;
    let batch = Batch::new(sequences.shape(), sequences.as_slice());
    let x = rows(3 * d);
    let mut spec = EncoderLayer::new(d, 2, 8);
    let attend = |x: &[f64]| Ok(multi_head_attention(&spec.attention, &weights, "self_attn.", x, x, x, &batch)?.0);
    let forward = |x: &[f64]| feed_forward(&spec.feed_forward, &weights, "", x, 3);
    let normed = |n: usize, x: &[f64]| norm(&spec.norm, &weights, &format!("norm{n}."), x, 3, d);
    let add = |a: &[f64], b: Vec<f64>| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };

    let half = normed(1, &add(&x, attend(&x)?))?;
    let post = normed(2, &add(&half, forward(&half)?))?;
    assert_eq!(encoder_layer(&spec, &weights, "", &x, &batch)?.0, post);

    let half = add(&x, attend(&normed(1, &x)?)?);
    let pre = add(&half, forward(&normed(2, &half)?)?);
    spec.placement = Placement::Pre;
    assert_eq!(encoder_layer(&spec, &weights, "", &x, &batch)?.0, pre);
    Ok(())
}

/// The last query of a causal encoder stack does not change the rows before it; a padding key, even NaN, changes none of
/// the rows that count; a packed batch gives the padded one's rows.
#[test]
fn what_a_row_depends_on() -> Result<()> {
    let d = 4;
    let mut made = Made::default();
    made.layer("layers.0.", d, 8, &["self_attn"]);
    made.layer("layers.1.", d, 8, &["self_attn"]);
    made.add("norm.weight", &[d]);
    made.add("norm.bias", &[d]);
    made.add("position_embedding.weight", &[3, d]);
    let weights = made.weights()?;
    let mut spec = Encoder::new(EncoderLayer::new(d, 2, 8), 2).with_final_norm(Norm::default());
    spec.positions_every_layer = Some(3);
    let run = |spec: &Encoder, sequences: &Sequences, x: &[f64]| {
        encoder(spec, &weights, "", x, &Batch::new(sequences.shape(), sequences.as_slice()))
    };
    let padded = Sequences::padded(&[2, 3], 3)?;
    let x = rows(6 * d);
    let (y, probs) = run(&spec, &padded, &x)?;
    assert_eq!((probs.len(), probs[0].len()), (2, 2 * 2 * 3 * 3));

    let mut holed = x.clone();
    holed[2 * d..3 * d].fill(f64::NAN);
    let (y_holed, _) = run(&spec, &padded, &holed)?;
    assert_eq!((&y[..2 * d], &y[3 * d..]), (&y_holed[..2 * d], &y_holed[3 * d..]));

    let packed = [&x[..2 * d], &x[3 * d..]].concat();
    let (y_packed, _) = run(&spec, &Sequences::packed(&[2, 3])?, &packed)?;
    assert_eq!(y_packed, [&y[..2 * d], &y[3 * d..]].concat());

    spec.layer.attention.options = AttentionOptions::causal();
    let mut last = x.clone();
    last[5 * d..].fill(9.0);
    assert_eq!(run(&spec, &padded, &x)?.0[..5 * d], run(&spec, &padded, &last)?.0[..5 * d]);
    assert!(run(&Encoder { n_layers: 0, ..spec }, &padded, &x).is_err());
    Ok(())
}

/// A decoder reads its memory through the cross-attention's masks, and one layer in a stack is that layer.
#[test]
fn a_decoder_and_its_memory() -> Result<()> {
    let d = 4;
    let mut made = Made::default();
    made.layer("layers.0.", d, 8, &["self_attn", "multihead_attn"]);
    let weights = made.weights()?;
    let mut layer = DecoderLayer::new(d, 2, 8);
    layer.cross_attention.options = AttentionOptions { key_mask: true, mask: Some(Mask::Boolean), ..Default::default() };
    let (own, memory) = (Sequences::padded(&[2], 2)?, Sequences::cross(1, 2, &[3], 4)?);
    let batch = Batch::new(own.shape(), own.as_slice());
    // query 0 sees key 0 alone, query 1 keys 0 and 1; key 2 is masked, key 3 beyond the length
    let mask = MaskValues::Boolean { sizes: [1, 1, 2, 4], values: &[1, 0, 1, 1, 1, 1, 1, 1] };
    let masks = AttentionMasks { key_mask: Some(&[1, 1, 0, 1]), mask: Some(mask) };
    let cross = Batch::new(BatchShape::cross(1, 2, 4), memory.as_slice()).with_masks(masks);
    let mut seen = rows(4 * d);
    seen[2 * d..].fill(f64::NAN);
    let x = rows(2 * d);
    let out = decoder_layer(&layer, &weights, "layers.0.", &x, &seen, &batch, &cross)?;
    assert!(out.y.iter().all(|y| y.is_finite()));
    for h in 0..2 {
        assert_eq!(out.self_probs[4 * h..4 * h + 2], [1.0, 0.0]);
        assert_eq!(out.cross_probs[8 * h..8 * h + 4], [1.0, 0.0, 0.0, 0.0]);
        near(&[out.cross_probs[8 * h + 4..8 * h + 6].iter().sum()], &[1.0]);
        assert_eq!(out.cross_probs[8 * h + 6..8 * h + 8], [0.0, 0.0]);
    }
    let stack = decoder(&Decoder::new(layer, 1), &weights, "", &x, &seen, &batch, &cross)?;
    assert_eq!((stack.y, &stack.cross_probs[0]), (out.y, &out.cross_probs));
    Ok(())
}

#[test]
fn an_embedding_with_its_norm() -> Result<()> {
    let mut made = Made::default();
    made.set("token_embedding.weight", &[2, 4], &[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    made.set("position_embedding.weight", &[2, 4], &[0.0; 8]);
    made.set("norm.weight", &[4], &[1.5; 4]);
    made.set("norm.bias", &[4], &[0.5; 4]);
    let spec = Embedding { positions: Some(2), norm: Some(Norm { eps: 0.0, ..Norm::default() }), ..Embedding::new(2, 4) };
    let y = embeddings(&spec, &made.weights()?, "", &[1], None, None)?;
    let outer = 1.5 * 1.5 / 1.25f64.sqrt();
    near(&y, &[0.5 - outer, 0.5 - outer / 3.0, 0.5 + outer / 3.0, 0.5 + outer]);
    // a foreign id is a row of zeros before the norm, and so the norm's bias
    let spec = Embedding { norm: Some(Norm::default()), ..spec };
    assert_eq!(embeddings(&spec, &made.weights()?, "", &[2], None, None)?, [0.5; 4]);
    Ok(())
}
