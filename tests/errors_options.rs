//! Refusals of options and sizes, by kernels, layers and batches: the right error, no panic, nothing on the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::refusals::{Case, Env, Tensors, layout};
use tileformer::kernels::{
    ActivationRows, AdditiveScores, Argmax, AttentionScores, AttentionValues, EmbeddingRows, LayerNorm, Linear,
    MaskedSoftmax, Visibility,
};
use tileformer::layers::{
    AttentionRows, Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, Inputs, MultiHeadAttention, Norm, Projection,
    Score,
};
use tileformer::spec::sinusoidal_positions;
use tileformer::{
    Activation, AttentionOptions, BatchShape, Element, Layout, Mask, Result, Sequence, Sequences, SinusoidOrder,
};

/// Names, parts and ends of programs.
#[test]
fn builders() {
    let cases: &[Case] = &[
        ("a name with another layout", "Shape", &["x", "[2, 3]", "[3, 2]"], |e| {
            let mut b = e.builder();
            b.f32("x", &[2, 3]);
            b.input("x", Element::F32, layout(&[3, 2])).map(drop)
        }),
        ("a name in another role", "Option", &["x", "Output of f32", "Input of f32"], |e| {
            let mut b = e.builder();
            b.f32("x", &[2, 3]);
            b.output("x", Element::F32, layout(&[2, 3])).map(drop)
        }),
        ("a name of another type", "Option", &["x", "Input of u32", "Input of f32"], |e| {
            let mut b = e.builder();
            b.f32("x", &[2, 3]);
            b.input("x", Element::U32, layout(&[2, 3])).map(drop)
        }),
        ("a tensor of another program", "Option", &["x", "\"refused\"", "another program"], |e| {
            let (mut a, mut b) = (e.builder(), e.builder());
            let (x, weight, y) = (a.f32("x", &[2, 4]), b.w("weight", &[3, 4]), b.out("y", &[2, 3]));
            b.linear("projection", &Linear::new(x, weight, y))
        }),
        ("a range past the end", "Option", &["range", "[2, 6]", "4..7 of dimension 1"], |e| {
            e.builder().f32("x", &[2, 6]).narrow(1, 4, 3).map(drop)
        }),
        ("an empty range", "Option", &["range", "1..1"], |e| e.builder().f32("x", &[2, 6]).narrow(0, 1, 0).map(drop)),
        ("a range of another dimension", "Option", &["dimension 2"], |e| {
            e.builder().f32("x", &[2, 6]).narrow(2, 0, 1).map(drop)
        }),
        ("a range past 2^64", "Option", &["range"], |e| e.builder().f32("x", &[2, 6]).narrow(1, 2, usize::MAX).map(drop)),
        ("heads that do not fill a row", "Shape", &["heads", "2 · 4", "[2, 6]"], |e| {
            e.builder().f32("x", &[2, 6]).split_heads(2, 4).map(drop)
        }),
        ("heads past 2^64", "Shape", &["heads"], |e| e.builder().f32("x", &[2, 6]).split_heads(usize::MAX, 4).map(drop)),
        ("a program without a dispatch", "Option", &["refused", "at least one dispatch"], |e| {
            e.builder().finish().map(drop)
        }),
        ("an output that nothing writes", "Option", &["spare", "writes this output", "none"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[2, 4]), b.out("y", &[2, 4]));
            b.out("spare", &[1]);
            b.activation("relu", &ActivationRows { x, activation: Activation::Relu, y })?;
            b.finish().map(drop)
        }),
    ];
    Env::core().refuse(cases);
}

/// A projection of x (2, 4) to y (2, 3) with one tensor replaced.
fn projection(e: &Env, change: impl Fn(&mut tileformer::Builder, &mut Linear)) -> Result<()> {
    let mut b = e.builder();
    let mut linear = Linear::new(b.f32("x", &[2, 4]), b.w("weight", &[3, 4]), b.out("y", &[2, 3]));
    change(&mut b, &mut linear);
    b.linear("projection", &linear)
}

fn norm(e: &Env, change: impl Fn(&mut tileformer::Builder, &mut LayerNorm)) -> Result<()> {
    let mut b = e.builder();
    let mut norm = LayerNorm::new(b.f32("x", &[2, 4]), b.out("y", &[2, 4]));
    change(&mut b, &mut norm);
    b.layer_norm("norm", &norm)
}

/// An embedding of ids (6) from a table (5, 4) with one part replaced.
fn embedding(e: &Env, change: impl Fn(&mut tileformer::Builder, &mut EmbeddingRows)) -> Result<()> {
    let mut b = e.builder();
    let mut rows = EmbeddingRows::new(b.u32("ids", &[6]), b.w("token", &[5, 4]), b.out("y", &[6, 4]));
    change(&mut b, &mut rows);
    b.embedding("embedding", &rows)
}

/// Tensors of kernels that work on rows.
#[test]
fn rows() {
    let cases: &[Case] = &[
        ("a weight of another depth", "Shape", &["weight", "[3, 4]", "[3, 5]"], |e| {
            projection(e, |b, l| l.weight = b.w("w2", &[3, 5]))
        }),
        ("x of rank 3", "Shape", &["projection", "(rows, d_in)", "[1, 2, 4]"], |e| {
            projection(e, |b, l| l.x = b.f32("x3", &[1, 2, 4]))
        }),
        ("an inner stride of 2", "Shape", &["x2", "stride 1", "strides [8, 2]"], |e| {
            let gaps = Layout::strided(&[2, 4], &[8, 2])?;
            projection(e, |b, l| l.x = b.input("x2", Element::F32, gaps).unwrap())
        }),
        ("x of ids", "Element", &["x (ids)", "f32", "u32"], |e| projection(e, |b, l| l.x = b.u32("ids", &[2, 4]))),
        ("a bias of another width", "Shape", &["bias", "[3]", "[4]"], |e| {
            projection(e, |b, l| l.bias = Some(b.w("b", &[4])))
        }),
        ("a residual of other rows", "Shape", &["residual", "[2, 3]", "[1, 3]"], |e| {
            projection(e, |b, l| l.residual = Some(b.f32("r", &[1, 3])))
        }),
        ("y of other columns", "Shape", &["y", "[2, 3]", "[2, 4]"], |e| projection(e, |b, l| l.y = b.out("y4", &[2, 4]))),
        ("activation of other sizes", "Shape", &["y", "[2, 4]", "[4, 2]"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[2, 4]), b.out("y", &[4, 2]));
            b.activation("relu", &ActivationRows { x, activation: Activation::Relu, y })
        }),
        ("a negative eps", "Option", &["eps", "at least 0", "-1"], |e| norm(e, |_, n| n.eps = -1.0)),
        ("an eps of NaN", "Option", &["eps", "NaN"], |e| norm(e, |_, n| n.eps = f32::NAN)),
        ("a norm's weight of another width", "Shape", &["weight", "[4]", "[2]"], |e| {
            norm(e, |b, n| n.weight = Some(b.w("w", &[2])))
        }),
        ("statistics of one column", "Shape", &["statistics", "[2, 2]", "[2, 1]"], |e| {
            norm(e, |b, n| n.statistics = Some(b.out("statistics", &[2, 1])))
        }),
        ("ids of other rows", "Shape", &["ids", "[6]", "[7]"], |e| {
            embedding(e, |b, m| m.tokens = Some((b.u32("ids7", &[7]), m.tokens.unwrap().1)))
        }),
        ("ids of floats", "Element", &["ids", "u32", "f32"], |e| {
            embedding(e, |b, m| m.tokens = Some((b.f32("f", &[6]), m.tokens.unwrap().1)))
        }),
        ("a table of another width", "Shape", &["table", "[5, 4]", "[5, 3]"], |e| {
            embedding(e, |b, m| m.positions = Some(b.w("p", &[5, 3])))
        }),
        ("an infinite scale", "Option", &["scale", "finite", "inf"], |e| embedding(e, |_, m| m.scale = f32::INFINITY)),
        ("a first position past 2^30", "Option", &["first_position", "2^30"], |e| {
            embedding(e, |_, m| m.first_position = usize::MAX)
        }),
        ("sequences of length 0", "Option", &["longest", "at least 1"], |e| {
            embedding(e, |b, m| m.sequences = Some((b.u32("sequences", &[2, 8]), 0)))
        }),
        ("sequences longer than the rows", "Option", &["longest", "at most 6", "7"], |e| {
            embedding(e, |b, m| m.sequences = Some((b.u32("sequences", &[2, 8]), 7)))
        }),
        ("sequences of 7 words", "Shape", &["sequences", "[2, 8]", "[2, 7]"], |e| {
            embedding(e, |b, m| m.sequences = Some((b.u32("sequences", &[2, 7]), 3)))
        }),
        ("argmax ids of other rows", "Shape", &["ids", "[2]", "[3]"], |e| {
            let mut b = e.builder();
            let (x, ids) = (b.f32("x", &[2, 9]), b.output("ids", Element::U32, layout(&[3]))?);
            b.argmax("argmax", &Argmax { x, ids })
        }),
        ("argmax into floats", "Element", &["ids", "u32", "f32"], |e| {
            let mut b = e.builder();
            let (x, ids) = (b.f32("x", &[2, 9]), b.out("ids", &[2]));
            b.argmax("argmax", &Argmax { x, ids })
        }),
    ];
    Env::core().refuse(cases);
}

/// Scores (2, 4, 3, 5) of q (6, 4, 8) and k (10, 2, 8) with something changed.
fn scores(e: &Env, change: impl Fn(&mut tileformer::Builder, &mut AttentionScores)) -> Result<()> {
    let mut b = e.builder();
    let (q, k, scores) = (b.f32("q", &[6, 4, 8]), b.f32("k", &[10, 2, 8]), b.out("scores", &[2, 4, 3, 5]));
    let mut args = AttentionScores { q, k, visibility: Visibility::default(), scores };
    change(&mut b, &mut args);
    b.attention_scores("scores", &args)
}

fn options(e: &Env, options: AttentionOptions) -> Result<()> {
    scores(e, |_, a| a.visibility.options = options.clone())
}

fn plain() -> AttentionOptions {
    AttentionOptions::default()
}

/// Tensors and options of the attention kernels.
#[test]
fn attention() {
    let cases: &[Case] = &[
        ("heads that do not divide", "Option", &["n_kv_heads", "divisor of n_heads, 4", "3"], |e| {
            scores(e, |b, a| a.k = b.f32("k3", &[10, 3, 8]))
        }),
        ("keys of another head size", "Shape", &["k", "[10, 2, 8]", "[10, 2, 7]"], |e| {
            scores(e, |b, a| a.k = b.f32("k7", &[10, 2, 7]))
        }),
        ("scores of rank 3", "Shape", &["scores", "(B, NH, T, S)", "[4, 3, 5]"], |e| {
            scores(e, |b, a| a.scores = b.out("s3", &[4, 3, 5]))
        }),
        ("too few rows without sequences", "Shape", &["q", "2 · 3 rows", "5 rows"], |e| {
            scores(e, |b, a| a.q = b.f32("q5", &[5, 4, 8]))
        }),
        ("a mask of other sizes", "Shape", &["mask", "[2, 4, 3, 5]", "or 1", "[2, 4, 3, 4]"], |e| {
            scores(e, |b, a| {
                a.visibility.options.mask = Some(Mask::Additive);
                a.visibility.mask = Some(b.f32("mask", &[2, 4, 3, 4]));
            })
        }),
        ("a mask of rank 2", "Shape", &["mask", "[3, 5]"], |e| {
            scores(e, |b, a| {
                a.visibility.options.mask = Some(Mask::Additive);
                a.visibility.mask = Some(b.f32("mask", &[3, 5]));
            })
        }),
        ("a boolean mask of floats", "Element", &["mask", "u32", "f32"], |e| {
            scores(e, |b, a| {
                a.visibility.options.mask = Some(Mask::Boolean);
                a.visibility.mask = Some(b.f32("mask", &[1, 1, 3, 5]));
            })
        }),
        ("a mask announced only", "Missing", &["mask", "options"], |e| {
            options(e, AttentionOptions { mask: Some(Mask::Boolean), ..plain() })
        }),
        ("a mask not announced", "Option", &["mask", "no tensor", "[1, 1, 3, 5]"], |e| {
            scores(e, |b, a| a.visibility.mask = Some(b.f32("mask", &[1, 1, 3, 5])))
        }),
        ("a key mask announced only", "Missing", &["key_mask", "options"], |e| {
            options(e, AttentionOptions { key_mask: true, ..plain() })
        }),
        ("a key mask not announced", "Option", &["key_mask", "no tensor", "[2, 5]"], |e| {
            scores(e, |b, a| a.visibility.key_mask = Some(b.u32("key_mask", &[2, 5])))
        }),
        ("sequences of another batch", "Shape", &["sequences", "[2, 8]", "[3, 8]"], |e| {
            scores(e, |b, a| a.visibility.sequences = Some(b.u32("sequences", &[3, 8])))
        }),
        ("too many slopes", "Option", &["alibi", "4 heads", "5"], |e| {
            options(e, AttentionOptions { alibi: vec![0.5; 5], ..plain() })
        }),
        ("more slopes than fit", "Option", &["alibi", "128", "129"], |_| {
            AttentionOptions { alibi: vec![0.5; 129], ..plain() }.check(129)
        }),
        ("a slope of NaN", "Option", &["alibi", "finite", "NaN"], |e| {
            options(e, AttentionOptions { alibi: vec![f32::NAN; 4], ..plain() })
        }),
        ("a scale of NaN", "Option", &["scale", "finite", "NaN"], |e| {
            options(e, AttentionOptions { scale: Some(f32::NAN), ..plain() })
        }),
        ("a softcap of 0", "Option", &["softcap", "positive", "0"], |e| {
            options(e, AttentionOptions { softcap: Some(0.0), ..plain() })
        }),
        ("a softcap of NaN", "Option", &["softcap", "NaN"], |e| {
            options(e, AttentionOptions { softcap: Some(f32::NAN), ..plain() })
        }),
        ("a window past 2^30", "Option", &["window_left", "2^30", "1073741825"], |e| {
            options(e, AttentionOptions { window_left: Some((1 << 30) + 1), ..plain() })
        }),
        ("a window to the right past 2^30", "Option", &["window_right", "2^30"], |e| {
            options(e, AttentionOptions { window_right: Some(u32::MAX), ..plain() })
        }),
        ("a softcap in a softmax", "Option", &["softcap", "none in a softmax", "2"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[1, 1, 2, 4]), b.out("y", &[1, 1, 2, 4]));
            let visibility = Visibility::new(AttentionOptions { softcap: Some(2.0), ..plain() });
            b.masked_softmax("softmax", &MaskedSoftmax { x, visibility, y })
        }),
        ("a softmax of other sizes", "Shape", &["y", "[1, 1, 2, 4]", "[1, 1, 4, 2]"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[1, 1, 2, 4]), b.out("y", &[1, 1, 4, 2]));
            b.masked_softmax("softmax", &MaskedSoftmax { x, visibility: Visibility::default(), y })
        }),
        ("values of too few rows", "Shape", &["v", "1 · 4 rows", "3 rows"], |e| {
            let mut b = e.builder();
            let (probs, v, out) = (b.f32("probs", &[1, 2, 2, 4]), b.f32("v", &[3, 2, 8]), b.out("out", &[2, 2, 8]));
            b.attention_values("values", &AttentionValues { probs, v, visibility: Visibility::default(), out })
        }),
        ("additive scores of grouped heads", "Option", &["n_kv_heads", "n_heads, 4", "2"], |e| {
            let mut b = e.builder();
            let (q, k, scores) = (b.f32("q", &[6, 4, 8]), b.f32("k", &[10, 2, 8]), b.out("scores", &[2, 4, 3, 5]));
            let vector = b.w("vector", &[4, 8]);
            b.additive_scores("scores", &AdditiveScores { q, k, vector, visibility: Visibility::default(), scores })
        }),
        ("a score vector of another size", "Shape", &["vector", "[4, 8]", "[4, 7]"], |e| {
            let mut b = e.builder();
            let (q, k, scores) = (b.f32("q", &[6, 4, 8]), b.f32("k", &[10, 4, 8]), b.out("scores", &[2, 4, 3, 5]));
            let vector = b.w("vector", &[4, 7]);
            b.additive_scores("scores", &AdditiveScores { q, k, vector, visibility: Visibility::default(), scores })
        }),
    ];
    Env::core().refuse(cases);
}

fn attend(e: &Env, change: impl Fn(&mut MultiHeadAttention)) -> Result<()> {
    let mut spec = MultiHeadAttention::new(12, 4);
    change(&mut spec);
    spec.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)), false).map(drop)
}

fn encode(e: &Env, change: impl Fn(&mut EncoderLayer, &mut Inputs)) -> Result<()> {
    let (mut spec, mut inputs) = (EncoderLayer::new(12, 4, 16), Inputs::new(BatchShape::padded(2, 3)));
    change(&mut spec, &mut inputs);
    spec.program(&e.kernels, &inputs).map(drop)
}

fn decode(e: &Env, change: impl Fn(&mut DecoderLayer)) -> Result<()> {
    let mut spec = DecoderLayer::new(12, 4, 16);
    change(&mut spec);
    spec.program(&e.kernels, &Inputs::new(BatchShape::cross(2, 3, 5))).map(drop)
}

fn embed(e: &Env, change: impl Fn(&mut Embedding)) -> Result<()> {
    let mut spec = Embedding::new(9, 12);
    change(&mut spec);
    spec.program(&e.kernels, BatchShape::padded(2, 3)).map(drop)
}

/// Configurations of layers, stacks and embeddings.
#[test]
fn layers() {
    let cases: &[Case] = &[
        ("heads that do not divide d_model", "Option", &["n_heads", "divisor of d_model, 12", "5"], |e| {
            attend(e, |s| *s = MultiHeadAttention::new(12, 5))
        }),
        ("no heads", "Option", &["n_heads", "at least 1"], |e| attend(e, |s| *s = MultiHeadAttention::new(12, 0))),
        ("no width", "Option", &["d_model", "at least 1"], |e| attend(e, |s| *s = MultiHeadAttention::new(0, 4))),
        ("a head size of 0", "Option", &["head sizes of at least 1"], |e| attend(e, |s| s.head_size = 0)),
        ("a value head size of 0", "Option", &["head sizes of at least 1"], |e| attend(e, |s| s.value_head_size = 0)),
        ("head sizes past 2^64", "Option", &["elements"], |e| attend(e, |s| s.head_size = usize::MAX)),
        ("heads past 2^64", "Option", &["elements"], |e| {
            attend(e, |s| (s.n_heads, s.n_kv_heads, s.head_size) = (1 << 40, 1 << 40, 1 << 40))
        }),
        ("key heads that do not divide", "Option", &["n_kv_heads", "divisor of n_heads, 4", "3"], |e| {
            attend(e, |s| s.n_kv_heads = 3)
        }),
        ("no key heads", "Option", &["n_kv_heads", "at least 1"], |e| attend(e, |s| s.n_kv_heads = 0)),
        ("stacked projections of two widths", "Option", &["projection", "Separate", "k_width 7"], |e| {
            attend(e, |s| s.k_width = 7)
        }),
        ("separate projections of x itself", "Shape", &["memory_v", "[6, 7]", "[6, 12]"], |e| {
            attend(e, |s| (s.projection, s.v_width) = (Projection::Separate, 7))
        }),
        ("an additive score of width 0", "Option", &["width of the additive score", "at least 1"], |e| {
            attend(e, |s| s.score = Score::Additive { width: 0 })
        }),
        ("an additive score of half heads", "Option", &["additive score", "multiple of n_heads, 4", "6"], |e| {
            attend(e, |s| s.score = Score::Additive { width: 6 })
        }),
        ("a general score of grouped heads", "Option", &["n_kv_heads", "general score", "2"], |e| {
            attend(e, |s| (s.score, s.n_kv_heads) = (Score::General, 2))
        }),
        ("slopes for other heads", "Option", &["alibi", "4 heads", "3"], |e| attend(e, |s| s.options.alibi = vec![0.5; 3])),
        ("no hidden columns", "Option", &["d_ff", "at least 1"], |e| encode(e, |s, _| s.feed_forward.d_ff = 0)),
        ("a network of another width", "Option", &["feed_forward.d_model", "12", "8"], |e| {
            encode(e, |s, _| s.feed_forward.d_model = 8)
        }),
        ("an eps below 0", "Option", &["eps", "at least 0", "-0.1"], |e| encode(e, |s, _| s.norm.eps = -0.1)),
        ("a mask layout of another length", "Shape", &["mask", "[2, 4, 3, 3]", "[1, 1, 3, 4]"], |e| {
            encode(e, |s, i| (s.attention.options.mask, i.mask) = (Some(Mask::Boolean), Some(layout(&[1, 1, 3, 4]))))
        }),
        ("a mask layout without a mask", "Option", &["mask", "no layout", "[1, 1, 3, 3]"], |e| {
            encode(e, |_, i| i.mask = Some(layout(&[1, 1, 3, 3])))
        }),
        ("no sequences", "Option", &["sequences", "at least 1"], |e| encode(e, |_, i| i.shape.sequences = 0)),
        ("no rows", "Option", &["rows", "at least 1"], |e| encode(e, |_, i| i.shape = BatchShape::padded(2, 0))),
        ("a sequence longer than all rows", "Option", &["longest_q", "at most q_rows, 6", "7"], |e| {
            encode(e, |_, i| i.shape.longest_q = 7)
        }),
        ("rows past 2^64", "Option", &["elements"], |e| {
            encode(e, |_, i| i.shape = BatchShape::padded(usize::MAX, usize::MAX))
        }),
        ("cross-attention of another width", "Option", &["cross_attention.d_model", "12", "8"], |e| {
            decode(e, |s| s.cross_attention = MultiHeadAttention::new(8, 4))
        }),
        ("a memory of two widths", "Shape", &["memory_v", "[10, 9]", "[10, 7]"], |e| {
            decode(e, |s| {
                (s.cross_attention.projection, s.cross_attention.k_width, s.cross_attention.v_width) =
                    (Projection::Separate, 7, 9)
            })
        }),
        ("a stack of no layers", "Option", &["n_layers", "at least 1"], |e| {
            Encoder::new(EncoderLayer::new(12, 4, 16), 0)
                .program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)))
                .map(drop)
        }),
        ("a decoder of no layers", "Option", &["n_layers", "at least 1"], |e| {
            Decoder::new(DecoderLayer::new(12, 4, 16), 0)
                .program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)))
                .map(drop)
        }),
        ("a final norm with a bad eps", "Option", &["eps", "NaN"], |e| {
            let norm = Norm { eps: f32::NAN, ..Norm::default() };
            let stack = Encoder::new(EncoderLayer::new(12, 4, 16), 2).with_final_norm(norm);
            stack.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3))).map(drop)
        }),
        ("no positions before every layer", "Option", &["positions", "at least 1"], |e| {
            let stack = Encoder { positions_every_layer: Some(0), ..Encoder::new(EncoderLayer::new(12, 4, 16), 2) };
            stack.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3))).map(drop)
        }),
        ("no vocabulary", "Option", &["vocabulary", "at least 1"], |e| embed(e, |s| s.vocabulary = 0)),
        ("an embedding of width 0", "Option", &["d_model", "at least 1"], |e| embed(e, |s| s.d_model = 0)),
        ("no positions", "Option", &["positions", "at least 1"], |e| embed(e, |s| s.positions = Some(0))),
        ("no segments", "Option", &["segments", "at least 1"], |e| embed(e, |s| s.segments = Some(0))),
        ("a token scale of NaN", "Option", &["scale", "NaN"], |e| embed(e, |s| s.scale = f32::NAN)),
        ("x of another width", "Shape", &["x", "[6, 12]", "[6, 8]"], |e| {
            let mut b = e.builder();
            let batch = b.batch("", &plain(), 4, BatchShape::padded(2, 3), None)?;
            let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 12]));
            b.multi_head_attention("", &MultiHeadAttention::new(12, 4), &batch, &AttentionRows::self_attention(x, y))
        }),
        ("a head of another width", "Shape", &["head.weight", "[9, 12]", "[9, 8]"], |e| {
            let mut b = e.builder();
            let (x, logits) = (b.f32("x", &[6, 8]), b.out("logits", &[6, 9]));
            b.w("head.weight", &[9, 12]);
            b.head("head.weight", None, x, logits)
        }),
    ];
    Env::core().refuse(cases);
}

/// Batches as the host describes them.
#[test]
fn sequences() {
    let cases: &[Case] = &[
        ("a length past the longest", "Option", &["lengths[1]", "at most 4", "5"], |_| {
            Sequences::padded(&[4, 5], 4).map(drop)
        }),
        ("no sequence", "Option", &["sequences", "at least 1"], |_| Sequences::packed(&[]).map(drop)),
        ("lengths for other sequences", "Option", &["lengths", "2 sequences", "3"], |_| {
            Sequences::cross(2, 4, &[1, 2, 3], 4).map(drop)
        }),
        ("a row past 2^30", "Option", &["sequences", "2^30"], |_| {
            Sequences::new(vec![Sequence { q_start: 1 << 30, ..Sequence::default() }]).map(drop)
        }),
        ("an offset past 2^30", "Option", &["offsets", "2^30"], |_| {
            Sequences::new(vec![Sequence { offset: i32::MIN, ..Sequence::default() }]).map(drop)
        }),
        ("rows past 2^64", "Option", &["2^30"], |_| Sequences::packed(&[usize::MAX, usize::MAX]).map(drop)),
        ("a sinusoid of no columns", "Option", &["size 0"], |_| sinusoidal_positions(4, 0, SinusoidOrder::Halves).map(drop)),
        ("a sinusoid past 2^30", "Option", &["elements"], |_| {
            sinusoidal_positions(1 << 20, 1 << 20, SinusoidOrder::Halves).map(drop)
        }),
    ];
    Env::core().refuse(cases);
}

/// Limits of the device, found before anything is allocated.
#[test]
fn limits() {
    let cases: &[Case] = &[
        (
            "x larger than a binding",
            "Limit",
            &["wide (x of projection)", "max_storage_buffer_binding_size", "536870912", "134217728"],
            |e| {
                projection(e, |b, l| {
                    (l.x, l.weight, l.y) =
                        (b.f32("wide", &[1 << 20, 128]), b.w("w", &[3, 128]), b.out("big", &[1 << 20, 3]));
                })
            },
        ),
        ("a weight row larger than a binding", "Limit", &["max_storage_buffer_binding_size"], |e| {
            projection(e, |b, l| {
                (l.x, l.weight, l.y) = (b.f32("long", &[1, 1 << 26]), b.w("w", &[1, 1 << 26]), b.out("one", &[1, 1]));
            })
        }),
        ("scores larger than a binding", "Limit", &["scores", "max_storage_buffer_binding_size"], |e| {
            let spec = EncoderLayer::new(64, 16, 64);
            spec.program(&e.kernels, &Inputs::new(BatchShape::padded(1, 8192))).map(drop)
        }),
        ("more workgroups than two dimensions hold", "Limit", &["embedding", "max_compute_workgroups_per_dimension"], |e| {
            let mut b = e.builder();
            let (ids, token, y) = (b.u32("ids", &[1 << 20]), b.w("token", &[5, 4]), b.out("y", &[1 << 20, 4]));
            let sequences = Some((b.u32("sequences", &[1 << 21, 8]), 1 << 20));
            b.embedding("embedding", &EmbeddingRows { sequences, ..EmbeddingRows::new(ids, token, y) })
        }),
        (
            "scratch larger than a buffer",
            "Limit",
            &["scratch of refused", "max_buffer_size", "536870912", "268435456"],
            |e| {
                let mut b = e.builder();
                let all = b.scratch("all", Element::F32, layout(&[1 << 20, 128]))?;
                let (x, y) = (b.f32("x", &[4, 128]), b.out("y", &[4, 128]));
                let part = all.narrow(0, 0, 4)?;
                b.activation("in", &ActivationRows { x, activation: Activation::Relu, y: part })?;
                b.activation("out", &ActivationRows { x: part, activation: Activation::Relu, y })?;
                b.finish().map(drop)
            },
        ),
    ];
    Env::core().refuse(cases);
}
