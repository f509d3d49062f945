//! Programs and plans: recording, rebinding, scratch, offsets and strides, what they say of themselves, timing, warm-up.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Made, Side, kernels};
use common::{Guarded, Place, gpu, seeded, uniform};
use tileformer::kernels::{ActivationRows, Linear};
use tileformer::layers::{AttentionPath, Encoder, EncoderLayer, Inputs, MultiHeadAttention, Placement};
use tileformer::wgpu::{self, CommandEncoderDescriptor, ComputePassDescriptor};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Error, Kernels, Layout, Plan, Program, Scratch,
    Sequences, TensorView, Timing, Variant,
};

/// Kernels, programs and plans can be made on one thread and recorded on another.
#[test]
fn all_is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Kernels>();
    check::<Program>();
    check::<Plan>();
    check::<Builder>();
    check::<Bindings>();
    check::<Scratch>();
    check::<Timing>();
    check::<Error>();
}

/// An encoder layer with random weights, all but x and y bound.
struct Layer {
    program: Program,
    bindings: Bindings,
    rows: usize,
    d_model: usize,
}

impl Layer {
    fn new(d_model: usize, n_heads: usize, lengths: &[usize], seed: u64) -> Self {
        let side = Side::own(Sequences::packed(lengths).unwrap());
        let program = EncoderLayer::new(d_model, n_heads, 2 * d_model).program(kernels(), &Inputs::new(side.shape)).unwrap();
        let mut bindings = Bindings::new();
        Made::of(&program, &mut seeded("plan", seed)).bind(&mut bindings);
        side.bind("", &mut bindings);
        Self { program, bindings, rows: side.shape.q_rows, d_model }
    }

    /// Random rows in, NaN out.
    fn rows(&self, seed: u64) -> [TensorView; 2] {
        let sizes = [self.rows, self.d_model];
        let x = Data::random(&sizes, 1.5, &mut seeded("rows", seed));
        [x.upload(), Data::new(&sizes, vec![f32::NAN; x.f32.len()]).upload()]
    }

    fn bindings(&self, [x, y]: &[TensorView; 2]) -> Bindings {
        let mut bindings = self.bindings.clone();
        bindings.set("x", x.clone()).set("y", y.clone());
        bindings
    }

    fn plan(&self, rows: &[TensorView; 2]) -> Plan {
        self.program.bind(&self.bindings(rows)).unwrap()
    }

    /// The bits that a run of its own gives for these rows.
    fn alone(&self, [x, _]: &[TensorView; 2]) -> Vec<u32> {
        let y = gpu().zeros(Element::F32, &[self.rows, self.d_model]).unwrap();
        let rows = [x.clone(), y];
        gpu().run(&self.plan(&rows)).unwrap();
        bits(&rows[1])
    }
}

fn bits(view: &TensorView) -> Vec<u32> {
    gpu().read_f32(view).unwrap().into_iter().map(f32::to_bits).collect()
}

#[allow(clippy::disallowed_methods)]
fn submit(record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu().device.create_command_encoder(&CommandEncoderDescriptor::default());
    record(&mut encoder);
    gpu().queue.submit([encoder.finish()]);
    gpu().wait().unwrap();
}

/// Plans record into the caller's encoder and pass, after each other, again and interleaved.
#[test]
fn plans_are_recorded_again_and_interleaved() {
    let (a, b) = (Layer::new(12, 3, &[9, 4], 1), Layer::new(20, 4, &[33], 2));
    let (a_rows, b_rows) = (a.rows(1), b.rows(2));
    let (a_alone, b_alone) = (a.alone(&a_rows), b.alone(&b_rows));
    let (a_plan, b_plan) = (a.plan(&a_rows), b.plan(&b_rows));
    submit(|encoder| {
        a_plan.record(encoder);
        {
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
            b_plan.record_in(&mut pass);
            a_plan.record_in(&mut pass);
            b_plan.record_in(&mut pass);
        }
        encoder.clear_buffer(a_rows[1].buffer(), 0, None);
        a_plan.record(encoder);
    });
    assert!(bits(&a_rows[1]) == a_alone && bits(&b_rows[1]) == b_alone);
    // a chain: the second layer reads what the first one writes
    let c = Layer::new(12, 3, &[9, 4], 3);
    let second = [a_rows[1].clone(), c.rows(3)[1].clone()];
    let c_plan = c.plan(&second);
    submit(|encoder| {
        encoder.clear_buffer(a_rows[1].buffer(), 0, None);
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        a_plan.record_in(&mut pass);
        c_plan.record_in(&mut pass);
    });
    assert!(bits(&second[1]) == c.alone(&second));
}

/// Other activations on the same weights; what is not named stays; after an error the plan is as it was.
#[test]
fn activations_are_rebound() {
    let layer = Layer::new(12, 3, &[9, 4], 4);
    let (first, second) = (layer.rows(4), layer.rows(5));
    let mut plan = layer.plan(&first);
    plan.rebind(&[("x", second[0].clone()), ("y", second[1].clone())].into_iter().collect()).unwrap();
    gpu().run(&plan).unwrap();
    assert!(bits(&second[1]) == layer.alone(&second));
    assert!(bits(&first[1]).iter().all(|bits| f32::from_bits(*bits).is_nan()), "the old output was written");
    // one name alone
    plan.rebind(&[("x", first[0].clone())].into_iter().collect()).unwrap();
    gpu().run(&plan).unwrap();
    assert!(bits(&second[1]) == layer.alone(&first));
    // an unaligned view and back again: parameters of its own, then the shared ones
    let before = plan.variants();
    let moved = unaligned(&first[0], 3);
    plan.rebind(&[("x", moved)].into_iter().collect()).unwrap();
    assert_ne!(plan.variants(), before);
    gpu().run(&plan).unwrap();
    assert!(bits(&second[1]) == layer.alone(&first));
    plan.rebind(&[("x", second[0].clone())].into_iter().collect()).unwrap();
    assert_eq!(plan.variants(), before);
    gpu().run(&plan).unwrap();
    assert!(bits(&second[1]) == layer.alone(&second));
    // another offset in the same variants, and another one, and back: parameters alone change
    for (rows, moved) in [(&first, 8), (&second, 4), (&first, 0), (&second, 0)] {
        plan.rebind(&[("x", unaligned(&rows[0], moved))].into_iter().collect()).unwrap();
        assert_eq!(plan.variants(), before);
        gpu().run(&plan).unwrap();
        assert!(bits(&second[1]) == layer.alone(rows), "x moved by {moved} elements");
    }
    // errors: a wrong shape or a weight beside what would do
    let wrong = gpu().zeros(Element::F32, &[1, 12]).unwrap();
    let weight = gpu().zeros(Element::F32, &[12]).unwrap();
    for bad in [vec![("x", first[0].clone()), ("y", wrong)], vec![("x", first[0].clone()), ("norm1.bias", weight)]] {
        assert!(plan.rebind(&bad.into_iter().collect()).is_err());
        gpu().run(&plan).unwrap();
        assert!(bits(&second[1]) == layer.alone(&second), "a refused rebind changed the plan");
    }
    // one that only the bind groups show: x and y in one buffer
    let [x, y] = layer.rows(6);
    let mut b = Builder::new(kernels(), "relu");
    let names = [b.input("x", Element::F32, *x.layout()), b.output("y", Element::F32, *x.layout())].map(Result::unwrap);
    let relu = ActivationRows { x: names[0], activation: Activation::Relu, y: names[1] };
    b.activation("relu", &relu).unwrap();
    let mut plan = b.finish().unwrap().bind(&[("x", x.clone()), ("y", y.clone())].into_iter().collect()).unwrap();
    assert!(plan.rebind(&[("x", first[0].clone()), ("y", first[0].clone())].into_iter().collect()).is_err());
    gpu().run(&plan).unwrap();
    let right: Vec<f32> = gpu().read_f32(&x).unwrap().into_iter().map(|v| v.max(0.0)).collect();
    assert_eq!(gpu().read_f32(&y).unwrap(), right);
}

/// A copy of `view` in another buffer, `offset` elements behind its start.
fn unaligned(view: &TensorView, offset: u64) -> TensorView {
    let data = gpu().read_f32(view).unwrap();
    let longer: Vec<f32> = std::iter::repeat_n(f32::NAN, offset as usize).chain(data).collect();
    let buffer = gpu().upload_f32(&[longer.len()], &longer).unwrap();
    TensorView::new(buffer.buffer(), offset, Element::F32, *view.layout()).unwrap()
}

/// Plans that run one after another share scratch as large as the largest needs.
#[test]
fn scratch_is_shared() {
    let (a, b) = (Layer::new(12, 3, &[9, 4], 6), Layer::new(20, 4, &[33], 7));
    let (a_rows, b_rows) = (a.rows(6), b.rows(7));
    let scratch = Scratch::shared(&[&a.program, &b.program]).unwrap();
    let (own, other) = (a.program.scratch_bytes(), b.program.scratch_bytes());
    assert!(scratch.bytes() >= own.max(other) && scratch.bytes() < own + other);
    let a_plan = a.program.bind_with(&a.bindings(&a_rows), &scratch).unwrap();
    let b_plan = b.program.bind_with(&b.bindings(&b_rows), &scratch).unwrap();
    submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        b_plan.record_in(&mut pass);
        a_plan.record_in(&mut pass);
        b_plan.record_in(&mut pass);
    });
    assert!(bits(&a_rows[1]) == a.alone(&a_rows) && bits(&b_rows[1]) == b.alone(&b_rows));
}

/// A result may take the place of an input that nothing reads any more, and lie between the rows of another result.
#[test]
fn results_take_free_places() {
    let layer = Layer::new(12, 3, &[9, 4], 6);
    let [x, y] = layer.rows(6);
    let right = layer.alone(&[x.clone(), y]);
    gpu().run(&layer.plan(&[x.clone(), x.clone()])).unwrap();
    assert!(bits(&x) == right);

    let mut b = Builder::new(kernels(), "columns of one buffer");
    let rows = Layout::strided(&[4, 8], &[16, 1]).unwrap();
    let x = b.input("x", Element::F32, Layout::contiguous(&[4, 8]).unwrap()).unwrap();
    for (name, activation) in [("left", Activation::Relu), ("right", Activation::Identity)] {
        let y = b.output(name, Element::F32, rows).unwrap();
        b.activation(name, &ActivationRows { x, activation, y }).unwrap();
    }
    let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
    let both = gpu().zeros(Element::F32, &[4, 16]).unwrap();
    let half = |offset| TensorView::new(both.buffer(), offset, Element::F32, rows).unwrap();
    let mut bindings = Bindings::new();
    bindings.set("x", gpu().upload_f32(&[4, 8], &values).unwrap()).set("left", half(0)).set("right", half(8));
    gpu().run(&b.finish().unwrap().bind(&bindings).unwrap()).unwrap();
    for (found, x) in gpu().read_f32(&both).unwrap().chunks_exact(16).zip(values.chunks_exact(8)) {
        let left: Vec<f32> = x.iter().map(|v| v.max(0.0)).collect();
        assert_eq!(found, [&left[..], x].concat());
    }
}

/// Views at any offset give the same bits: at multiples of four elements in the same variants, at others in single f32.
#[test]
fn views_at_any_offset() {
    let side = Side::own(Sequences::packed(&[9, 4]).unwrap());
    let program = EncoderLayer::new(12, 3, 20).program(kernels(), &Inputs::new(side.shape)).unwrap();
    let made = Made::of(&program, &mut seeded("offsets", 0));
    let x = Data::random(&[13, 12], 1.5, &mut seeded("offsets", 1));
    let mut expected = None;
    for (what, single, offset) in [
        ("aligned", false, (|_| 0) as fn(usize) -> usize),
        ("in fours", false, |n| 4 * (n % 5)),
        ("off by one", true, |_| 1),
        ("all over", true, |n| [0, 3, 64, 66, 5, 8][n % 6]),
    ] {
        let mut bindings = Bindings::new();
        let mut tensors = Vec::new();
        for (n, (name, _, element, layout)) in program.tensors().enumerate() {
            let data: Vec<u32> = match (made.all.get(name), name) {
                (Some(data), _) => data.f32.iter().map(|v| v.to_bits()).collect(),
                (None, "x") => x.f32.iter().map(|v| v.to_bits()).collect(),
                (None, "sequences") => side.sequences.words().to_vec(),
                _ => vec![common::POISON; layout.len()],
            };
            let place = Place { offset: offset(n), gap: 0 };
            let tensor = Guarded::input(gpu(), name, element, *layout, place, &data);
            bindings.set(name, tensor.view.clone());
            tensors.push((name.to_owned(), tensor));
        }
        let plan = program.bind(&bindings).unwrap();
        assert_eq!(plan.variants() != program_variants(&program), single, "{what}: {}", plan.describe());
        assert_eq!(plan.describe().contains(".f32."), single, "{what}");
        gpu().run(&plan).unwrap();
        for (name, tensor) in tensors {
            let bits = tensor.bits();
            if name == "y" {
                assert!(bits.iter().all(|b| f32::from_bits(*b).is_finite()), "{what}");
                assert!(*expected.get_or_insert(bits.clone()) == bits, "{what}: other bits");
            }
        }
    }
}

fn program_variants(program: &Program) -> Vec<Variant> {
    program.dispatches().iter().map(tileformer::Dispatch::variant).collect()
}

/// Columns of wider tensors as input, residual, weight and output of projections, and around a whole layer.
#[test]
fn columns_of_wider_tensors() {
    let mut rng = seeded("columns", 0);
    let (rows, d_in, d_out) = (37, 12, 8);
    for (gap, first) in [(8, 4), (5, 3)] {
        let wide = |d: usize| d + gap + first;
        let (x, w, y) =
            (uniform(&mut rng, rows * wide(d_in), -1.0, 1.0), uniform(&mut rng, d_out * wide(d_in), -1.0, 1.0), wide(d_out));
        let mut b = Builder::new(kernels(), "columns");
        let whole = |sizes: [usize; 2]| Layout::contiguous(&sizes).unwrap();
        let all = b.input("x", Element::F32, whole([rows, wide(d_in)])).unwrap();
        let weight = b.weight("weight", whole([d_out, wide(d_in)])).unwrap().narrow(1, first, d_in).unwrap();
        let out = b.output("y", Element::F32, whole([rows, y])).unwrap().narrow(1, first, d_out).unwrap();
        b.linear("projection", &Linear::new(all.narrow(1, first, d_in).unwrap(), weight, out)).unwrap();
        let program = b.finish().unwrap();
        let y_view = gpu().upload_f32(&[rows, y], &vec![-7.0; rows * y]).unwrap();
        let mut bindings = Bindings::new();
        bindings.set("x", gpu().upload_f32(&[rows, wide(d_in)], &x).unwrap()).set("y", y_view.clone());
        bindings.set("weight", gpu().upload_weight(&[d_out, wide(d_in)], &w).unwrap());
        gpu().run(&program.bind(&bindings).unwrap()).unwrap();
        for (i, found) in gpu().read_f32(&y_view).unwrap().into_iter().enumerate() {
            let (row, column) = (i / y, i % y);
            let Some(o) = column.checked_sub(first).filter(|o| *o < d_out) else {
                assert!(found == -7.0, "column {column} beside the view was written");
                continue;
            };
            let at = |c: usize| f64::from(x[row * wide(d_in) + first + c]) * f64::from(w[o * wide(d_in) + first + c]);
            let right: f64 = (0..d_in).map(at).sum();
            assert!((f64::from(found) - right).abs() <= 4e-6, "{found} where {right} is right");
        }
    }

    let layer = Layer::new(12, 3, &[9, 4], 8);
    let dense = layer.rows(8);
    let mut b = Builder::new(kernels(), "wide layer");
    let shape = BatchShape { sequences: 2, q_rows: 13, longest_q: 9, k_rows: 13, longest_k: 9 };
    let batch = b.batch("", &AttentionOptions::default(), 3, shape, None).unwrap();
    let x = b.input("x", Element::F32, Layout::contiguous(&[13, 20]).unwrap()).unwrap().narrow(1, 8, 12).unwrap();
    let y = b.output("y", Element::F32, Layout::contiguous(&[13, 33]).unwrap()).unwrap().narrow(1, 5, 12).unwrap();
    b.encoder_layer("", &EncoderLayer::new(12, 3, 24), &batch, x, None, y).unwrap();
    let x_data = gpu().read_f32(&dense[0]).unwrap();
    let wide: Vec<f32> = x_data.chunks(12).flat_map(|row| [&[f32::NAN; 8], row].concat()).collect();
    let y_view = gpu().upload_f32(&[13, 33], &[-7.0; 13 * 33]).unwrap();
    let mut bindings = layer.bindings.clone();
    bindings.set("x", gpu().upload_f32(&[13, 20], &wide).unwrap()).set("y", y_view.clone());
    gpu().run(&b.finish().unwrap().bind(&bindings).unwrap()).unwrap();
    let found = bits(&y_view);
    let columns: Vec<u32> = found.chunks(33).flat_map(|row| row[5..17].to_vec()).collect();
    assert!(columns == layer.alone(&dense));
    assert!(found.chunks(33).all(|row| [&row[..5], &row[17..]].concat().iter().all(|b| *b == (-7f32).to_bits())));
}

/// A program says what it is before anything is allocated; scratch is reused, to the byte.
#[test]
fn programs_describe_themselves() {
    // Where the table has one dispatch for so few queries, on CPU adapters, this is another.
    let (_, on) = common::on_form("attention_split.f32x4.8x128").unwrap();
    let spec = EncoderLayer::new(8, 2, 16);
    let program = spec.program(&on.kernels, &Inputs::new(BatchShape::padded(1, 4))).unwrap();
    let labels: Vec<&str> = program.dispatches().iter().map(tileformer::Dispatch::label).collect();
    let attention = ["in_proj", "attention", "attention.reduce", "out_proj"].map(|name| format!("self_attn.{name}"));
    let rest = ["norm1", "linear1", "linear2", "norm2"].map(str::to_owned);
    assert_eq!(labels, [&attention[..], &rest[..]].concat());
    let text = program.describe();
    for part in labels.iter().copied().chain(["encoder layer", "linear_few.f32x4.8x", "layer_norm.f32x4", "8 dispatches"]) {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let in_proj = &program.dispatches()[0];
    assert_eq!((in_proj.flops(), in_proj.bytes()), (2 * 4 * 8 * 24, 4 * (4 * 8 + 24 * 8 + 24 + 4 * 24)));
    // q, k and v side by side (4, 24), later the hidden columns; heads (4, 8), later the norm; parts of eight rows, four columns
    // and four statistics each, later the sums
    assert_eq!(program.scratch_bytes(), 4 * (4 * 24) + 4 * (4 * 8) + 4 * (8 * (4 + 4)));
    assert_eq!(Scratch::shared(&[&program]).unwrap().bytes(), program.scratch_bytes());
    assert!(text.contains("768 bytes of scratch"), "{text}");

    let pre = EncoderLayer { placement: Placement::Pre, ..spec.clone() };
    let pre = pre.program(&on.kernels, &Inputs::new(BatchShape::padded(1, 4))).unwrap();
    assert_eq!(pre.dispatches()[0].label(), "norm1");
    let names: Vec<&str> = program.tensors().map(|t| t.0).collect();
    assert!(names.contains(&"self_attn.in_proj_weight") && !names.contains(&"scores"));

    // equal layers share their parameters; one scratch serves all
    let inputs = Inputs::new(BatchShape::padded(1, 4));
    let [one, twelve] = [1, 12].map(|n| Encoder::new(spec.clone(), n).program(&on.kernels, &inputs).unwrap());
    assert_eq!(twelve.dispatches().len(), 12 * one.dispatches().len());
    assert_eq!(twelve.parameter_bytes(), one.parameter_bytes());
    assert!(twelve.scratch_bytes() <= one.scratch_bytes() + 2 * 4 * 4 * 8, "{}", twelve.scratch_bytes());
    assert_eq!(twelve.variants(), one.variants());
}

/// The cost of a layer of BERT-base, as the table says it.
#[test]
fn bert_base_in_numbers() {
    let mut spec = EncoderLayer::new(768, 12, 3072);
    spec.feed_forward.activation = Activation::Gelu;
    let program = spec.program(kernels(), &Inputs::new(BatchShape::padded(1, 128))).unwrap();
    println!("{}", program.describe());
    // On a GPU each of the four products has too few tiles: parts of k, and their sum.
    let on_cpu = gpu().info.device_type == wgpu::DeviceType::Cpu;
    assert_eq!(program.dispatches().len(), if on_cpu { 7 } else { 11 });
    let flops: u64 = program.dispatches().iter().map(tileformer::Dispatch::flops).sum();
    let projections = 2 * 128 * 768 * (4 * 768 + 2 * 3072) as u64;
    let attention = 2 * 2 * 12 * 128 * 128 * 64;
    assert!(flops >= projections + attention && flops < (projections + attention) * 101 / 100, "{flops}");
    // no more than q, k, v or the hidden columns, and rows; or the hidden columns beside six parts of them, and six of out_proj's
    // rows, in whose place q, k and v were
    let columns = if on_cpu { 3072 + 3 * 768 } else { 3072 + 6 * 3072 + 6 * 768 };
    assert!(program.scratch_bytes() <= 4 * 128 * columns, "{}", program.scratch_bytes());

    // Scores are stored where they are asked for only.
    spec.attention.path = AttentionPath::Separate;
    let separate = spec.program(kernels(), &Inputs::new(BatchShape::padded(1, 128))).unwrap();
    assert_eq!(separate.dispatches().len(), if on_cpu { 9 } else { 13 });
    assert!(separate.scratch_bytes() >= 2 * 4 * 12 * 128 * 128 + 4 * 128 * 3072, "{}", separate.scratch_bytes());
}

/// Rule: memory of attention is O(T): no T × S is ever stored.
#[test]
fn long_sequences_need_no_square() {
    let bytes = |t: usize| {
        let program = MultiHeadAttention::new(96, 12).program(kernels(), &Inputs::new(BatchShape::padded(1, t))).unwrap();
        program.scratch_bytes()
    };
    assert_eq!(bytes(16384), 2 * bytes(8192));
    assert!(bytes(16384) <= 4 * 16384 * 4 * 96, "{}", bytes(16384));
}

/// Every dispatch has a time on a device with timestamps, and an error says so on one without.
#[test]
fn dispatches_are_timed() {
    let layer = Layer::new(96, 3, &[65, 40], 9);
    let rows = layer.rows(9);
    let times = gpu().time(&layer.plan(&rows));
    if !gpu().device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        assert!(matches!(times, Err(Error::Feature { .. })), "{times:?}");
        return;
    }
    let times = times.unwrap();
    let labels: Vec<&str> = times.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, layer.program.dispatches().iter().map(tileformer::Dispatch::label).collect::<Vec<_>>());
    assert!(times.iter().all(|(_, ns)| *ns > 0.0 && *ns < 1e10), "{times:?}");
    assert!(bits(&rows[1]) == layer.alone(&rows), "timing changed the result");
}

/// An activation in a weight's place is rebound like any other.
#[test]
fn an_activation_in_a_weights_place_is_rebound() {
    let (gpu, layout) = (gpu(), Layout::contiguous(&[4, 4]).unwrap());
    let kernels = Kernels::new(&gpu.device, tileformer::Options::default()).unwrap();
    let mut b = Builder::new(&kernels, "product");
    let [x, w] = ["x", "w"].map(|name| b.input(name, Element::F32, layout).unwrap());
    let y = b.output("y", Element::F32, layout).unwrap();
    b.linear("product", &Linear::new(x, w, y)).unwrap();
    let program = b.finish().unwrap();
    let identity = |value: f32| (0..16).map(|i| if i % 5 == 0 { value } else { 0.0 }).collect::<Vec<_>>();
    let upload = |data: &[f32]| gpu.upload_f32(&[4, 4], data).unwrap();
    let (x, y) = (upload(&[3.0; 16]), upload(&[0.0; 16]));
    let mut bindings = Bindings::new();
    bindings.set("x", x).set("w", upload(&identity(1.0))).set("y", y.clone());
    let mut plan = program.bind(&bindings).unwrap();
    let mut other = Bindings::new();
    other.set("w", upload(&identity(2.0)));
    plan.rebind(&other).unwrap();
    gpu.run(&plan).unwrap();
    assert_eq!(gpu.read_f32(&y).unwrap(), [6.0; 16]);
}
