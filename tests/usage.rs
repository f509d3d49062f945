//! What a caller meets first: batches of other sizes on one plan, one buffer for all weights, logits in f32, and what errors say.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::refusals::{Case, Env, Tensors, layout};
use common::{On, on, on_halves, seeded, uniform};
use tileformer::kernels::{ActivationRows, FewOutput, Linear, LinearFew};
use tileformer::layers::{AttentionPath, CachedLayer, Embedding, Encoder, EncoderLayer, Inputs, Norm};
use tileformer::spec::cache::{CacheShape, CachedRows};
use tileformer::spec::generator::{Generator, GeneratorStack};
use tileformer::wgpu::BufferUsages;
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Layout, Program, Result, Role, Sequences,
    TensorView,
};

/// Numbers for every weight.
fn weights(on: &On, program: &Program) -> Bindings {
    let mut rng = seeded("usage", 0);
    let all = program.tensors().filter(|(_, role, ..)| *role == Role::Weight);
    let upload = |(name, _, element, layout): (&str, Role, Element, &Layout)| {
        (
            name.to_owned(),
            on.gpu.upload_floats(element, layout.sizes(), &uniform(&mut rng, layout.len(), -0.3, 0.3)).unwrap(),
        )
    };
    all.map(upload).collect()
}

/// Rule: a batch that is filled up to a plan's shape gives what it gives alone, whatever batch was there before it.
#[test]
fn a_smaller_batch_follows_a_larger_one() {
    let on = on();
    let shape = BatchShape { sequences: 4, q_rows: 20, longest_q: 20, k_rows: 20, longest_k: 20 };
    let program = EncoderLayer::new(32, 4, 64).program(&on.kernels, &Inputs::new(shape)).unwrap();
    let x = uniform(&mut seeded("usage", 1), 20 * 32, -1.0, 1.0);
    let mut bindings = weights(on, &program);
    bindings.set("x", on.gpu.upload_f32(&[20, 32], &x).unwrap());
    bindings.set("sequences", on.gpu.zeros(Element::U32, &[4, 8]).unwrap());
    on.gpu.allocate(&program, &mut bindings).unwrap();
    let plan = program.bind(&bindings).unwrap();
    let run = |batch: &Sequences| {
        on.gpu.write(bindings.get("sequences").unwrap(), bytemuck::cast_slice(batch.words())).unwrap();
        on.gpu.run(&plan).unwrap();
        on.gpu.read_f32(bindings.get("y").unwrap()).unwrap()
    };
    let right = run(&Sequences::packed(&[20, 0, 0, 0]).unwrap());
    let other = run(&Sequences::packed(&[5, 5, 5, 5]).unwrap().for_shape(&shape).unwrap());
    assert_ne!(right, other, "the two batches differ");
    assert_eq!(right, run(&Sequences::packed(&[20]).unwrap().for_shape(&shape).unwrap()));
}

/// Rule: a run in parts, each submitted by itself, gives the bits of a run at once.
#[test]
#[allow(clippy::disallowed_methods)]
fn a_run_goes_in_parts() {
    let on = on();
    let program = EncoderLayer::new(32, 4, 64).program(&on.kernels, &Inputs::new(BatchShape::padded(2, 8))).unwrap();
    let x = uniform(&mut seeded("usage", 4), 16 * 32, -1.0, 1.0);
    let mut bindings = weights(on, &program);
    bindings.set("x", on.gpu.upload_f32(&[16, 32], &x).unwrap());
    bindings.set("sequences", on.gpu.upload_sequences(&Sequences::padded(&[8, 5], 8).unwrap()).unwrap());
    on.gpu.allocate(&program, &mut bindings).unwrap();
    let (plan, y) = (program.bind(&bindings).unwrap(), bindings.get("y").unwrap());
    on.gpu.run(&plan).unwrap();
    let right = on.gpu.read_f32(y).unwrap();
    on.gpu.write(y, &vec![0; 4 * 16 * 32]).unwrap();
    for part in [0..2, 2..2, 2..3, 3..99, 99..100] {
        assert!(part.start != 3 || on.gpu.read_f32(y).unwrap().iter().all(|&v| v == 0.0), "not all has run");
        let mut encoder = on.gpu.device.create_command_encoder(&Default::default());
        plan.record_part(&mut encoder.begin_compute_pass(&Default::default()), part);
        on.gpu.queue.submit([encoder.finish()]);
    }
    assert_eq!(right, on.gpu.read_f32(y).unwrap());
}

/// Rule: weights one behind the other in one buffer give the bits that they give apart, at any alignment.
#[test]
fn weights_lie_in_one_buffer() {
    for (element, on) in [(Element::F32, on()), (Element::F16, on_halves().last().unwrap().1)] {
        let inputs = Inputs::new(BatchShape::padded(2, 3)).with_storage(element);
        let program = EncoderLayer::new(12, 2, 10).program(&on.kernels, &inputs).unwrap();
        let apart = weights(on, &program);
        let x = uniform(&mut seeded("usage", 2), 6 * 12, -1.0, 1.0);
        let run = |weights: &Bindings| {
            let mut bindings = weights.clone();
            bindings.set("x", on.gpu.upload_floats(element, &[6, 12], &x).unwrap());
            bindings.set("sequences", on.gpu.upload_sequences(&Sequences::padded(&[3, 2], 3).unwrap()).unwrap());
            on.gpu.allocate(&program, &mut bindings).unwrap();
            on.gpu.run(&program.bind(&bindings).unwrap()).unwrap();
            on.gpu.read_f32(bindings.get("y").unwrap()).unwrap()
        };
        let right = run(&apart);
        for (first, align) in [(0, 256), (16, 4), (4, 1)] {
            let bytes = first + program.weight_bytes(align);
            let one = on.gpu.zeros(Element::U32, &[bytes.div_ceil(4) as usize]).unwrap();
            let together = program.weights_in(one.buffer(), first, align).unwrap();
            for (name, view) in together.iter() {
                assert!((view.offset() * element.size()).is_multiple_of(align), "{name}");
                let bytes = view.layout().bytes(element);
                let data = on.gpu.read_bytes(apart.get(name).unwrap().buffer(), 0, bytes).unwrap();
                on.gpu.write(view, &data).unwrap();
            }
            assert_eq!(right, run(&together), "{element:?} from byte {first}, each a multiple of {align}");
        }
        let small = on.gpu.zeros(Element::U32, &[(program.weight_bytes(256) / 4 - 1) as usize]).unwrap();
        let error = program.weights_in(small.buffer(), 0, 256).unwrap_err().to_string();
        assert!(error.starts_with("norm2.bias: the view ends at byte"), "{error}");
    }
}

/// Rule: logits of rows in f16 are f32 where they are asked for, for any number of rows and tokens.
#[test]
fn a_head_gives_f32_logits_of_f16_rows() {
    for (pairs, on) in on_halves() {
        for (rows, vocabulary) in [(1, 102), (40, 102), (40, 64)] {
            let make = |element| {
                let mut b = Builder::new(&on.kernels, "head").with_storage(Element::F16).unwrap();
                let x = b.input("x", Element::F16, layout(&[rows, 24])).unwrap();
                let logits = b.output("logits", element, layout(&[rows, vocabulary])).unwrap();
                b.head("weight", Some("bias"), x, logits).unwrap();
                b.finish().unwrap()
            };
            let x = uniform(&mut seeded("usage", 3), rows * 24, -1.0, 1.0);
            let logits = |program: &Program| {
                let mut bindings = weights(on, program);
                bindings.set("x", on.gpu.upload_floats(Element::F16, &[rows, 24], &x).unwrap());
                on.gpu.allocate(program, &mut bindings).unwrap();
                on.gpu.run(&program.bind(&bindings).unwrap()).unwrap();
                on.gpu.read_f32(bindings.get("logits").unwrap()).unwrap()
            };
            let (wide, narrow) = (logits(&make(Element::F32)), logits(&make(Element::F16)));
            let worst = wide.iter().zip(&narrow).map(|(a, b)| (a - b).abs() / a.abs().max(0.1)).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{rows} rows of {vocabulary}, pairs {pairs}: {worst}");
            assert!(wide.iter().any(|&v| half::f16::from_f32(v).to_f32() != v), "the logits are f32");
        }
    }
}

/// Rule: a table's columns begin at the same place in every line, however long a name is.
#[test]
fn columns_stand_below_each_other() {
    let mut b = Env::core().builder();
    for label in ["a", "a.very.long.prefix.of.a.model.layers.11.self_attn.projection"] {
        let (x, y) = (b.f32("x", &[2, 8]), b.out(label, &[2, 8]));
        b.activation(label, &ActivationRows { x, activation: Activation::Relu, y }).unwrap();
    }
    let text = b.finish().unwrap().describe();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let column = lines[0].find("variant").unwrap();
    assert_eq!(lines[1].find("activation."), Some(column), "{text}");
    assert_eq!(lines[2].find("activation."), Some(column), "{text}");
    assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
}

fn causal_layer() -> EncoderLayer {
    let mut layer = EncoderLayer::new(8, 2, 16);
    layer.attention.options = AttentionOptions::causal();
    layer
}

/// A layer over a cache of 2 slots of 32 keys, for batches of `shape`.
fn cached(e: &Env, shape: BatchShape) -> Result<Program> {
    let layer = causal_layer();
    let mut b = e.builder();
    let batch = b.batch("", &layer.attention.options, 2, shape, None)?;
    let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 8]));
    let cache = b.state("cache", Element::F32, CacheShape::of(&layer.attention, 2, 32).layout()?)?;
    b.cached_encoder_layer("", &layer, &CachedLayer { x, batch, cache, y })?;
    b.finish()
}

fn fit(sequences: Result<Sequences>, shape: BatchShape) -> Result<()> {
    sequences?.for_shape(&shape).map(drop)
}

/// What does not fit a plan's shape, or a cache's.
#[test]
fn batches() {
    let cases: &[Case] = &[
        ("a sequence too many", "Option", &["sequences", "at most 2", "3"], |_| {
            fit(Sequences::packed(&[1, 1, 1]), BatchShape::padded(2, 8))
        }),
        ("a sequence too long", "Option", &["query rows of sequence 1", "at most 8", "9"], |_| {
            fit(Sequences::packed(&[1, 9]), BatchShape::padded(2, 8))
        }),
        ("too many rows", "Option", &["query rows of sequence 1", "below 10", "5..11"], |_| {
            fit(Sequences::packed(&[5, 6]), BatchShape { q_rows: 10, k_rows: 10, ..BatchShape::padded(2, 8) })
        }),
        ("keys too long", "Option", &["key rows of sequence 0", "at most 4", "5"], |_| {
            fit(Sequences::cross(2, 3, &[5, 1], 5), BatchShape::cross(2, 3, 4))
        }),
        ("too many key rows", "Option", &["key rows of sequence 1", "below 8", "6..9"], |_| {
            fit(Sequences::cross(2, 3, &[3, 3], 6), BatchShape { longest_k: 6, ..BatchShape::cross(2, 3, 4) })
        }),
        ("a cached layer of a batch's own shape", "Option", &["longest_k of self_attn", "capacity, 32", "6"], |e| {
            let cache = CacheShape::of(&causal_layer().attention, 2, 32);
            cached(e, cache.sequences(&[CachedRows { slot: 1, past: 0, new: 6 }])?.shape()).map(drop)
        }),
        ("a cached layer that sees too much", "Option", &["longest_k of self_attn", "capacity, 32", "64"], |e| {
            cached(e, BatchShape { longest_k: 64, ..CacheShape::of(&causal_layer().attention, 2, 32).batch(1, 6, 6) })
                .map(drop)
        }),
    ];
    Env::core().refuse(cases);
    // Of several heads a slot's first row lies far behind, and still below the shape's.
    let cache = CacheShape::of(&causal_layer().attention, 2, 32);
    let shape = cache.batch(2, 6, 6);
    let rows = cache.sequences(&[CachedRows { slot: 1, past: 26, new: 6 }]).unwrap().for_shape(&shape).unwrap();
    assert_eq!((rows.as_slice()[0].k_start, rows.words().len()), (64, 16));
    cached(&Env::core(), shape).unwrap();
}

fn projection(e: &Env, change: impl FnOnce(&mut Builder, &mut Linear)) -> Result<()> {
    let mut b = e.builder();
    let (x, weight, y) = (b.f32("x", &[5, 8]), b.w("weight", &[3, 8]), b.out("y", &[5, 3]));
    let mut linear = Linear::new(x, weight, y);
    change(&mut b, &mut linear);
    b.linear("projection", &linear)
}

/// What messages say beyond the name.
#[test]
fn messages() {
    let cases: &[Case] = &[
        ("a weight turned", "Shape", &["turned (weight of projection)", "expected [3, 8]", "(out, in) as nn.Linear"], |e| {
            projection(e, |b, linear| linear.weight = b.w("turned", &[8, 3]))
        }),
        ("a weight turned, for few rows", "Shape", &["expected [3, 8]", "found [8, 3], its transpose"], |e| {
            let mut b = e.builder();
            let linear = Linear::new(b.f32("x", &[5, 8]), b.w("w", &[8, 3]), b.out("y", &[5, 3]));
            b.linear_few("projection", &LinearFew { out: FewOutput::Rows, ..LinearFew::new(linear) })
        }),
        ("a weight bound turned", "Shape", &["weight", "found [8, 3], its transpose", "(out, in)"], |e| {
            e.bind("weight", e.view(&[8, 3]))
        }),
        ("a weight uploaded turned", "Shape", &["weight", "found [8, 3], its transpose"], |e| {
            let data = [0.0; 24];
            e.gpu
                .upload_weights(&e.projection(), |name| Some((if name == "bias" { &[3] } else { &[8, 3] }, &data)))
                .map(drop)
        }),
        ("the output is the input", "Alias", &["y: projection reads and writes it"], |e| {
            projection(e, |b, linear| {
                let y = b.out("y", &[5, 3]);
                (linear.x, linear.weight) = (y, b.w("square", &[3, 3]));
            })
        }),
        ("a name of another element", "Option", &["x: expected Input of f32", "found Input of u32"], |e| {
            let mut b = e.builder();
            b.f32("x", &[4]);
            b.input("x", Element::U32, layout(&[4])).map(drop)
        }),
        ("an input written", "Option", &["z: expected an output, state or scratch"], |e| {
            projection(e, |b, linear| linear.y = b.f32("z", &[5, 3]))
        }),
        ("several missing", "Missing", &["x: not bound", "f32 [5, 8], and 3 more"], |e| {
            e.projection().bind(&Bindings::new()).map(drop)
        }),
        ("a name of many", "Unknown", &["linear1.weights", "it has linear1.weight, ", " more"], |e| {
            let program = causal_layer().program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)))?;
            let view = e.view(&[1]);
            program.bind(&[("linear1.weights", view)].into_iter().collect()).map(drop)
        }),
        ("a buffer without STORAGE, by name", "Usage", &["x: its buffer lacks usage STORAGE"], |e| {
            e.projection().view("x", &e.buffer(160, BufferUsages::COPY_DST), 0).map(drop)
        }),
        ("a buffer too small, by name", "BufferTooSmall", &["x: the view ends at byte 164"], |e| {
            e.projection().view("x", &e.buffer(160, BufferUsages::STORAGE), 1).map(drop)
        }),
        ("a view of no tensor", "Unknown", &["gamma", "bias, weight, x, y"], |e| {
            e.projection().view("gamma", &e.buffer(160, BufferUsages::STORAGE), 0).map(drop)
        }),
        ("a view moved too far", "BufferTooSmall", &["byte 20", "16 bytes"], |e| {
            TensorView::f32(&e.buffer(16, BufferUsages::STORAGE), &[2])?.at(2)?.at(3).map(drop)
        }),
        (
            "scores that a binding cannot hold",
            "Limit",
            &["AttentionPath::Fused", " bytes, but", "wanted_limits(&adapter)"],
            |e| {
                let mut layer = causal_layer();
                layer.attention.path = AttentionPath::Separate;
                layer.program(&e.kernels, &Inputs::new(BatchShape::padded(1, 8192))).map(drop)
            },
        ),
        ("a prefix without its dot, of a layer", "Option", &["prefix", "\"layers.0.\"", "\"layers.0\""], |e| {
            let mut b = e.builder();
            let batch = b.batch("own_", &AttentionOptions::default(), 2, BatchShape::padded(2, 3), None)?;
            let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 8]));
            b.encoder_layer("layers.0", &EncoderLayer::new(8, 2, 16), &batch, x, None, y)
        }),
        ("a prefix without its dot, of a norm", "Option", &["prefix", "\"norm.\""], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 8]));
            b.norm("norm", &Norm::default(), x, y)
        }),
        ("a prefix without its dot, of a network", "Option", &["prefix", "\"ff.\""], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 8]));
            b.feed_forward("ff", &EncoderLayer::new(8, 2, 16).feed_forward, x, None, y)
        }),
        ("a prefix without its dot, of a cached layer", "Option", &["prefix", "\"layers.0.\""], |e| {
            let (layer, mut b) = (causal_layer(), e.builder());
            let shape = CacheShape::of(&layer.attention, 2, 32);
            let batch = b.batch("", &layer.attention.options, 2, shape.batch(1, 6, 6), None)?;
            let (x, y) = (b.f32("x", &[6, 8]), b.out("y", &[6, 8]));
            let cache = b.state("cache", Element::F32, shape.layout()?)?;
            b.cached_encoder_layer("layers.0", &layer, &CachedLayer { x, batch, cache, y })
        }),
        ("a prefix without its dot, of a generator", "Option", &["prefix", "\"gpt.\""], |_| {
            let stack = GeneratorStack::Encoder(Encoder::new(causal_layer(), 1));
            Generator { stack_prefix: "gpt".into(), ..Generator::new(Embedding::new(9, 8), stack) }.check()
        }),
    ];
    Env::core().refuse(cases);
}
