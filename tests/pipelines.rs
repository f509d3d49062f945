//! Compilation ahead of use, in steps; the caller's cache; shaders that do not compile.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::gpu;
use tileformer::convenience::{Gpu, Setup};
use tileformer::kernels::Linear;
use tileformer::layers::{Encoder, EncoderLayer, Inputs};
use tileformer::{BatchShape, Bindings, Builder, Element, Error, Kernels, Layout, Options, Sequences, TensorView, wgpu};

/// Compilation in steps: each variant once, with progress; a plan bound afterwards needs no other.
#[test]
fn warm_up_goes_step_by_step() {
    let kernels = Kernels::new(&gpu().device, Options::default()).unwrap();
    let stack = Encoder::new(EncoderLayer::new(12, 3, 24), 3);
    let program = stack.program(&kernels, &Inputs::new(BatchShape::padded(2, 9))).unwrap();
    let variants = program.variants();
    assert_eq!(variants.iter().collect::<std::collections::HashSet<_>>().len(), variants.len());
    let mut warm_up = kernels.warm_up(variants.iter().chain(&variants).copied());
    for (n, variant) in variants.iter().enumerate() {
        let progress = pollster::block_on(warm_up.step()).unwrap().unwrap();
        assert_eq!((progress.done, progress.total, progress.variant), (n + 1, variants.len(), variant.name()));
    }
    assert_eq!(pollster::block_on(warm_up.step()).unwrap(), None);
    assert_eq!(pollster::block_on(warm_up.step()).unwrap(), None);
}

/// A pipeline cache of the caller's serves compilation. What it holds then is the driver's business: a software one may keep
/// nothing.
#[test]
fn a_pipeline_cache_is_used() {
    let gpu = Gpu::open(&Setup::default()).unwrap();
    if !gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return;
    }
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: None, fallback: true };
    // SAFETY: no data is given.
    let cache = unsafe { gpu.device.create_pipeline_cache(&descriptor) };
    let before = cache.get_data().map(|data| data.len());
    let kernels = Kernels::new(&gpu.device, Options::default().with_pipeline_cache(cache.clone())).unwrap();
    let program = EncoderLayer::new(12, 3, 24).program(&kernels, &Inputs::new(BatchShape::padded(1, 9))).unwrap();
    let zeros = |layout: &Layout, element| gpu.zeros(element, layout.sizes()).unwrap();
    let bindings = program.tensors().map(|(name, _, element, layout)| (name.to_owned(), zeros(layout, element))).collect();
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    assert!(cache.get_data().map(|data| data.len()) >= before);
}

/// Rule: a pinned variant runs wherever it can, and is passed over where it cannot.
#[test]
fn pinned_variants_are_preferred() {
    let features = gpu().device.features();
    let layout = |sizes: &[usize]| Layout::contiguous(sizes).unwrap();
    let variant_of = |kernels: &Kernels, rows: usize| {
        let mut b = Builder::new(kernels, "pinned");
        let x = b.input("x", Element::F32, layout(&[rows, 64])).unwrap();
        let weight = b.weight("weight", layout(&[128, 64])).unwrap();
        let y = b.output("y", Element::F32, layout(&[rows, 128])).unwrap();
        b.linear("linear", &Linear::new(x, weight, y)).unwrap();
        b.finish().unwrap().variants()[0]
    };
    let tiles = tileformer::kernels::variants().into_iter().filter(|v| v.name().starts_with("linear.f32x4"));
    let tiles: Vec<_> = tiles.filter(|v| features.contains(v.features())).collect();
    assert!(tiles.len() > 1);
    for &tile in &tiles {
        let kernels = Kernels::new(&gpu().device, Options::default().with_pinned(tile)).unwrap();
        assert_eq!(variant_of(&kernels, 100), tile);
    }
    let other = tileformer::kernels::variants().into_iter().find(|v| v.name().starts_with("layer_norm")).unwrap();
    let kernels = Kernels::new(&gpu().device, Options::default().with_pinned(other)).unwrap();
    assert_eq!(variant_of(&kernels, 100), variant_of(&Kernels::new(&gpu().device, Options::default()).unwrap(), 100));
}

/// A shader that does not compile is an error with the variant's name, from a warm-up and from a bind. Runs itself again, with
/// the environment variable set that makes the crate read its shaders from elsewhere.
#[test]
#[cfg(any(debug_assertions, feature = "live-shaders"))]
fn a_broken_shader_is_an_error() {
    let program = || {
        let kernels = Kernels::new(&gpu().device, Options::default()).unwrap();
        let program = EncoderLayer::new(12, 3, 24).program(&kernels, &Inputs::new(BatchShape::padded(1, 5))).unwrap();
        (kernels, program)
    };
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken_shaders");
    if std::env::var_os("TILEFORMER_SHADERS").is_some_and(|given| given == *dir) {
        let (kernels, program) = program();
        let error = pollster::block_on(kernels.warm_up(program.variants()).step()).unwrap_err();
        assert!(matches!(&error, Error::Compile { variant, .. } if variant.starts_with("linear_few")), "{error}");
        let zeros = |layout: &Layout, element| gpu().zeros(element, layout.sizes()).unwrap();
        let bindings = program.tensors().map(|(name, _, e, layout)| (name.to_owned(), zeros(layout, e))).collect();
        assert!(matches!(program.bind(&bindings), Err(Error::Compile { .. })));
        return;
    }
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("linear_few.wgsl"), "fn main( {").unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_broken_shader_is_an_error"]).env("TILEFORMER_SHADERS", &dir);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Threads that make and run plans at the same time get what one thread gets.
#[test]
fn plans_are_made_on_several_threads() {
    let kernels = Kernels::new(&gpu().device, Options::default()).unwrap();
    let run = || {
        let program = EncoderLayer::new(12, 3, 24).program(&kernels, &Inputs::new(BatchShape::padded(1, 9))).unwrap();
        let y = gpu().zeros(Element::F32, &[9, 12]).unwrap();
        let value = |n: usize, element| match element {
            Element::F32 => gpu().upload_f32(&[n], &(0..n).map(|i| (i as f32).sin()).collect::<Vec<_>>()).unwrap(),
            _ => gpu().upload_u32(&[n], Sequences::padded(&[9], 9).unwrap().words()).unwrap(),
        };
        let view = |(name, _, element, layout): (&str, _, Element, &Layout)| {
            let data = value(layout.len(), element);
            (name.to_owned(), TensorView::new(data.buffer(), 0, element, *layout).unwrap())
        };
        let mut bindings: Bindings = program.tensors().map(view).collect();
        bindings.set("y", y.clone());
        gpu().run(&program.bind(&bindings).unwrap()).unwrap();
        gpu().read_f32(&y).unwrap()
    };
    let expected = run();
    assert!(expected.iter().all(|v| v.is_finite()) && expected.iter().any(|v| *v != 0.0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(run)).collect();
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), expected));
    });
}
