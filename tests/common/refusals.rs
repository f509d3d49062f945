//! Tables of bad input: each case must be refused with the right error, which names what is wrong, expected and found; nothing
//! may panic, and nothing may reach the device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tileformer::convenience::{Gpu, Setup};
use tileformer::kernels::Linear;
use tileformer::{Bindings, Builder, Element, Kernels, Layout, Options, Program, Result, Tensor, TensorView, wgpu};

/// A device with WebGPU's default limits, which notes every error that nobody caught.
pub struct Env {
    pub gpu: Gpu,
    pub kernels: Kernels,
    uncaptured: Arc<Mutex<Vec<String>>>,
}

/// What it is, the variant of [`tileformer::Error`], parts of its message, and how to provoke it.
pub type Case = (&'static str, &'static str, &'static [&'static str], fn(&Env) -> Result<()>);

impl Env {
    pub fn new(setup: &Setup) -> Self {
        Self::on(Gpu::open(setup).expect("a device"))
    }

    pub fn on(gpu: Gpu) -> Self {
        let kernels = Kernels::new(&gpu.device, Options::default()).expect("the core tier");
        let uncaptured = Arc::new(Mutex::new(Vec::new()));
        let notes = uncaptured.clone();
        gpu.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            notes.lock().expect("notes").push(error.to_string());
        }));
        Self { gpu, kernels, uncaptured }
    }

    pub fn core() -> Self {
        Self::new(&Setup { core_only: true, ..Setup::default() })
    }

    /// Fails unless every case is refused as it says.
    pub fn refuse(&self, cases: &[Case]) {
        let mut wrong = Vec::new();
        for (what, variant, parts, run) in cases {
            let found = match catch_unwind(AssertUnwindSafe(|| run(self))) {
                Ok(Err(error)) => {
                    let (text, debug) = (error.to_string(), format!("{error:?}"));
                    let missing: Vec<_> = parts.iter().filter(|part| !text.contains(**part)).collect();
                    if debug.starts_with(variant) && missing.is_empty() {
                        continue;
                    }
                    format!("gave {debug}, {text:?}; expected {variant} with {missing:?}")
                }
                Ok(Ok(())) => "was accepted".to_owned(),
                Err(_) => "panicked".to_owned(),
            };
            wrong.push(format!("{what}: {found}"));
        }
        let uncaptured = self.uncaptured();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(uncaptured.is_empty(), "reached the device: {uncaptured:?}");
    }

    /// Errors that nobody caught.
    pub fn uncaptured(&self) -> Vec<String> {
        self.uncaptured.lock().expect("notes").clone()
    }

    pub fn builder(&self) -> Builder {
        Builder::new(&self.kernels, "refused")
    }

    pub fn view(&self, sizes: &[usize]) -> TensorView {
        self.gpu.zeros(Element::F32, sizes).expect("a tensor")
    }

    pub fn words(&self, sizes: &[usize]) -> TensorView {
        self.gpu.zeros(Element::U32, sizes).expect("a tensor")
    }

    pub fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.gpu.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// y (5, 3) = x (5, 8) · weightᵀ (3, 8) + bias.
    pub fn projection(&self) -> Program {
        let mut b = self.builder();
        let (x, weight, y) = (b.f32("x", &[5, 8]), b.w("weight", &[3, 8]), b.out("y", &[5, 3]));
        let bias = Some(b.w("bias", &[3]));
        b.linear("projection", &Linear { bias, ..Linear::new(x, weight, y) }).expect("a projection");
        b.finish().expect("a program")
    }

    /// What [`Env::projection`] binds.
    pub fn projection_bindings(&self) -> Bindings {
        let mut bindings = Bindings::new();
        bindings.set("x", self.view(&[5, 8])).set("weight", self.view(&[3, 8]));
        bindings.set("bias", self.view(&[3])).set("y", self.view(&[5, 3]));
        bindings
    }

    /// [`Env::projection`] with one binding replaced.
    pub fn bind(&self, name: &str, view: TensorView) -> Result<()> {
        let mut bindings = self.projection_bindings();
        bindings.set(name, view);
        self.projection().bind(&bindings).map(drop)
    }
}

/// A layout that is right by itself.
pub fn layout(sizes: &[usize]) -> Layout {
    Layout::contiguous(sizes).expect("a layout")
}

/// Short names for tensors whose own making is no part of a case.
pub trait Tensors {
    fn f32(&mut self, name: &str, sizes: &[usize]) -> Tensor;
    fn u32(&mut self, name: &str, sizes: &[usize]) -> Tensor;
    fn w(&mut self, name: &str, sizes: &[usize]) -> Tensor;
    fn out(&mut self, name: &str, sizes: &[usize]) -> Tensor;
}

impl Tensors for Builder {
    fn f32(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.input(name, Element::F32, layout(sizes)).expect(name)
    }

    fn u32(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.input(name, Element::U32, layout(sizes)).expect(name)
    }

    fn w(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.weight(name, layout(sizes)).expect(name)
    }

    fn out(&mut self, name: &str, sizes: &[usize]) -> Tensor {
        self.output(name, Element::F32, layout(sizes)).expect(name)
    }
}
