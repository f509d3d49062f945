//! Whole layers against their CPU twins: named tensors in both precisions, batches with masks, one program run on the GPU.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::reference::layers::{AttentionMasks, Batch, Weights};
use tileformer::reference::{MaskValues, Real};
use tileformer::spec::{AttentionOptions, BatchShape, Mask, Sequences};
use tileformer::{Bindings, Element, Kernels, Layout, Program, Role, TensorView};

use super::{Guarded, Place, assert_close, gpu, on, on_invariant, uniform, widen};

/// The kernels of the shared device.
pub fn kernels() -> &'static Kernels {
    &on().kernels
}

/// As [`kernels`], batch invariant.
pub fn invariant_kernels() -> &'static Kernels {
    &on_invariant().kernels
}

/// Below `n`.
pub fn below(rng: &mut StdRng, n: usize) -> usize {
    rng.random_range(0..n)
}

/// The same numbers for the device and the f32 twin, and for the f64 twin.
#[derive(Clone, Debug)]
pub struct Data {
    pub sizes: Vec<usize>,
    pub f32: Vec<f32>,
    pub f64: Vec<f64>,
}

impl Data {
    pub fn new(sizes: &[usize], f32: Vec<f32>) -> Self {
        Self { sizes: sizes.to_vec(), f64: widen(&f32), f32 }
    }

    pub fn random(sizes: &[usize], scale: f32, rng: &mut StdRng) -> Self {
        Self::new(sizes, uniform(rng, sizes.iter().product(), -scale, scale))
    }

    pub fn upload(&self) -> TensorView {
        gpu().upload_f32(&self.sizes, &self.f32).expect("an upload")
    }
}

/// A twin's precision: which of the two copies it reads.
pub trait Twin: Real {
    fn of_data(data: &Data) -> &[Self];
}

impl Twin for f32 {
    fn of_data(data: &Data) -> &[Self] {
        &data.f32
    }
}

impl Twin for f64 {
    fn of_data(data: &Data) -> &[Self] {
        &data.f64
    }
}

/// The weights of a program, made from its own list of tensors, so that a name or a shape in which program and twin differ
/// shows as a missing weight.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub all: BTreeMap<String, Data>,
}

impl Made {
    /// Uniform, with a variance of about 1 over the inputs; norms around 1.
    pub fn of(program: &Program, rng: &mut StdRng) -> Self {
        let mut all = BTreeMap::new();
        for (name, role, _, layout) in program.tensors().filter(|t| t.1 == Role::Weight) {
            assert_eq!(role, Role::Weight);
            let sizes = layout.sizes();
            let (n, matrix) = (layout.len(), sizes.len() > 1);
            let table = name.contains("embedding") || name.contains("relative");
            let fan_in = if matrix && !table { sizes[1] as f32 } else { 1.0 };
            let scale = if matrix { (3.0 / fan_in).sqrt() } else { 0.5 };
            let mut data = uniform(rng, n, -scale, scale);
            if name.contains("norm") && name.ends_with("weight") {
                data.iter_mut().for_each(|v| *v += 1.0);
            }
            all.insert(name.to_owned(), Data::new(sizes, data));
        }
        Self { all }
    }

    pub fn weights<T: Twin>(&self) -> Weights<'_, T> {
        let mut weights = Weights::new();
        for (name, data) in &self.all {
            weights.insert(name, &data.sizes, T::of_data(data)).expect("sizes of its own");
        }
        weights
    }

    pub fn bind(&self, bindings: &mut Bindings) {
        for (name, data) in &self.all {
            bindings.set(name, data.upload());
        }
    }
}

/// A mask over (B, NH, T, S) or what broadcasts to it.
#[derive(Clone, Debug)]
pub enum MaskData {
    Boolean([usize; 4], Vec<u32>),
    Additive([usize; 4], Data),
}

/// The batch of one attention, with its masks.
#[derive(Clone, Debug)]
pub struct Side {
    pub sequences: Sequences,
    pub shape: BatchShape,
    pub key_mask: Option<Vec<u32>>,
    pub mask: Option<MaskData>,
}

impl Side {
    /// `sequences` at their own smallest shape for self-attention.
    pub fn own(sequences: Sequences) -> Self {
        let shape = sequences.shape().to_self();
        Self { sequences, shape, key_mask: None, mask: None }
    }

    pub fn shaped(self, shape: BatchShape) -> Self {
        Self { shape, ..self }
    }

    /// With random masks where `options` want some: a full mask, or one broadcast along the dimensions in `broadcast`.
    pub fn masked(mut self, options: &AttentionOptions, n_heads: usize, broadcast: [bool; 4], rng: &mut StdRng) -> Self {
        let BatchShape { sequences, longest_q, longest_k, .. } = self.shape;
        if options.key_mask {
            self.key_mask = Some((0..sequences * longest_k).map(|_| u32::from(below(rng, 5) > 0) * 7).collect());
        }
        let mut sizes = [sequences, n_heads, longest_q, longest_k];
        sizes.iter_mut().zip(broadcast).for_each(|(size, one)| *size = if one { 1 } else { *size });
        let n = sizes.iter().product();
        let kind = options.mask.filter(|kind| !matches!(kind, Mask::Relative { .. })); // that one is a weight
        self.mask = kind.map(|kind| match kind {
            Mask::Boolean => MaskData::Boolean(sizes, (0..n).map(|_| u32::from(below(rng, 4) > 0)).collect()),
            Mask::Additive | Mask::Relative { .. } => {
                let hide = |v: f32, s: &mut StdRng| if below(s, 6) == 0 { f32::NEG_INFINITY } else { v };
                let values = uniform(rng, n, -2.0, 2.0).into_iter().map(|v| hide(v, rng)).collect();
                MaskData::Additive(sizes, Data::new(&sizes, values))
            }
        });
        self
    }

    /// The layout of the mask, where there is one.
    pub fn mask_layout(&self) -> Option<Layout> {
        self.mask.as_ref().map(|mask| {
            let (MaskData::Boolean(sizes, _) | MaskData::Additive(sizes, _)) = mask;
            Layout::contiguous(sizes).expect("sizes of a mask")
        })
    }

    pub fn twin<T: Twin>(&self) -> Batch<'_, T> {
        let mask = self.mask.as_ref().map(|mask| match mask {
            MaskData::Boolean(sizes, values) => MaskValues::Boolean { sizes: *sizes, values },
            MaskData::Additive(sizes, data) => MaskValues::Additive { sizes: *sizes, values: T::of_data(data) },
        });
        let masks = AttentionMasks { key_mask: self.key_mask.as_deref(), mask };
        Batch::new(self.shape, self.sequences.as_slice()).with_masks(masks)
    }

    /// Binds `sequences`, `key_mask` and `mask` under names that begin with `prefix`.
    pub fn bind(&self, prefix: &str, bindings: &mut Bindings) {
        let gpu = gpu();
        let BatchShape { sequences, longest_k, .. } = self.shape;
        let upload = |sizes: &[usize], data: &[u32]| gpu.upload_u32(sizes, data).expect("an upload");
        bindings.set(format!("{prefix}sequences"), upload(&[sequences, 8], self.sequences.words()));
        if let Some(mask) = &self.key_mask {
            bindings.set(format!("{prefix}key_mask"), upload(&[sequences, longest_k], mask));
        }
        match &self.mask {
            Some(MaskData::Boolean(sizes, values)) => bindings.set(format!("{prefix}mask"), upload(sizes, values)),
            Some(MaskData::Additive(_, data)) => bindings.set(format!("{prefix}mask"), data.upload()),
            None => bindings,
        };
    }

    /// Whether a sequence has query row `row`; other rows are not defined.
    pub fn has_row(&self, row: usize) -> bool {
        self.sequences.as_slice().iter().any(|s| (s.q_start..s.q_start + s.q_len).contains(&(row as u32)))
    }
}

/// Runs `program` with outputs of NaN between guards, and reads every output.
pub fn run(program: &Program, bindings: &Bindings) -> BTreeMap<String, Vec<f32>> {
    let gpu = gpu();
    let mut bindings = bindings.clone();
    let mut outputs = Vec::new();
    for (name, _, element, layout) in program.tensors().filter(|t| t.1 == Role::Output) {
        let output = Guarded::output(gpu, name, element, *layout, Place::DENSE);
        bindings.set(name, output.view.clone());
        outputs.push((name.to_owned(), output));
    }
    gpu.run(&program.bind(&bindings).expect("a plan")).expect("a run");
    let read = |output: Guarded| output.bits().into_iter().map(f32::from_bits).collect();
    outputs.into_iter().map(|(name, output)| (name, read(output))).collect()
}

/// Rule 5 over the rows of `width` that are defined: [`assert_close`].
pub fn judge(
    what: &str,
    found: &[f32],
    twin: &[f32],
    right: &[f64],
    floor: f64,
    width: usize,
    has_row: impl Fn(usize) -> bool,
) {
    let lengths = [found.len(), twin.len(), right.len()];
    assert!(lengths.iter().all(|&n| n == found.len() && n % width == 0), "{what}: {lengths:?} elements");
    let kept = |i: &usize| has_row(i / width);
    let pick = |x: &[f32]| (0..x.len()).filter(kept).map(|i| x[i]).collect::<Vec<_>>();
    let right: Vec<f64> = (0..right.len()).filter(kept).map(|i| right[i]).collect();
    assert!(right.iter().all(|v| v.is_finite()), "{what}: the twin is not finite");
    assert_close(what, &pick(found), &pick(twin), &right, floor);
}
