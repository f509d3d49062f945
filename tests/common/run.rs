//! One program, run once: name tensors and data, append kernels, run, read.

use std::collections::{BTreeMap, BTreeSet};

use super::guarded::{Guarded, Place};
use tileformer::convenience::Gpu;
use tileformer::{Bindings, Builder, Element, Kernels, Layout, Options, Program, Tensor, Variant};

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
    /// How the next tensors lie.
    pub place: Place,
    gpu: Gpu,
    bindings: Bindings,
    tensors: BTreeMap<String, Guarded>,
}

impl Run {
    pub fn new(on: &On, name: &str, place: Place) -> Self {
        let builder = Builder::new(&on.kernels, name);
        Self { builder, place, gpu: on.gpu.clone(), bindings: Bindings::new(), tensors: BTreeMap::new() }
    }

    /// An input that holds `data`, in row-major order.
    pub fn input(&mut self, name: &str, sizes: &[usize], data: &[f32]) -> Tensor {
        let layout = self.place.layout(sizes);
        self.add(name, Element::F32, layout, float_bits(data));
        self.builder.input(name, Element::F32, layout).expect(name)
    }

    /// An input of ids, masks or sequences.
    pub fn words(&mut self, name: &str, sizes: &[usize], data: &[u32]) -> Tensor {
        let layout = self.place.layout(sizes);
        self.add(name, Element::U32, layout, data.to_vec());
        self.builder.input(name, Element::U32, layout).expect(name)
    }

    /// A weight that holds `data`.
    pub fn weight(&mut self, name: &str, sizes: &[usize], data: &[f32]) -> Tensor {
        let layout = self.place.layout(sizes);
        self.add(name, Element::F32, layout, float_bits(data));
        self.builder.weight(name, layout).expect(name)
    }

    /// An output full of poison.
    pub fn output(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.output_as(name, Element::F32, self.place.layout(sizes))
    }

    /// An output of any type and layout.
    pub fn output_as(&mut self, name: &str, element: Element, layout: Layout) -> Tensor {
        let guarded = Guarded::output(&self.gpu, name, element, layout, self.place);
        self.bindings.set(name, guarded.view.clone());
        self.tensors.insert(name.to_owned(), guarded);
        self.builder.output(name, element, layout).expect(name)
    }

    fn add(&mut self, name: &str, element: Element, layout: Layout, data: Vec<u32>) {
        let guarded = Guarded::input(&self.gpu, name, element, layout, self.place, &data);
        self.bindings.set(name, guarded.view.clone());
        self.tensors.insert(name.to_owned(), guarded);
    }

    /// Binds and runs.
    pub fn go(self) -> Done {
        let program = self.builder.finish().expect("a program");
        let plan = program.bind(&self.bindings).expect("a plan");
        self.gpu.run(&plan).expect("a run");
        Done { program, variants: plan.variants(), tensors: self.tensors }
    }
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

/// Fails unless `reached` holds every variant of `kernel` that the crate can generate: a variant without a test is a variant
/// that may be wrong.
pub fn assert_all_variants(kernel: &str, reached: &BTreeSet<String>) {
    let all = tileformer::kernels::variants().into_iter().map(|v| v.name());
    let all: BTreeSet<String> = all.filter(|name| name.split('.').next() == Some(kernel)).collect();
    assert!(!all.is_empty(), "no kernel is called {kernel}");
    let missed: Vec<_> = all.difference(reached).collect();
    assert!(missed.is_empty(), "variants of {kernel} that no case of this test runs: {missed:?}");
}

fn float_bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}
