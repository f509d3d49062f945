//! One program, run once: name tensors and data, append kernels, run, read.

use std::collections::{BTreeMap, BTreeSet};

use super::guarded::{Guarded, Place};
use tileformer::convenience::Gpu;
use tileformer::kernels::ActivationRows;
use tileformer::spec::blocks;
use tileformer::{Activation, Bindings, Builder, Element, Kernels, Layout, Options, Program, Scratch, Tensor, Variant};

/// The crate on a device.
pub struct On {
    pub gpu: Gpu,
    pub kernels: Kernels,
}

impl On {
    pub fn new(gpu: Gpu, options: Options) -> Self {
        let kernels = Kernels::new(&gpu.device, options).expect("kernels");
        Self { gpu, kernels }
    }
}

/// A program that is being built, with the buffers that it will run on. Every tensor, inputs too, lies between guards.
pub struct Run {
    pub builder: Builder,
    /// How the next tensors lie, but for what tells them apart: [`Place::apart`].
    pub place: Place,
    /// What floats are stored as, but for those that are f32 in any case.
    pub element: Element,
    gpu: Gpu,
    bindings: Bindings,
    tensors: BTreeMap<String, Guarded>,
}

impl Run {
    pub fn new(on: &On, name: &str, place: Place) -> Self {
        Self::stored(on, name, place, Element::F32)
    }

    /// As [`Run::new`], with floats stored as `element`.
    pub fn stored(on: &On, name: &str, place: Place, element: Element) -> Self {
        let builder = Builder::new(&on.kernels, name).with_storage(element).expect("a storage");
        Self { builder, place, element, gpu: on.gpu.clone(), bindings: Bindings::new(), tensors: BTreeMap::new() }
    }

    /// An input that holds `data`, in row-major order.
    pub fn input(&mut self, name: &str, sizes: &[usize], data: &[f32]) -> Tensor {
        self.input_as(name, self.element, sizes, data)
    }

    /// An input of any kind of float: masks and probabilities are f32 in any case.
    pub fn input_as(&mut self, name: &str, element: Element, sizes: &[usize], data: &[f32]) -> Tensor {
        let layout = self.next_place().layout(sizes);
        self.add(name, element, layout, float_bits(element, data));
        self.builder.input(name, element, layout).expect(name)
    }

    /// An input of ids, with gaps between them where the place has any.
    pub fn ids(&mut self, name: &str, ids: &[u32]) -> Tensor {
        let layout = Layout::strided(&[ids.len()], &[1 + self.next_place().gap]).expect("a layout");
        self.add(name, Element::U32, layout, ids.to_vec());
        self.builder.input(name, Element::U32, layout).expect(name)
    }

    /// An input of masks, sequences or bits.
    pub fn words(&mut self, name: &str, sizes: &[usize], data: &[u32]) -> Tensor {
        let layout = self.next_place().layout(sizes);
        self.add(name, Element::U32, layout, data.to_vec());
        self.builder.input(name, Element::U32, layout).expect(name)
    }

    /// A weight that holds `data`.
    pub fn weight(&mut self, name: &str, sizes: &[usize], data: &[f32]) -> Tensor {
        let layout = self.next_place().layout(sizes);
        self.add(name, self.element, layout, float_bits(self.element, data));
        self.builder.weight(name, layout).expect(name)
    }

    /// A weight (d_out, d_in) in blocks, between guards, with gaps of whole units where the place has any.
    pub fn blocks(&mut self, name: &str, element: Element, [d_out, d_in]: [usize; 2], words: &[u32]) -> Tensor {
        let whole = |n: usize| n.next_multiple_of(4);
        let place = Place { offset: whole(self.next_place().offset), gap: whole(self.next_place().gap) };
        let row = blocks::row_words(element, d_in);
        let layout = place.layout(&[d_out, row]);
        let guarded = Guarded::input(&self.gpu, name, element, layout, place, words);
        self.bindings.set(name, guarded.view.clone());
        self.tensors.insert(name.to_owned(), guarded);
        self.builder.weight_as(name, element, layout).expect(name)
    }

    /// An output full of poison.
    pub fn output(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.output_as(name, self.element, self.next_place().layout(sizes))
    }

    /// An output of any type and layout.
    pub fn output_as(&mut self, name: &str, element: Element, layout: Layout) -> Tensor {
        let guarded = Guarded::output(&self.gpu, name, element, layout, self.next_place());
        self.bindings.set(name, guarded.view.clone());
        self.tensors.insert(name.to_owned(), guarded);
        self.builder.output(name, element, layout).expect(name)
    }

    /// A tensor of words that the program reads and writes.
    pub fn state(&mut self, name: &str, sizes: &[usize], data: &[u32]) -> Tensor {
        let layout = self.next_place().layout(sizes);
        self.add(name, Element::U32, layout, data.to_vec());
        self.builder.state(name, Element::U32, layout).expect(name)
    }

    fn next_place(&self) -> Place {
        self.place.apart(self.tensors.len())
    }

    fn add(&mut self, name: &str, element: Element, layout: Layout, data: Vec<u32>) {
        let guarded = Guarded::input(&self.gpu, name, element, layout, self.next_place(), &data);
        self.bindings.set(name, guarded.view.clone());
        self.tensors.insert(name.to_owned(), guarded);
    }

    /// Binds and runs, on scratch that was used before.
    pub fn go(self) -> Done {
        let kernels = self.builder.kernels().clone();
        let program = self.builder.finish().expect("a program");
        let scratch = used_scratch(&self.gpu, &kernels, &program);
        let plan = program.bind_with(&self.bindings, &scratch).expect("a plan");
        self.gpu.run(&plan).expect("a run");
        Done { program, variants: plan.variants(), tensors: self.tensors }
    }
}

/// Scratch in which another program has left large numbers: fresh memory is zeros, which forgive a kernel that reads what none has
/// written.
fn used_scratch(gpu: &Gpu, kernels: &Kernels, program: &Program) -> Scratch {
    let most = gpu.device.limits().max_storage_buffer_binding_size;
    let sizes = [program.scratch_bytes().min(most) as usize / 16, 4];
    if sizes[0] == 0 {
        return Scratch::shared(&[program]).expect("scratch");
    }
    let layout = Layout::contiguous(&sizes).expect("a layout");
    let mut builder = Builder::new(kernels, "used scratch");
    let x = builder.input("x", Element::F32, layout).expect("x");
    let between = builder.scratch("between", Element::F32, layout).expect("between");
    let y = builder.output("y", Element::F32, layout).expect("y");
    for (x, y) in [(x, between), (between, y)] {
        builder.activation("fill", &ActivationRows { x, activation: Activation::Identity, y }).expect("a dispatch");
    }
    let user = builder.finish().expect("a program");
    let scratch = Scratch::shared(&[program, &user]).expect("scratch");
    let mut bindings = Bindings::new();
    for (name, value) in [("x", 1e10), ("y", 0.0)] {
        bindings.set(name, gpu.upload_f32(&sizes, &vec![value; layout.len()]).expect("an upload"));
    }
    gpu.run(&user.bind_with(&bindings, &scratch).expect("a plan")).expect("a run");
    scratch
}

/// What a run leaves.
pub struct Done {
    pub program: Program,
    /// The variants that ran, one a dispatch.
    pub variants: Vec<Variant>,
    tensors: BTreeMap<String, Guarded>,
}

impl Done {
    pub fn tensor(&self, name: &str) -> &Guarded {
        self.tensors.get(name).expect(name)
    }

    /// All elements of an output, all of them written, nothing else.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.tensor(name).f32()
    }

    /// Adds the names of the variants that ran.
    pub fn note(&self, reached: &mut BTreeSet<String>) {
        reached.extend(self.variants.iter().map(Variant::name));
    }
}

/// Fails unless `reached` holds every f32 variant of `kernel` that this adapter can run: a variant without a test is a variant
/// that may be wrong. Those that it cannot run for want of a feature are named; none of the core tier is among them.
pub fn assert_all_variants(kernel: &str, reached: &BTreeSet<String>) {
    assert_all_stored_variants(kernel, Element::F32, reached);
}

/// As [`assert_all_variants`], for the variants that store floats as `element`.
pub fn assert_all_stored_variants(kernel: &str, element: Element, reached: &BTreeSet<String>) {
    let features = super::gpu().device.features();
    let of_kernel = |v: &Variant| {
        let name = v.name();
        let mut parts = name.split('.');
        let kernel_matches = parts.next() == Some(kernel);
        kernel_matches && parts.next().is_some_and(|s| s.starts_with("f32")) == (element == Element::F32)
    };
    let all: Vec<Variant> = tileformer::kernels::variants().into_iter().filter(of_kernel).collect();
    assert!(!all.is_empty(), "no kernel is called {kernel}");
    let (runs, lacks): (Vec<_>, Vec<_>) = all.into_iter().partition(|v| features.contains(v.features()));
    let missed: Vec<_> = runs.iter().map(Variant::name).filter(|name| !reached.contains(name)).collect();
    assert!(missed.is_empty(), "variants of {kernel} that no case of this test runs: {missed:?}");
    if !lacks.is_empty() {
        println!("{} lacks the features for {lacks:?}", super::gpu().info.name);
    }
}

fn float_bits(element: Element, data: &[f32]) -> Vec<u32> {
    match element {
        Element::F16 => data.iter().map(|&x| u32::from(half::f16::from_f32(x).to_bits())).collect(),
        _ => data.iter().map(|x| x.to_bits()).collect(),
    }
}
