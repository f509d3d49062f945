//! Recording does nothing beyond the bare wgpu calls: counted, allocation by allocation, against a hand-written loop.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use tileformer::convenience::{Gpu, Setup};
use tileformer::layers::{Embedding, Encoder, EncoderLayer, GeneratorInputs, Inputs, Norm, Placement, StepShape};
use tileformer::spec::generator::{Generator, GeneratorCaches, GeneratorStack};
use tileformer::wgpu::{self, BufferUsages};
use tileformer::{AttentionOptions, BatchShape, Element, Kernels, Options, Program};

/// The system's allocator, counting what this thread asks for.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that ends may allocate after its counters are gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|sum| sum.set(sum.get() + bytes));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, memory) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, memory: Memory, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, memory, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes that `f` asks for on this thread.
fn counted(f: impl FnOnce()) -> (usize, usize) {
    let before = (COUNT.get(), BYTES.get());
    f();
    (COUNT.get() - before.0, BYTES.get() - before.1)
}

/// Dispatches by hand: as many pipelines and bind groups as a plan of the same number of dispatches has.
struct Bare {
    dispatches: Vec<(wgpu::ComputePipeline, [wgpu::BindGroup; 2])>,
}

impl Bare {
    fn new(device: &wgpu::Device, dispatches: usize) -> Self {
        let source = "@group(0) @binding(0) var<uniform> a: vec4<u32>;
            @group(1) @binding(0) var<storage, read_write> b: array<u32>;
            @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) { b[id.x] = a.x; }";
        let source = wgpu::ShaderSource::Wgsl(source.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 4096, usage, mapped_at_creation: false })
        };
        let (uniform, storage) = (buffer(BufferUsages::UNIFORM), buffer(BufferUsages::STORAGE));
        let one = |_| {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            let group = |i: u32, buffer: &wgpu::Buffer| {
                device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &pipeline.get_bind_group_layout(i),
                    entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
                })
            };
            let groups = [group(0, &uniform), group(1, &storage)];
            (pipeline, groups)
        };
        Self { dispatches: (0..dispatches).map(one).collect() }
    }

    fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, groups) in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &groups[0], &[]);
            pass.set_bind_group(1, &groups[1], &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    }
}

/// A step that decodes: every token of a text records it once more.
fn decode_step(kernels: &Kernels) -> Program {
    let mut layer = EncoderLayer::new(16, 2, 24);
    (layer.placement, layer.attention.options) = (Placement::Pre, AttentionOptions::causal());
    let stack = GeneratorStack::Encoder(Encoder::new(layer, 3).with_final_norm(Norm::default()));
    let generator = Generator::new(Embedding { positions: Some(9), ..Embedding::new(50, 16) }, stack);
    let inputs = GeneratorInputs::new(GeneratorCaches::new(2, 9), Element::F32);
    let program = generator.step(kernels, &inputs, &StepShape::new(2, 8)).unwrap();
    assert_eq!(program.dispatches().len(), 3 * 6 + 3, "{}", program.describe());
    program
}

/// `record_in` asks for exactly as much memory as the bare calls do, and `record` for what a bare pass takes beside.
#[test]
fn recording_allocates_what_wgpu_does() {
    let gpu = Gpu::open(&Setup::default()).unwrap();
    let kernels = Kernels::new(&gpu.device, Options::default()).unwrap();
    let encoder_of = || gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut results = Vec::new();
    let stack = |n_layers: usize| {
        let stack = Encoder::new(EncoderLayer::new(12, 3, 24), n_layers);
        stack.program(&kernels, &Inputs::new(BatchShape::padded(2, 9))).unwrap()
    };
    for program in [stack(1), stack(2), stack(6), decode_step(&kernels)] {
        let zeros = |(name, _, element, layout): (&str, _, _, &tileformer::Layout)| {
            (name.to_owned(), gpu.zeros(element, layout.sizes()).unwrap())
        };
        let plan = program.bind(&program.tensors().map(zeros).collect()).unwrap();
        let dispatches = program.dispatches().len();
        let bare = Bare::new(&gpu.device, dispatches);
        let descriptor = || wgpu::ComputePassDescriptor { label: Some(program.name()), timestamp_writes: None };

        // A second recording of each, so that what wgpu makes once is there.
        let [mut of_plan, mut of_bare, mut pass_of_plan, mut pass_of_bare] = [(0, 0); 4];
        for _ in 0..2 {
            let mut encoder = encoder_of();
            let mut pass = encoder.begin_compute_pass(&descriptor());
            of_plan = counted(|| plan.record_in(&mut pass));
            drop(pass);
            drop(encoder.finish());
            let mut encoder = encoder_of();
            let mut pass = encoder.begin_compute_pass(&descriptor());
            of_bare = counted(|| bare.record_in(&mut pass));
            drop(pass);
            drop(encoder.finish());
            let mut encoder = encoder_of();
            pass_of_plan = counted(|| plan.record(&mut encoder));
            drop(encoder.finish());
            let mut encoder = encoder_of();
            pass_of_bare = counted(|| bare.record_in(&mut encoder.begin_compute_pass(&descriptor())));
            drop(encoder.finish());
        }
        println!("{dispatches} dispatches: record_in {of_plan:?}, by hand {of_bare:?} allocations and bytes");
        println!("{dispatches} dispatches: record {pass_of_plan:?}, a bare pass {pass_of_bare:?}");
        results.push((of_plan, of_bare, pass_of_plan.0, pass_of_bare.0));
    }
    for (of_plan, of_bare, pass_of_plan, pass_of_bare) in results {
        assert!(of_plan.0 <= of_bare.0 && of_plan.1 <= of_bare.1, "{of_plan:?} against {of_bare:?}");
        assert!(pass_of_plan <= pass_of_bare, "{pass_of_plan} against {pass_of_bare} with the pass");
    }
}
