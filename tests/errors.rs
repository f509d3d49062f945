//! Refusals of tensors, bindings, plans and the convenience module: the right error, no panic, nothing on the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::refusals::{Case, Env, Tensors, layout};
use tileformer::convenience::{Gpu, Setup};
use tileformer::kernels::{ActivationRows, LayerNorm, Linear};
use tileformer::layers::{Encoder, EncoderLayer, Inputs};
use tileformer::spec::check_ids;
use tileformer::wgpu::{self, BufferUsages};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Kernels, Layout, Options, Program, Result,
    Scratch, TensorView, Timing,
};

/// Layouts and views that no buffer can hold, or that this one does not.
#[test]
fn layouts_and_views() {
    let cases: &[Case] = &[
        ("rank 0", "Option", &["layout", "1 to 5 dimensions", "[]"], |_| Layout::contiguous(&[]).map(drop)),
        ("rank 6", "Option", &["layout", "1 to 5", "[1, 1, 1, 1, 1, 1]"], |_| Layout::contiguous(&[1; 6]).map(drop)),
        ("a size of 0", "Option", &["layout", "size 0", "[3, 0]"], |_| Layout::contiguous(&[3, 0]).map(drop)),
        ("a stride too few", "Option", &["stride", "[2, 3]", "[1]"], |_| Layout::strided(&[2, 3], &[1]).map(drop)),
        ("2^30 + 1 elements", "Option", &["1073741824 elements"], |_| Layout::contiguous(&[(1 << 30) + 1]).map(drop)),
        ("more than 2^64", "Option", &["elements"], |_| Layout::contiguous(&[usize::MAX; 4]).map(drop)),
        ("a stride past 2^30", "Option", &["elements", "strides"], |_| Layout::strided(&[2, 1], &[1 << 30, 1]).map(drop)),
        ("a buffer without STORAGE", "Usage", &["STORAGE", "COPY_DST", "[4]"], |e| {
            TensorView::f32(&e.buffer(64, BufferUsages::COPY_DST), &[4]).map(drop)
        }),
        ("a buffer that is too small", "BufferTooSmall", &["[4, 4]", "byte 64", "60 bytes"], |e| {
            TensorView::f32(&e.buffer(60, BufferUsages::STORAGE), &[4, 4]).map(drop)
        }),
        ("an offset past the end", "BufferTooSmall", &["byte 68", "64 bytes"], |e| {
            TensorView::new(&e.buffer(64, BufferUsages::STORAGE), 13, Element::U32, layout(&[4])).map(drop)
        }),
        ("an offset of 2^64 − 1", "BufferTooSmall", &["64 bytes"], |e| {
            TensorView::new(&e.buffer(64, BufferUsages::STORAGE), u64::MAX, Element::F32, layout(&[4])).map(drop)
        }),
        ("an offset of 2^62", "BufferTooSmall", &["64 bytes"], |e| {
            TensorView::new(&e.buffer(64, BufferUsages::STORAGE), 1 << 62, Element::F32, layout(&[4])).map(drop)
        }),
    ];
    Env::core().refuse(cases);
}

/// A stack of two encoder layers of width 4, for the names of its weights.
fn stack(e: &Env) -> Result<Program> {
    let spec = Encoder::new(EncoderLayer::new(4, 2, 8), 2);
    spec.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)))
}

fn stack_bindings(e: &Env, program: &Program) -> Bindings {
    let zeros = |element, layout: &Layout| e.gpu.zeros(element, layout.sizes()).unwrap();
    program.tensors().map(|(name, _, element, layout)| (name.to_owned(), zeros(element, layout))).collect()
}

/// Bindings that are not the program's.
#[test]
fn bindings() {
    let cases: &[Case] = &[
        ("another size", "Shape", &["x", "[5, 8]", "[5, 9]"], |e| e.bind("x", e.view(&[5, 9]))),
        ("another rank", "Shape", &["y", "[5, 3]", "[15]"], |e| e.bind("y", e.view(&[15]))),
        ("other strides", "Shape", &["x", "[5, 8]", "with strides [12, 1]"], |e| {
            let view = e.view(&[60]);
            e.bind("x", TensorView::new(view.buffer(), 0, Element::F32, Layout::strided(&[5, 8], &[12, 1])?)?)
        }),
        ("another type", "Element", &["x", "f32", "u32"], |e| e.bind("x", e.words(&[5, 8]))),
        ("a name too many", "Unknown", &["gamma", "bias, weight, x, y"], |e| e.bind("gamma", e.view(&[1]))),
        ("nothing at all", "Missing", &["x", "[5, 8]"], |e| e.projection().bind(&Bindings::new()).map(drop)),
        ("a name missing", "Missing", &["bias", "not bound", "[3]"], |e| {
            let all = e.projection_bindings();
            let some = all.iter().filter(|(name, _)| *name != "bias").map(|(name, view)| (name, view.clone()));
            e.projection().bind(&some.collect()).map(drop)
        }),
        ("a misshapen weight of a stack", "Shape", &["layers.1.self_attn.in_proj_weight", "[12, 4]", "[4, 12]"], |e| {
            let program = stack(e)?;
            let mut bindings = stack_bindings(e, &program);
            bindings.set("layers.1.self_attn.in_proj_weight", e.view(&[4, 12]));
            program.bind(&bindings).map(drop)
        }),
        ("a weight of a stack missing", "Missing", &["layers.0.norm2.bias", "[4]"], |e| {
            let program = stack(e)?;
            let all = stack_bindings(e, &program);
            let some = all.iter().filter(|(name, _)| *name != "layers.0.norm2.bias").map(|(n, v)| (n, v.clone()));
            program.bind(&some.collect()).map(drop)
        }),
        ("a key mask that the options lack", "Unknown", &["key_mask", "no tensor of that name", "more"], |e| {
            let program = stack(e)?;
            let mut bindings = stack_bindings(e, &program);
            bindings.set("key_mask", e.words(&[2, 3]));
            program.bind(&bindings).map(drop)
        }),
        ("a key mask that the options have, unbound", "Missing", &["key_mask", "[2, 3]"], |e| {
            let mut spec = EncoderLayer::new(4, 2, 8);
            spec.attention.options = AttentionOptions { key_mask: true, ..AttentionOptions::default() };
            let program = spec.program(&e.kernels, &Inputs::new(BatchShape::padded(2, 3)))?;
            let all = stack_bindings(e, &program);
            program.bind(&all.iter().filter(|b| b.0 != "key_mask").map(|(n, v)| (n, v.clone())).collect()).map(drop)
        }),
        ("sequences of floats", "Element", &["sequences", "u32", "f32"], |e| {
            let program = stack(e)?;
            let mut bindings = stack_bindings(e, &program);
            bindings.set("sequences", e.view(&[2, 8]));
            program.bind(&bindings).map(drop)
        }),
    ];
    Env::core().refuse(cases);
}

/// h = relu(x), then y = relu(z), all (2, 4) and bound apart.
fn chain(e: &Env) -> Result<(Program, Bindings)> {
    let mut b = e.builder();
    let [x, z] = ["x", "z"].map(|name| b.f32(name, &[2, 4]));
    let [h, y] = ["h", "y"].map(|name| b.out(name, &[2, 4]));
    b.activation("first", &ActivationRows { x, activation: Activation::Relu, y: h })?;
    b.activation("second", &ActivationRows { x: z, activation: Activation::Relu, y })?;
    let bindings = ["x", "z", "h", "y"].into_iter().map(|name| (name, e.view(&[2, 4]))).collect();
    Ok((b.finish()?, bindings))
}

/// Memory that is written and bound a second time: in one dispatch, however the views lie; in two, where bytes are destroyed.
#[test]
fn aliases() {
    let cases: &[Case] = &[
        ("the output over an input", "Alias", &["projection", "y", "x"], |e| {
            let view = e.view(&[5, 8]);
            let mut bindings = e.projection_bindings();
            bindings.set("x", view.clone()).set("y", TensorView::f32(view.buffer(), &[5, 3])?);
            e.projection().bind(&bindings).map(drop)
        }),
        ("the output over a weight", "Alias", &["projection", "y", "weight"], |e| {
            let view = e.view(&[3, 8]);
            let mut bindings = e.projection_bindings();
            bindings.set("weight", view.clone()).set("y", TensorView::f32(view.buffer(), &[5, 3])?);
            e.projection().bind(&bindings).map(drop)
        }),
        ("halves of one buffer", "Alias", &["y", "x", "buffer"], |e| {
            let view = e.view(&[1024]);
            let mut bindings = e.projection_bindings();
            bindings.set("x", TensorView::f32(view.buffer(), &[5, 8])?);
            bindings.set("y", TensorView::new(view.buffer(), 512, Element::F32, layout(&[5, 3]))?);
            e.projection().bind(&bindings).map(drop)
        }),
        ("two outputs in one buffer", "Alias", &["norm", "sum", "y"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[2, 4]), b.out("y", &[2, 4]));
            let sum = Some(b.out("sum", &[2, 4]));
            b.layer_norm("norm", &LayerNorm { sum, ..LayerNorm::new(x, y) })?;
            let view = e.view(&[16]);
            let mut bindings = Bindings::new();
            bindings.set("x", e.view(&[2, 4])).set("y", TensorView::f32(view.buffer(), &[2, 4])?);
            bindings.set("sum", TensorView::new(view.buffer(), 8, Element::F32, layout(&[2, 4]))?);
            b.finish()?.bind(&bindings).map(drop)
        }),
        ("one tensor read and written", "Alias", &["relu", "y"], |e| {
            let mut b = e.builder();
            let y = b.out("y", &[2, 4]);
            b.activation("relu", &ActivationRows { x: y, activation: Activation::Relu, y })
        }),
        ("an output read before it is written", "Option", &["y", "relu", "none"], |e| {
            let mut b = e.builder();
            let [z, y] = ["z", "y"].map(|name| b.out(name, &[2, 4]));
            b.activation("relu", &ActivationRows { x: y, activation: Activation::Relu, y: z })
        }),
        ("other columns of one tensor", "Alias", &["relu", "y"], |e| {
            let mut b = e.builder();
            let y = b.out("y", &[2, 8]);
            let x = y.narrow(1, 4, 4)?;
            b.activation("relu", &ActivationRows { x, activation: Activation::Relu, y: y.narrow(1, 0, 4)? })
        }),
        ("a residual that is the output", "Alias", &["projection", "y"], |e| {
            let mut b = e.builder();
            let (x, weight, y) = (b.f32("x", &[5, 8]), b.w("weight", &[3, 8]), b.out("y", &[5, 3]));
            b.linear("projection", &Linear { residual: Some(y), ..Linear::new(x, weight, y) })
        }),
        ("two results in one place", "Alias", &["first", "h", "y"], |e| {
            let (program, mut bindings) = chain(e)?;
            bindings.set("h", bindings.get("y").unwrap().clone());
            program.bind(&bindings).map(drop)
        }),
        ("a result over what a later dispatch reads", "Alias", &["first", "h", "z"], |e| {
            let (program, mut bindings) = chain(e)?;
            let view = e.view(&[16]);
            bindings.set("z", TensorView::f32(view.buffer(), &[2, 4])?);
            bindings.set("h", TensorView::new(view.buffer(), 7, Element::F32, layout(&[2, 4]))?);
            program.bind(&bindings).map(drop)
        }),
        ("a result over another dispatch's weight", "Alias", &["layers.1.norm2", "y", "layers.0.linear1.bias"], |e| {
            let program = stack(e)?;
            let mut bindings = stack_bindings(e, &program);
            let view = e.view(&[2, 3, 4]);
            bindings.set("layers.0.linear1.bias", TensorView::f32(view.buffer(), &[8])?);
            bindings.set("y", TensorView::f32(view.buffer(), &[6, 4])?);
            program.bind(&bindings).map(drop)
        }),
        ("a rebound output over an input", "Alias", &["y", "x"], |e| {
            let bindings = e.projection_bindings();
            let mut plan = e.projection().bind(&bindings)?;
            let buffer = bindings.get("x").unwrap().buffer();
            plan.rebind(&[("y", TensorView::f32(buffer, &[5, 3])?)].into_iter().collect())
        }),
    ];
    Env::core().refuse(cases);
}

/// What a plan, its scratch and its timing refuse.
#[test]
fn plans() {
    let cases: &[Case] = &[
        ("a weight rebound", "Option", &["weight: expected an input", "a plan's life"], |e| {
            let mut plan = e.projection().bind(&e.projection_bindings())?;
            plan.rebind(&[("weight", e.view(&[3, 8]))].into_iter().collect())
        }),
        ("another shape rebound", "Shape", &["x", "[5, 8]", "[8, 5]"], |e| {
            let mut plan = e.projection().bind(&e.projection_bindings())?;
            plan.rebind(&[("x", e.view(&[8, 5]))].into_iter().collect())
        }),
        ("scratch of a smaller program", "BufferTooSmall", &["scratch of encoder", "bytes"], |e| {
            let program = stack(e)?;
            let bindings = stack_bindings(e, &program);
            program.bind_with(&bindings, &Scratch::shared(&[&e.projection()])?).map(drop)
        }),
        ("timing without the feature", "Feature", &["timing", "TIMESTAMP_QUERY"], |e| {
            Timing::new(&e.projection().bind(&e.projection_bindings())?).map(drop)
        }),
    ];
    Env::core().refuse(cases);
}

/// Timing on a device that has timestamps.
#[test]
fn timings() {
    let env = Env::new(&Setup::default());
    if !env.gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        return;
    }
    env.refuse(&[
        ("the timing of another plan", "Option", &["timing", "1 dispatches", "16"], |e| {
            let plan = e.projection().bind(&e.projection_bindings())?;
            let program = stack(e)?;
            let other = Timing::new(&program.bind(&stack_bindings(e, &program))?)?;
            let mut encoder = e.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.record_timed(&mut encoder, &other)
        }),
        ("more dispatches than a query set holds", "Limit", &["timing", "4098", "4096"], |e| {
            let mut b = e.builder();
            let (x, y) = (b.f32("x", &[1, 4]), b.out("y", &[1, 4]));
            for _ in 0..2049 {
                b.activation("relu", &ActivationRows { x, activation: Activation::Relu, y })?;
            }
            let bindings = [("x", e.view(&[1, 4])), ("y", e.view(&[1, 4]))].into_iter().collect();
            Timing::new(&b.finish()?.bind(&bindings)?).map(drop)
        }),
    ]);
}

/// What is no plan of a decode step: `tokens` (4, 2) of `element`, and `log_probs` of `sizes`.
fn steps(e: &Env, element: Element, sizes: &[usize]) -> Result<()> {
    let mut b = e.builder();
    let (x, log_probs) = (b.f32("x", sizes), b.out("log_probs", sizes));
    b.activation("log_probs", &ActivationRows { x, activation: Activation::Relu, y: log_probs })?;
    b.u32("state", &[4, 8]);
    b.input("tokens", element, layout(&[4, 2]))?;
    let program = b.finish()?;
    let zeros = |element, layout: &Layout| e.gpu.zeros(element, layout.sizes()).unwrap();
    let bindings = program.tensors().map(|(name, _, element, layout)| (name.to_owned(), zeros(element, layout))).collect();
    e.gpu.decode(&program.bind(&bindings)?, 4, 4).map(drop)
}

/// Uploads, readbacks, submissions, decoding and adapters.
#[test]
fn convenience() {
    let cases: &[Case] = &[
        ("too few elements", "Shape", &["upload", "6 elements for [2, 3]", "5"], |e| {
            e.gpu.upload_f32(&[2, 3], &[0.0; 5]).map(drop)
        }),
        ("a weight with too many", "Shape", &["upload", "2 elements", "3"], |e| {
            e.gpu.upload_weight(&[2], &[0.0; 3]).map(drop)
        }),
        ("a size of 0", "Option", &["size 0"], |e| e.gpu.upload_u32(&[0], &[]).map(drop)),
        ("a tensor larger than a buffer", "Limit", &["buffer", "536870912", "268435456"], |e| {
            e.gpu.zeros(Element::F32, &[1 << 27]).map(drop)
        }),
        ("an id outside its table", "Id", &["ids[2]", "id 7", "7 rows"], |e| {
            e.gpu.upload_ids("ids", &[3], &[0, 6, 7], 7).map(drop)
        }),
        ("an id outside an empty table", "Id", &["segment_ids[0]", "0 rows"], |_| check_ids("segment_ids", &[0], 0)),
        ("a write into gaps", "Shape", &["upload", "contiguous", "with strides [4, 1]"], |e| {
            let view = e.view(&[8]);
            let gaps = TensorView::new(view.buffer(), 0, Element::F32, Layout::strided(&[2, 2], &[4, 1])?)?;
            e.gpu.write(&gaps, &[0; 16])
        }),
        ("a write of half an element", "Shape", &["upload", "[4]", "14 bytes"], |e| e.gpu.write(&e.view(&[4]), &[0; 14])),
        ("a write without COPY_DST", "Usage", &["upload", "COPY_DST", "STORAGE"], |e| {
            e.gpu.write(&TensorView::f32(&e.buffer(16, BufferUsages::STORAGE), &[4])?, &[0; 16])
        }),
        ("floats read as words", "Element", &["readback", "u32", "f32"], |e| e.gpu.read_u32(&e.view(&[4])).map(drop)),
        ("a read without COPY_SRC", "Usage", &["readback", "COPY_SRC", "STORAGE"], |e| {
            e.gpu.read_f32(&TensorView::f32(&e.buffer(16, BufferUsages::STORAGE), &[4])?).map(drop)
        }),
        ("a read past the end", "BufferTooSmall", &["readback", "byte 24", "16 bytes"], |e| {
            e.gpu.read_bytes(e.view(&[4]).buffer(), 8, 16).map(drop)
        }),
        ("a read at 2^64 − 1", "BufferTooSmall", &["readback", "16 bytes"], |e| {
            e.gpu.read_bytes(e.view(&[4]).buffer(), u64::MAX - 3, 8).map(drop)
        }),
        ("a read of half an element", "Option", &["readback", "multiples of 4", "6"], |e| {
            e.gpu.read_bytes(e.view(&[4]).buffer(), 4, 6).map(drop)
        }),
        ("a read from within an element", "Option", &["readback", "multiples of 4", "2"], |e| {
            e.gpu.read_bytes(e.view(&[4]).buffer(), 2, 4).map(drop)
        }),
        ("a destroyed buffer", "Device", &["refused", "destroyed"], |e| {
            let bindings = e.projection_bindings();
            let plan = e.projection().bind(&bindings)?;
            bindings.get("x").unwrap().buffer().destroy();
            e.gpu.run(&plan)
        }),
        ("ids in f32", "Element", &["tokens", "u32", "f32"], |e| steps(e, Element::F32, &[4, 2])),
        ("log-probabilities of other sizes", "Shape", &["log_probs", "[4, 2]", "[1, 1]"], |e| {
            steps(e, Element::U32, &[1, 1])
        }),
        ("an adapter that nobody has", "Device", &["\"Voodoo\"", "there are"], |_| {
            Gpu::open(&Setup { adapter: Some("Voodoo".into()), ..Setup::default() }).map(drop)
        }),
    ];
    let env = Env::core();
    env.refuse(cases);
    assert_eq!(env.gpu.read_bytes(env.view(&[4]).buffer(), 8, 0), Ok(Vec::new()), "nothing read is nothing");
}

/// A device below the core tier is refused by the limit's name.
#[test]
#[allow(clippy::type_complexity)]
fn devices_below_the_core_tier() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let lowered: [(&str, u64, fn(&mut wgpu::Limits)); 7] = [
        ("max_storage_buffers_per_shader_stage", 8, |l| l.max_storage_buffers_per_shader_stage = 4),
        ("max_compute_invocations_per_workgroup", 256, |l| l.max_compute_invocations_per_workgroup = 128),
        ("max_compute_workgroup_size_x", 256, |l| l.max_compute_workgroup_size_x = 64),
        ("max_compute_workgroup_storage_size", 16_384, |l| l.max_compute_workgroup_storage_size = 8_192),
        ("max_uniform_buffer_binding_size", 16_384, |l| l.max_uniform_buffer_binding_size = 64),
        ("max_bindings_per_bind_group", 16, |l| l.max_bindings_per_bind_group = 4),
        ("max_compute_workgroups_per_dimension", 65_535, |l| l.max_compute_workgroups_per_dimension = 1_000),
    ];
    for (name, needs, lower) in lowered {
        let mut required_limits = wgpu::Limits::default();
        lower(&mut required_limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let (device, _queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let error = Kernels::new(&device, Options::default()).unwrap_err();
        let tileformer::Error::Limit { limit, needed, allowed, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*limit, *needed), (name, needs), "{error}");
        assert!(allowed < needed, "{error}");
    }
}

/// Tensors and scratch of another device of the same instance.
#[test]
fn two_devices() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let [one, two] = [(); 2].map(|()| {
        let opened = adapter.request_device(&wgpu::DeviceDescriptor::default());
        let (device, queue) = pollster::block_on(opened).unwrap();
        Env::on(Gpu { info: adapter.get_info(), device, queue, cooperative_matrices: Vec::new() })
    });
    let mut bindings = one.projection_bindings();
    bindings.set("x", two.view(&[5, 8]));
    let error = one.projection().bind(&bindings).unwrap_err();
    assert!(matches!(error, tileformer::Error::Device(_)), "{error:?}");
    assert!(error.to_string().contains("x (1.0)"), "wgpu does not say which tensor it is: {error}");
    let error = Scratch::shared(&[&one.projection(), &two.projection()]).unwrap_err();
    assert!(error.to_string().contains("programs of one device"), "{error}");
    let plan = one.projection().bind(&one.projection_bindings()).unwrap();
    let error = two.gpu.run(&plan).unwrap_err();
    assert!(error.to_string().contains("one of this device"), "{error}");
    assert!(two.gpu.decode(&plan, 1, 1).is_err() && two.gpu.time(&plan).is_err());
    assert!(one.uncaptured().is_empty() && two.uncaptured().is_empty());
}

/// A device that is gone gives errors.
#[test]
fn a_destroyed_device() {
    let env = Env::core();
    let plan = env.projection().bind(&env.projection_bindings()).unwrap();
    let y = env.view(&[5, 3]);
    env.gpu.device.destroy();
    let _ = env.gpu.run(&plan);
    assert!(env.gpu.read_f32(&y).is_err(), "read from a destroyed device");
    let _: Builder = env.builder();
}
