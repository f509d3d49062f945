//! Refusals of options, sizes and limits by kernels: the right error, no panic, nothing on the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::refusals::{Case, Env, Tensors, layout};
use tileformer::kernels::{
    ActivationRows, AdditiveScores, Argmax, AttentionScores, AttentionValues, Choose, EmbeddingRows, FusedAttention,
    LayerNorm, Linear, MarkSeen, MaskedSoftmax, Rotary, RotaryPositions, Visibility,
};
use tileformer::layers::{AttentionPath, EncoderLayer, Inputs};
use tileformer::spec::RotaryOrder;
use tileformer::{Activation, AttentionOptions, BatchShape, Builder, Element, Layout, Mask, Result, Sampling};

/// A choice for two rows of 70 tokens, with something wrong in it.
fn choose(e: &Env, spoil: fn(&mut Builder, &mut Choose)) -> Result<()> {
    let mut b = e.builder();
    let (logits, sampling) = (b.f32("logits", &[2, 70]), b.u32("sampling", &[2, 16]));
    let state = b.state("state", Element::U32, layout(&[4, 8]))?;
    let tokens = b.output("tokens", Element::U32, layout(&[4, 2]))?;
    let mut args = Choose::new(logits, sampling, state, 9, tokens);
    spoil(&mut b, &mut args);
    b.choose("choose", &args)
}

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
fn projection(e: &Env, change: impl Fn(&mut Builder, &mut Linear)) -> Result<()> {
    let mut b = e.builder();
    let mut linear = Linear::new(b.f32("x", &[2, 4]), b.w("weight", &[3, 4]), b.out("y", &[2, 3]));
    change(&mut b, &mut linear);
    b.linear("projection", &linear)
}

fn norm(e: &Env, change: impl Fn(&mut Builder, &mut LayerNorm)) -> Result<()> {
    let mut b = e.builder();
    let mut norm = LayerNorm::new(b.f32("x", &[2, 4]), b.out("y", &[2, 4]));
    change(&mut b, &mut norm);
    b.layer_norm("norm", &norm)
}

/// An embedding of ids (6) from a table (5, 4) with one part replaced.
fn embedding(e: &Env, change: impl Fn(&mut Builder, &mut EmbeddingRows)) -> Result<()> {
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
        ("x of ids", "Element", &["ids (x of projection)", "f32", "u32"], |e| {
            projection(e, |b, l| l.x = b.u32("ids", &[2, 4]))
        }),
        ("a bias of another width", "Shape", &["bias", "[3]", "[4]"], |e| {
            projection(e, |b, l| l.bias = Some(b.w("b", &[4])))
        }),
        ("a residual of other rows", "Shape", &["residual", "[2, 3]", "[1, 3]"], |e| {
            projection(e, |b, l| l.residual = Some(b.f32("r", &[1, 3])))
        }),
        ("y of other columns", "Shape", &["y", "[2, 3]", "[2, 4]"], |e| projection(e, |b, l| l.y = b.out("y4", &[2, 4]))),
        ("an output whose rows overlap", "Shape", &["y0", "projection writes it", "strides [2, 1]"], |e| {
            let rows = Layout::strided(&[2, 3], &[2, 1])?;
            projection(e, |b, l| l.y = b.output("y0", Element::F32, rows).unwrap())
        }),
        ("an output of one row for all", "Shape", &["y0", "strides [0, 1]"], |e| {
            let rows = Layout::strided(&[2, 3], &[0, 1])?;
            projection(e, |b, l| l.y = b.output("y0", Element::F32, rows).unwrap())
        }),
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
        ("sequences past 2^64", "Option", &["longest", "at most 2^30"], |e| {
            embedding(e, |b, m| m.sequences = Some((b.u32("sequences", &[2, 8]), usize::MAX)))
        }),
        ("sequences of 7 words", "Shape", &["sequences", "[2, 8]", "[2, 7]"], |e| {
            embedding(e, |b, m| m.sequences = Some((b.u32("sequences", &[2, 7]), 3)))
        }),
        ("argmax ids of other rows", "Shape", &["ids", "[2]", "[3]"], |e| {
            let mut b = e.builder();
            let (x, ids) = (b.f32("x", &[2, 9]), b.output("ids", Element::U32, layout(&[3]))?);
            b.argmax("argmax", &Argmax { x, ids })
        }),
        ("choose of other options", "Shape", &["sampling", "[2, 16]", "[3, 16]"], |e| {
            choose(e, |b, args| args.sampling = b.u32("others", &[3, 16]))
        }),
        ("choose with a state without cross-attention", "Shape", &["state", "[6, 8]", "[4, 8]"], |e| {
            choose(e, |_, args| args.cross = true)
        }),
        ("choose into tokens of other rows", "Shape", &["tokens", "[4, 2]", "[4, 3]"], |e| {
            choose(e, |b, args| args.tokens = b.output("others", Element::U32, layout(&[4, 3])).unwrap())
        }),
        ("choose into float tokens", "Element", &["tokens", "u32", "f32"], |e| {
            choose(e, |b, args| args.tokens = b.out("floats", &[4, 2]))
        }),
        ("choose with log-probabilities of other steps", "Shape", &["log_probs", "[4, 2]", "[5, 2]"], |e| {
            choose(e, |b, args| args.log_probs = Some(b.out("log_probs", &[5, 2])))
        }),
        ("choose with maxima that are no pairs", "Shape", &["maxima", "[2, 7, 2]", "[2, 7, 3]"], |e| {
            choose(e, |b, args| args.maxima = Some(b.u32("maxima", &[2, 7, 3])))
        }),
        ("choose with maxima of two dimensions", "Shape", &["maxima", "(B, groups, 2)", "[2, 14]"], |e| {
            choose(e, |b, args| args.maxima = Some(b.u32("maxima", &[2, 14])))
        }),
        ("choose with a bias of another vocabulary", "Shape", &["bias", "[70]", "[71]"], |e| {
            choose(e, |b, args| args.bias = Some(b.f32("bias", &[71])))
        }),
        ("choose with too few bits of seen tokens", "Shape", &["seen", "[2, 3]", "[2, 2]"], |e| {
            choose(e, |b, args| args.seen = Some(b.state("seen", Element::U32, layout(&[2, 2])).unwrap()))
        }),
        ("choose with seen tokens that are only lent", "Option", &["seen", "Input"], |e| {
            choose(e, |b, args| args.seen = Some(b.u32("seen", &[2, 3])))
        }),
        ("choose into one tensor twice", "Alias", &["tokens", "seen"], |e| {
            choose(e, |b, args| {
                args.tokens = b.output("tokens and seen", Element::U32, layout(&[2, 3])).unwrap().narrow(1, 0, 2).unwrap();
                args.seen = Some(b.output("tokens and seen", Element::U32, layout(&[2, 3])).unwrap());
            })
        }),
        ("choose without capacity", "Option", &["capacity", "1 to", "0"], |e| choose(e, |_, args| args.capacity = 0)),
        ("choose of too many tokens", "Option", &["V", "16777216", "16777217"], |e| {
            choose(e, |b, args| args.logits = b.f32("wide", &[2, (1 << 24) + 1]))
        }),
        ("marking more rows than there are", "Option", &["longest", "1 to 5", "6"], |e| {
            let mut b = e.builder();
            let seen = b.state("seen", Element::U32, layout(&[2, 3]))?;
            let (ids, sequences) = (b.u32("ids", &[5]), b.u32("sequences", &[2, 8]));
            b.mark_seen("seen", &MarkSeen { ids, sequences, longest: 6, seen })
        }),
        ("a temperature below 0", "Option", &["temperature", "-1"], |_| Sampling::greedy().with_temperature(-1.0).map(drop)),
        ("a temperature of NaN", "Option", &["temperature", "NaN"], |_| {
            Sampling::greedy().with_temperature(f32::NAN).map(drop)
        }),
        ("top-p past 1", "Option", &["top_p", "1.5"], |_| Sampling::greedy().with_top_p(1.5).map(drop)),
        ("a top-p of NaN", "Option", &["top_p", "NaN"], |_| Sampling::greedy().with_top_p(f32::NAN).map(drop)),
        ("a penalty of 0", "Option", &["repetition_penalty", "0"], |_| {
            Sampling::greedy().with_repetition_penalty(0.0).map(drop)
        }),
        ("nine stop tokens", "Option", &["stop tokens", "at most 8", "9"], |_| {
            Sampling::greedy().with_stops(&[1; 9]).map(drop)
        }),
        ("a stop token that is none", "Option", &["stop tokens"], |_| Sampling::greedy().with_stops(&[u32::MAX]).map(drop)),
        ("argmax into floats", "Element", &["ids", "u32", "f32"], |e| {
            let mut b = e.builder();
            let (x, ids) = (b.f32("x", &[2, 9]), b.out("ids", &[2]));
            b.argmax("argmax", &Argmax { x, ids })
        }),
    ];
    Env::core().refuse(cases);
}

/// Scores (2, 4, 3, 5) of q (6, 4, 8) and k (10, 2, 8) with something changed.
fn scores(e: &Env, change: impl Fn(&mut Builder, &mut AttentionScores)) -> Result<()> {
    let mut b = e.builder();
    let (q, k, scores) = (b.f32("q", &[6, 4, 8]), b.f32("k", &[10, 2, 8]), b.out("scores", &[2, 4, 3, 5]));
    let mut args = AttentionScores { q, k, visibility: Visibility::default(), scores };
    change(&mut b, &mut args);
    b.attention_scores("scores", &args)
}

/// Fused attention of q (6, 4, 8) over k and v (10, 2, 8), of these B, T and S, with or without sequences.
fn fused(e: &Env, sizes: [usize; 3], in_sequences: bool) -> Result<()> {
    let mut b = e.builder();
    let (q, k, v, out) =
        (b.f32("q", &[6, 4, 8]), b.f32("k", &[10, 2, 8]), b.f32("v", &[10, 2, 8]), b.out("out", &[6, 4, 8]));
    let sequences = in_sequences.then(|| b.u32("sequences", &[sizes[0], 8]));
    let visibility = Visibility { sequences, ..Visibility::default() };
    let cached = false;
    let args = FusedAttention { q, k, v, sizes, visibility, out, log_sum_exp: None, statistics: None, cached };
    b.attention("attention", &args)
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
        ("sequences past 2^30", "Option", &["B of attention", "at most 1073741824"], |e| {
            fused(e, [usize::MAX, 3, 5], false)
        }),
        ("queries past 2^30", "Option", &["T of attention", "at most 1073741824"], |e| fused(e, [2, usize::MAX, 5], true)),
        ("keys past 2^30", "Option", &["S of attention", "at most 1073741824"], |e| fused(e, [2, 3, usize::MAX], true)),
        ("more queries than threads are numbered", "Option", &["workgroups of attention", "33554432"], |e| {
            fused(e, [1 << 21, 1 << 30, 1 << 30], true)
        }),
        ("heads of one column, turned", "Shape", &["x", "two columns", "[6, 4, 1]"], |e| {
            let mut b = e.builder();
            let (x, table, y) = (b.f32("x", &[6, 4, 1]), b.w("table", &[9, 2]), b.out("y", &[6, 4, 1]));
            let positions = RotaryPositions::Ids(b.u32("ids", &[6]));
            b.rotary("rotary", &Rotary { x, table, order: RotaryOrder::Halves, positions, y })
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
        ("a mask by distance of other sizes", "Shape", &["mask", "[4, 7]", "or 1", "[4, 8]"], |e| {
            scores(e, |b, a| {
                a.visibility.options.mask = Some(Mask::Relative { reach: 3 });
                a.visibility.mask = Some(b.f32("mask", &[4, 8]));
            })
        }),
        ("a reach past 2^24", "Option", &["reach of the mask", "at most 16777216", "16777217"], |e| {
            options(e, AttentionOptions { mask: Some(Mask::Relative { reach: 16_777_217 }), ..plain() })
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
            let mut spec = EncoderLayer::new(64, 16, 64);
            spec.attention.path = AttentionPath::Separate;
            spec.program(&e.kernels, &Inputs::new(BatchShape::padded(1, 8192))).map(drop)
        }),
        ("more threads than 32 bits number", "Option", &["workgroups of embedding", "33554432", "34359738368"], |e| {
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
