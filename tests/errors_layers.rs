//! Refusals of configurations and batches by layers: the right error, no panic, nothing on the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::refusals::{Case, Env, Tensors, layout};
use tileformer::layers::{
    AttentionRows, Batch, Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, Inputs, MultiHeadAttention, Norm,
    Projection, RotaryOptions, Score,
};
use tileformer::spec::generator::{Generator, GeneratorStack};
use tileformer::spec::{RotaryOrder, sinusoidal_positions};
use tileformer::{AttentionOptions, BatchShape, Mask, Result, Sequence, Sequences, SinusoidOrder};

fn attend(e: &Env, change: impl Fn(&mut MultiHeadAttention)) -> Result<()> {
    let mut spec = MultiHeadAttention::new(12, 4);
    change(&mut spec);
    spec.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3))).map(drop)
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

fn generate(change: impl Fn(&mut MultiHeadAttention)) -> Result<()> {
    let mut layer = DecoderLayer::new(12, 4, 16);
    change(&mut layer.cross_attention);
    Generator::new(Embedding::new(9, 12), GeneratorStack::Decoder(Decoder::new(layer, 1))).check()
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
        ("gates past 2^64", "Option", &["elements"], |e| {
            encode(e, |s, _| (s.feed_forward.gated, s.feed_forward.d_ff) = (true, usize::MAX / 2 + 1))
        }),
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
        ("a mask layout beside a bias by distance", "Option", &["mask", "no layout", "[1, 1, 3, 3]"], |e| {
            let relative = Some(Mask::Relative { reach: 2 });
            encode(e, |s, i| (s.attention.options.mask, i.mask) = (relative, Some(layout(&[1, 1, 3, 3]))))
        }),
        ("a cross mask layout of an encoder", "Option", &["cross_mask", "outside a decoder", "[1, 1, 3, 3]"], |e| {
            encode(e, |_, i| i.cross_mask = Some(layout(&[1, 1, 3, 3])))
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
        ("steps over a memory with slopes", "Option", &["cross-attention of a generator", "no positions", "0.5"], |_| {
            generate(|s| s.options.alibi = vec![0.5; 4])
        }),
        (
            "a mask of one's own beside a bias by distance",
            "Option",
            &["mask of self_attn", "none beside", "[2, 4, 3, 3]"],
            |e| {
                let mut b = e.builder();
                let mut spec = MultiHeadAttention::new(12, 4);
                spec.options.mask = Some(Mask::Relative { reach: 2 });
                let batch = b.batch("", &spec.options, 4, BatchShape::padded(2, 3), None)?;
                let (x, y, mask) = (b.f32("x", &[6, 12]), b.out("y", &[6, 12]), b.f32("mask", &[2, 4, 3, 3]));
                let batch = Batch { mask: Some(mask), ..batch };
                b.multi_head_attention("self_attn.", &spec, &batch, &AttentionRows::self_attention(x, y))
            },
        ),
        ("steps over a memory with a bias by distance", "Option", &["cross-attention of a generator", "Relative"], |_| {
            generate(|s| s.options.mask = Some(Mask::Relative { reach: 3 }))
        }),
        ("steps with a mask", "Option", &["masks of a generator", "Additive"], |_| {
            generate(|s| s.options.mask = Some(Mask::Additive))
        }),
        ("steps over a memory with a window", "Option", &["cross-attention of a generator", "window_left: Some(3)"], |_| {
            generate(|s| s.options.window_left = Some(3))
        }),
        ("steps over a memory that is turned", "Option", &["rotary positions of cross-attention"], |_| {
            generate(|s| s.rotary = Some(RotaryOptions { positions: 9, columns: 2, order: RotaryOrder::Halves }))
        }),
        ("a memory of two widths", "Shape", &["memory_v", "[10, 9]", "[10, 7]"], |e| {
            decode(e, |s| {
                (s.cross_attention.projection, s.cross_attention.k_width, s.cross_attention.v_width) =
                    (Projection::Separate, 7, 9);
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
            let batch = b.batch("", &AttentionOptions::default(), 4, BatchShape::padded(2, 3), None)?;
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
