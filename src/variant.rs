//! Kernels as the host knows them, and their compiled forms: how a shader's text is put together.

use std::fmt;

use crate::classes::{self, Class};
use crate::storage::{Storage, Tier};
use crate::tuning::Choice;
use crate::unroll::unrolled;

/// The grid's x dimension where one line of workgroups is folded over two: the largest that every device has.
pub(crate) const GRID_FOLD: u32 = 65_535;

/// How a shader goes over the elements of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// As the variant's [`Storage`]: in its groups, and of its element.
    Grouped,
    /// f32 whatever the storage is, in groups of four where it has groups of four.
    Wide,
    /// Element by element.
    Single,
}

/// One binding of a kernel.
#[derive(Debug)]
pub(crate) struct Binding {
    /// The variable's name in WGSL.
    pub(crate) name: &'static str,
    /// 0 for weights, 1 for activations.
    pub(crate) group: u32,
    pub(crate) binding: u32,
    pub(crate) writes: bool,
    pub(crate) load: Load,
    /// Where the element offset stands in the parameters, in bytes.
    pub(crate) offset_at: usize,
    /// Bit of [`Variant::outputs`] that must be set for the binding to exist; 0 for always.
    pub(crate) output: u8,
}

impl Binding {
    /// A float input, loaded in groups.
    pub(crate) const fn read(name: &'static str, group: u32, binding: u32, offset_at: usize) -> Self {
        Self { name, group, binding, writes: false, load: Load::Grouped, offset_at, output: 0 }
    }

    /// An output, stored in groups.
    pub(crate) const fn write(name: &'static str, binding: u32, offset_at: usize) -> Self {
        Self { writes: true, ..Self::read(name, 1, binding, offset_at) }
    }

    /// The same binding, element by element.
    pub(crate) const fn single(self) -> Self {
        Self { load: Load::Single, ..self }
    }

    /// The same binding, f32 whatever the variant's storage.
    pub(crate) const fn wide(self) -> Self {
        Self { load: Load::Wide, ..self }
    }

    /// The same binding, there only where bit `output` of the variant's outputs is set.
    pub(crate) const fn optional(self, output: u8) -> Self {
        Self { output, ..self }
    }

    /// Writes where the tensor's first element stands in the binding into the parameters.
    pub(crate) fn write_offset(&self, params: &mut [u8], elements: u64) {
        params[self.offset_at..self.offset_at + 4].copy_from_slice(&(elements as u32).to_ne_bytes());
    }
}

/// The directives that a shader needs to use a feature. naga takes subgroups without one, browsers do not.
const ENABLE: &[(wgpu::Features, &str)] = &[
    (wgpu::Features::SHADER_F16, "enable f16;\n"),
    // naga files its rule that matrices want uniform control flow under derivatives, and takes nothing that counts subgroups for
    // uniform in them.
    (
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
        "enable wgpu_cooperative_matrix;\ndiagnostic(off, derivative_uniformity);\n",
    ),
    #[cfg(target_family = "wasm")]
    (wgpu::Features::SUBGROUP, "enable subgroups;\n"),
];

/// A file under `shaders/`, in the binary and by its path.
#[derive(Debug)]
pub(crate) struct Source {
    /// Read by builds that take their shaders from a folder.
    #[cfg_attr(not(any(debug_assertions, feature = "live-shaders")), allow(dead_code))]
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
}

/// Names a WGSL file under `shaders/`.
macro_rules! wgsl {
    ($path:literal) => {
        $crate::variant::Source { path: $path, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)) }
    };
}
pub(crate) use wgsl;

const WIDE: [Source; 2] = [wgsl!("shared/wide.wgsl"), wgsl!("shared/wide_x4.wgsl")];

fn storage_source(storage: Storage) -> &'static Source {
    const SOURCES: &[(Storage, Source)] = &[
        (Storage::F32, wgsl!("shared/storage_f32.wgsl")),
        (Storage::F32x4, wgsl!("shared/storage_f32x4.wgsl")),
        (Storage::F16, wgsl!("shared/storage_f16.wgsl")),
        (Storage::F16x4, wgsl!("shared/storage_f16x4.wgsl")),
        (Storage::Packed, wgsl!("shared/storage_packed.wgsl")),
        (Storage::Packedx4, wgsl!("shared/storage_packedx4.wgsl")),
    ];
    SOURCES.iter().find(|(s, _)| *s == storage).map_or(&SOURCES[0].1, |(_, source)| source)
}

/// The shared part of kernels on matrices of this size.
fn matrix_source(size: u32) -> &'static Source {
    const SOURCES: [Source; 2] = [wgsl!("shared/matrix_16.wgsl"), wgsl!("shared/matrix_8.wgsl")];
    &SOURCES[usize::from(size == 8)]
}

pub(crate) const GRID: Source = wgsl!("shared/grid.wgsl");
pub(crate) const TILE: Source = wgsl!("shared/tile.wgsl");
pub(crate) const TILE_QUADS: Source = wgsl!("shared/tile_quads.wgsl");
pub(crate) const TAKE_ROW: Source = wgsl!("shared/take_row.wgsl");
pub(crate) const PRODUCT: Source = wgsl!("shared/product.wgsl");
pub(crate) const THREADS: Source = wgsl!("shared/threads.wgsl");
pub(crate) const THREADS_QUADS: Source = wgsl!("shared/threads_quads.wgsl");
pub(crate) const ROWS: Source = wgsl!("shared/rows.wgsl");
pub(crate) const ROWS_SUBGROUPS: Source = wgsl!("shared/rows_subgroups.wgsl");
pub(crate) const ROOT: Source = wgsl!("shared/root.wgsl");
pub(crate) const TANH: Source = wgsl!("shared/tanh.wgsl");
pub(crate) const ACTIVATE: Source = wgsl!("shared/activate.wgsl");
pub(crate) const ATTENTION: Source = wgsl!("shared/attention.wgsl");
pub(crate) const SCORES: Source = wgsl!("shared/scores.wgsl");
pub(crate) const SOFTMAX: Source = wgsl!("shared/softmax.wgsl");
pub(crate) const ORDER: Source = wgsl!("shared/order.wgsl");
pub(crate) const LOGITS: Source = wgsl!("shared/logits.wgsl");

/// What a kernel is to the host: its name, its WGSL, its bindings and the layout of its parameters.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) shared: &'static [&'static Source],
    /// What stands in place of `shared` and `source` in the subgroup tier, where the kernel comes in it.
    pub(crate) subgroups: &'static [&'static Source],
    /// Parts that an output bit chooses: without it, with it.
    pub(crate) parts: &'static [(u8, Source, Source)],
    pub(crate) source: Source,
    pub(crate) bindings: &'static [Binding],
    pub(crate) params_size: usize,
    /// Names and byte offsets of the parameters, for the test that compares them with WGSL's.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) params_fields: &'static [(&'static str, usize)],
}

/// What tests make of a kernel's text on matrices, for devices without them.
pub(crate) type Emulate = fn(&str) -> String;

/// One compiled form of a kernel: what specialises its shader. All else is in the parameters.
#[derive(Clone, Copy)]
pub struct Variant {
    pub(crate) kernel: &'static Kernel,
    pub(crate) class: &'static Class,
    pub(crate) storage: Storage,
    pub(crate) tier: Tier,
    /// Optional outputs that are bound, a bit each.
    pub(crate) outputs: u8,
}

impl Variant {
    /// The form that a choice of the table stands for.
    pub(crate) fn of(kernel: &'static Kernel, choice: &Choice, storage: Storage, outputs: u8) -> Self {
        Self { kernel, class: choice.class, storage, tier: choice.tier, outputs }
    }

    /// A form of the core tier without optional outputs.
    pub(crate) fn core(kernel: &'static Kernel, class: &'static Class, storage: Storage) -> Self {
        Self { kernel, class, storage, tier: Tier::Core, outputs: 0 }
    }

    fn key(&self) -> (&'static str, &'static str, Storage, Tier, u8) {
        (self.kernel.name, self.class.name, self.storage, self.tier, self.outputs)
    }

    /// Kernel, storage, class, tier and outputs, as in `linear.f32x4.64x64x16-plain` or `layer_norm.f32x4.rows32.subgroups.outputs1`.
    #[must_use]
    pub fn name(&self) -> String {
        let outputs = if self.outputs == 0 { String::new() } else { format!(".outputs{}", self.outputs) };
        let Self { kernel, class, storage, tier, .. } = self;
        format!("{}.{}.{}{}{outputs}", kernel.name, storage.name(), class.name, tier.suffix())
    }

    /// The complete WGSL: a header of constants, the storage type, the shared parts, the kernel.
    ///
    /// With `TILEFORMER_SHADERS=DIR` in the environment, builds with debug assertions or the feature `live-shaders` read the
    /// files from `DIR`, laid out as `shaders/` is; what `DIR` lacks is taken from the ones compiled in.
    #[must_use]
    pub fn source(&self) -> String {
        self.source_with(None)
    }

    /// The same, or for a kernel on matrices what `emulate` makes of its text without the shared part on cooperative matrices and
    /// the feature that it needs. What `emulate` leaves marked is unrolled after it.
    pub(crate) fn source_with(&self, emulate: Option<Emulate>) -> String {
        let matrices = self.tier == Tier::Matrix && emulate.is_none();
        let mut text = format!("// {}\n", self.name());
        let mut features = self.features();
        features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, matrices);
        for (feature, line) in ENABLE {
            if features.contains(*feature) {
                text += line;
            }
        }
        text += &format!("\nconst GRID_FOLD: u32 = {GRID_FOLD}u;\n");
        for (name, value) in self.class.constants {
            text += &format!("const {name}: u32 = {value}u;\n");
        }
        let mut add = |source: &Source| {
            text += "\n";
            text += &live_text(source);
        };
        if matrices {
            add(matrix_source(self.class.get("MATRIX")));
        }
        add(storage_source(self.storage));
        add(&WIDE[usize::from(self.storage.in_fours())]);
        add(&GRID);
        let (sources, last) = match self.tier {
            Tier::Subgroups => (self.kernel.subgroups, None),
            _ => (self.kernel.shared, Some(&self.kernel.source)),
        };
        sources.iter().for_each(|s| add(s));
        for (bit, without, with) in self.kernel.parts {
            add(if self.outputs & bit == 0 { without } else { with });
        }
        last.into_iter().for_each(add);
        if let (Tier::Matrix, Some(emulate)) = (self.tier, emulate) {
            text = emulate(&text);
        }
        unrolled(&text)
    }

    /// The form that runs where a plan's views are not aligned to four elements: warm it up too where there are such. It needs no
    /// subgroups.
    #[must_use]
    pub fn unaligned(&self) -> Self {
        let tier = if self.tier == Tier::Subgroups { Tier::Core } else { self.tier };
        Self { storage: self.storage.in_groups(false), class: classes::unaligned(self.class), tier, ..*self }
    }

    /// The features that a device must have enabled to run it; none for the core tier.
    #[must_use]
    pub fn features(&self) -> wgpu::Features {
        self.tier.features(self.storage)
    }

    /// The bindings that this variant has.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = &'static Binding> + use<> {
        let outputs = self.outputs;
        self.kernel.bindings.iter().filter(move |b| b.output == 0 || b.output & outputs != 0)
    }

    /// Storage buffers that one stage binds.
    #[must_use]
    pub fn storage_buffers(&self) -> usize {
        self.bindings().count()
    }
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Variant {}

impl std::hash::Hash for Variant {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(any(debug_assertions, feature = "live-shaders"))]
fn live_text(source: &Source) -> std::borrow::Cow<'static, str> {
    let Some(dir) = std::env::var_os("TILEFORMER_SHADERS") else { return source.text.into() };
    let dir = std::path::Path::new(&dir);
    if !dir.is_dir() {
        // As WGSL this does not compile, and the error shows it.
        return format!("TILEFORMER_SHADERS is {}: no folder", dir.display()).into();
    }
    std::fs::read_to_string(dir.join(source.path)).map_or(source.text.into(), Into::into)
}

#[cfg(not(any(debug_assertions, feature = "live-shaders")))]
fn live_text(source: &Source) -> &'static str {
    source.text
}
