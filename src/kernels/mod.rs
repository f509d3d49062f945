//! One module a kernel: from shapes and options to a dispatch.
//!
//! Each kernel is a struct of tensors and options, and a method of [`Builder`](crate::Builder) that has the kernel's name. Tensors may have any
//! offset and any strides; only their last dimension must be dense. What is a multiple of four throughout (offsets, strides, the
//! last dimension) runs in groups of four; f16 on a device without the type needs even ones.
//!
//! Where no element is named a tensor is `f32` or `f16`, the same in all of a kernel's. Sizes are B sequences, T query positions, S key
//! positions, NH heads of NH_kv that have keys and values, HS columns of a query or key, VS of a value, V tokens.
//!
//! One kernel alone: causal attention over two packed texts of 30 and 50 rows, q, k and v side by side, 12 heads of 64 each.
//!
//! ```no_run
//! # fn f(kernels: &tileformer::Kernels, encoder: &mut wgpu::CommandEncoder, qkv: &wgpu::Buffer, sequences: &wgpu::Buffer, out: &wgpu::Buffer)
//! #     -> tileformer::Result<()> {
//! use tileformer::kernels::{FusedAttention, Visibility};
//! use tileformer::{AttentionOptions, Bindings, Builder, Element, Layout, Sequences, TensorView};
//!
//! let batch = Sequences::packed(&[30, 50])?; // `batch.words()` is what the buffer `sequences` holds
//! let mut b = Builder::new(kernels, "causal attention");
//! let all = b.input("qkv", Element::F32, Layout::contiguous(&[80, 3 * 12 * 64])?)?;
//! let part = |n: usize| all.narrow(1, n * 12 * 64, 12 * 64)?.split_heads(12, 64);
//! let attention = FusedAttention {
//!     q: part(0)?,
//!     k: part(1)?,
//!     v: part(2)?,
//!     sizes: [2, batch.shape().longest_q, batch.shape().longest_k],
//!     visibility: Visibility {
//!         sequences: Some(b.input("sequences", Element::U32, Layout::contiguous(&[2, 8])?)?),
//!         ..Visibility::new(AttentionOptions::causal())
//!     },
//!     out: b.output("out", Element::F32, Layout::contiguous(&[80, 12, 64])?)?,
//!     log_sum_exp: None,
//!     statistics: None,
//!     cached: false,
//! };
//! b.attention("attention", &attention)?;
//!
//! let mut bindings = Bindings::new();
//! bindings
//!     .set("qkv", TensorView::f32(qkv, &[80, 3 * 12 * 64])?)
//!     .set("sequences", TensorView::u32(sequences, &[2, 8])?)
//!     .set("out", TensorView::f32(out, &[80, 12, 64])?);
//! b.finish()?.bind(&bindings)?.record(encoder);
//! # Ok(()) }
//! ```

mod activation;
mod additive_scores;
mod argmax;
mod attention;
mod attention_scores;
mod attention_values;
mod attention_weights;
mod beam_candidates;
mod cache_append;
mod cache_gather;
mod choose;
#[cfg(test)]
mod contraction;
mod embedding;
mod gate;
mod layer_norm;
mod linear;
mod linear_few;
mod mark_seen;
mod masked_softmax;
mod pool;
mod rotary;
mod visibility;

pub use activation::ActivationRows;
pub use additive_scores::AdditiveScores;
pub use argmax::Argmax;
pub use attention::{FusedAttention, MAX_VALUE_SIZE};
pub use attention_scores::AttentionScores;
pub use attention_values::AttentionValues;
pub use attention_weights::AttentionWeights;
pub use beam_candidates::BeamCandidates;
pub use cache_append::CacheAppend;
pub use cache_gather::CacheGather;
pub use choose::Choose;
pub use embedding::EmbeddingRows;
pub use gate::Gate;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use linear_few::{FewOutput, FusedNorm, LinearFew};
pub use mark_seen::MarkSeen;
pub use masked_softmax::MaskedSoftmax;
pub use pool::Pool;
pub use rotary::{Rotary, RotaryPositions};
pub use visibility::Visibility;

use crate::classes::{
    CHOOSE_8, CHOOSE_256, Class, FEW_1, FEW_1_NORMED, FEW_1_WIDE, FEW_4, FEW_4_WIDE, FEW_8, FEW_8_NORMED, FEW_8_WIDE, FLAT,
    HALVES_64, HALVES_64_M8, HALVES_128, HEADS_32, HEADS_64, HEADS_64_KEYS, HEADS_64_QUADS, HEADS_80, HEADS_96, HEADS_128,
    HEADS_256, MATRIX_32, MATRIX_32_DEEP, MATRIX_32_M8, MATRIX_64, MATRIX_64_DEEP, MATRIX_64_M8, MATRIX_128,
    MATRIX_HEADS_64, MATRIX_HEADS_64_M8, MATRIX_HEADS_64_QUERIES, MATRIX_HEADS_128, MATRIX_HEADS_128_M8,
    MATRIX_HEADS_128_QUERIES, PLAIN_64, PLAIN_128, QUADS_64, QUADS_128, REDUCE, ROW_8, ROW_128, ROWS_32, SPLIT_1, SPLIT_8,
    TILE_32, TILE_64, TILE_128, TILE_128X64,
};
use crate::program::Tensor;
use crate::storage::{Storage, Tier};
use crate::tuning::{Case, Operation};
use crate::variant::{Kernel, Variant};

/// The forms that a kernel comes in: every combination of these.
struct Family {
    kernel: &'static Kernel,
    classes: &'static [&'static Class],
    storages: &'static [Storage],
    tiers: &'static [Tier],
    /// How many optional outputs there are.
    outputs: u8,
}

const CORE: &[Tier] = &[Tier::Core];
const CORE_AND_SUBGROUPS: &[Tier] = &[Tier::Core, Tier::Subgroups];

/// The classes of reductions over rows: of f32 in fours and single, and of f16, for which CPU adapters have no class of their own.
const ROWS_X4: &[&Class] = &[&ROW_8, &ROW_128, &ROWS_32];
const ROWS_SINGLE: &[&Class] = &[&ROW_8, &ROWS_32];
const NARROW_ROWS_X4: &[&Class] = &[&ROW_128, &ROWS_32];

/// Operands of matrices are f16.
const NARROW: &[Storage] = &[Storage::F16, Storage::F16x4];

const fn family(kernel: &'static Kernel, classes: &'static [&'static Class], storages: &'static [Storage]) -> Family {
    Family { kernel, classes, storages, tiers: CORE, outputs: 0 }
}

const fn matrix_family(kernel: &'static Kernel, classes: &'static [&'static Class]) -> Family {
    Family { tiers: &[Tier::Matrix], ..family(kernel, classes, NARROW) }
}

const fn rows_x4(kernel: &'static Kernel, classes: &'static [&'static Class], storages: &'static [Storage]) -> Family {
    Family { tiers: CORE_AND_SUBGROUPS, ..family(kernel, classes, storages) }
}

/// f16 in pairs keeps to the core tier: few devices have subgroups and not the type.
const fn subgroup_family(kernel: &'static Kernel, classes: &'static [&'static Class]) -> Family {
    Family { tiers: &[Tier::Subgroups], ..family(kernel, classes, Storage::TYPED_IN_FOURS) }
}

/// Every kernel with its forms.
static FAMILIES: &[Family] = &[
    family(&linear::KERNEL, &[&TILE_128, &TILE_128X64, &PLAIN_128], Storage::IN_FOURS),
    family(&linear::KERNEL, &[&PLAIN_64], Storage::ALL),
    subgroup_family(&linear::KERNEL, &[&QUADS_128, &QUADS_64]),
    family(&linear::KERNEL_SPLIT, &[&TILE_64, &TILE_32], Storage::IN_FOURS),
    family(&linear::KERNEL_SPLIT, &[&PLAIN_64], Storage::SINGLES),
    family(&linear::KERNEL_SUM, &[&FLAT], Storage::ALL),
    family(&linear_few::KERNEL, &[&FEW_1, &FEW_8, &FEW_1_NORMED, &FEW_8_NORMED], Storage::FOURS_ON_CPUS),
    family(&linear_few::KERNEL, &[&FEW_1_WIDE, &FEW_8_WIDE], Storage::IN_FOURS),
    subgroup_family(&linear_few::KERNEL, &[&FEW_1_WIDE]),
    family(&linear_few::KERNEL, &[&FEW_4, &FEW_4_WIDE], Storage::SINGLES),
    family(&linear_few::KERNEL_APPEND, &[&FEW_1_NORMED, &FEW_8_NORMED], Storage::FOURS_ON_CPUS),
    family(&linear_few::KERNEL_APPEND, &[&FEW_1_WIDE, &FEW_8_WIDE], Storage::IN_FOURS),
    subgroup_family(&linear_few::KERNEL_APPEND, &[&FEW_1_WIDE]),
    family(&linear_few::KERNEL_APPEND, &[&FEW_4, &FEW_4_WIDE], Storage::SINGLES),
    family(&linear_few::KERNEL_LOGITS, &[&FEW_1_NORMED, &FEW_8_NORMED], Storage::FOURS_ON_CPUS),
    family(&linear_few::KERNEL_LOGITS, &[&FEW_1_WIDE, &FEW_8_WIDE], Storage::IN_FOURS),
    subgroup_family(&linear_few::KERNEL_LOGITS, &[&FEW_1_WIDE]),
    family(&linear_few::KERNEL_LOGITS, &[&FEW_4, &FEW_4_WIDE], Storage::SINGLES),
    matrix_family(
        &linear::KERNEL_MATRIX,
        &[&MATRIX_128, &MATRIX_64, &MATRIX_64_DEEP, &MATRIX_32, &MATRIX_32_DEEP, &MATRIX_64_M8, &MATRIX_32_M8],
    ),
    matrix_family(&linear::KERNEL_MATRIX_SPLIT, &[&MATRIX_32]),
    matrix_family(&linear::KERNEL_WIDE, &[&MATRIX_64, &MATRIX_32]),
    Family { storages: Storage::WIDE, ..matrix_family(&linear::KERNEL_HALVES, &[&HALVES_128, &HALVES_64, &HALVES_64_M8]) },
    family(&activation::KERNEL, &[&FLAT], Storage::ALL),
    family(&attention::KERNEL, &[&HEADS_32, &HEADS_80, &HEADS_96], &[Storage::F32x4]),
    family(&attention::KERNEL, &[&HEADS_64_KEYS, &HEADS_128], Storage::IN_FOURS),
    family(&attention::KERNEL, &[&HEADS_64, &HEADS_256], Storage::ALL),
    subgroup_family(&attention::KERNEL, &[&HEADS_64_QUADS]),
    family(&attention::KERNEL_SPLIT, &[&SPLIT_1], Storage::TYPED_IN_FOURS),
    family(&attention::KERNEL_SPLIT, &[&SPLIT_8], Storage::ALL),
    family(&attention::KERNEL_REDUCE, &[&REDUCE], Storage::SINGLES),
    matrix_family(
        &attention::KERNEL_MATRIX,
        &[
            &MATRIX_HEADS_64,
            &MATRIX_HEADS_128,
            &MATRIX_HEADS_64_M8,
            &MATRIX_HEADS_128_M8,
            &MATRIX_HEADS_64_QUERIES,
            &MATRIX_HEADS_128_QUERIES,
        ],
    ),
    family(&attention_scores::KERNEL, &[&PLAIN_64], Storage::ALL),
    family(&attention_weights::KERNEL, &[&PLAIN_64], Storage::ALL),
    family(&additive_scores::KERNEL, &[&FLAT], Storage::ALL),
    rows_x4(&masked_softmax::KERNEL, ROWS_X4, &[Storage::F32x4]),
    family(&masked_softmax::KERNEL, ROWS_SINGLE, &[Storage::F32]),
    family(&attention_values::KERNEL, &[&PLAIN_64], Storage::ALL),
    Family { outputs: 1, ..rows_x4(&layer_norm::KERNEL, ROWS_X4, &[Storage::F32x4]) },
    Family { outputs: 1, ..family(&layer_norm::KERNEL, ROWS_SINGLE, &[Storage::F32]) },
    Family { outputs: 1, ..rows_x4(&layer_norm::KERNEL, NARROW_ROWS_X4, &[Storage::F16x4, Storage::Packedx4]) },
    Family { outputs: 1, ..family(&layer_norm::KERNEL, &[&ROWS_32], &[Storage::F16, Storage::Packed]) },
    family(&gate::KERNEL, &[&FLAT], Storage::ALL),
    family(&rotary::KERNEL, &[&FLAT], Storage::ALL),
    family(&embedding::KERNEL, &[&FLAT], Storage::ALL),
    family(&pool::KERNEL, &[&FLAT], Storage::ALL),
    family(&cache_append::KERNEL, &[&FLAT], Storage::ALL),
    family(&cache_gather::KERNEL, &[&FLAT], Storage::ALL),
    rows_x4(&argmax::KERNEL, ROWS_X4, &[Storage::F32x4]),
    family(&argmax::KERNEL, ROWS_SINGLE, &[Storage::F32]),
    family(&choose::KERNEL, &[&CHOOSE_8, &CHOOSE_256], Storage::WIDE),
    family(&beam_candidates::KERNEL, &[&CHOOSE_8, &CHOOSE_256], &[Storage::F32]),
    family(&mark_seen::KERNEL, &[&FLAT], &[Storage::F32]),
];

/// Every variant that the crate can generate, for any device: [`Variant::features`] says what each needs.
#[must_use]
pub fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for &Family { kernel, classes, storages, tiers, outputs } in FAMILIES {
        for class in classes {
            for &tier in tiers {
                for &storage in storages {
                    all.extend((0..1 << outputs).map(|outputs| Variant { kernel, class, storage, tier, outputs }));
                }
            }
        }
    }
    all
}

/// A reduction over rows, for the table.
fn rows_case(kernel: &'static str, storage: Storage, rows: usize, columns: usize, ragged_columns: bool) -> Case {
    let operation = Operation::Rows;
    Case { operation, kernel, storage, rows, columns, depth: columns, ragged_columns, invariant: false, cached: false }
}

/// The stride of dimension `dim` of an optional tensor.
fn stride(tensor: Option<Tensor>, dim: usize) -> u32 {
    tensor.map_or(0, |t| t.layout().stride(dim))
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    fn module(variant: &Variant) -> naga::Module {
        let source = variant.source();
        match naga::front::wgsl::parse_str(&source) {
            Ok(module) => module,
            Err(error) => panic!("{variant:?}: {}", error.emit_to_string(&source)),
        }
    }

    fn capabilities(variant: &Variant) -> Capabilities {
        let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32; // unpack2x16float, which WebGPU always has
        for (feature, capability) in [
            (wgpu::Features::SHADER_F16, Capabilities::SHADER_FLOAT16),
            (wgpu::Features::SUBGROUP, Capabilities::SUBGROUP),
            (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, Capabilities::COOPERATIVE_MATRIX),
        ] {
            allowed.set(capability, variant.features().contains(feature));
        }
        allowed
    }

    /// Every variant is WGSL that any WebGPU implementation with its features may take: core ones need none.
    #[test]
    fn every_variant_validates_without_an_adapter() {
        for variant in variants() {
            if let Err(error) = Validator::new(ValidationFlags::all(), capabilities(&variant)).validate(&module(&variant)) {
                panic!("{variant:?}: {}", error.emit_to_string(&variant.source()));
            }
        }
    }

    /// Rule: where forms must agree to the bit, fma is spelled out: no product feeds an addition that a compiler may contract it with.
    #[test]
    fn no_addition_is_contractible() {
        // Kernels, how lines begin, and why no other form need agree.
        const ALLOWED: &[(&str, &str, &str)] = &[
            ("choose", "", "a device has one class of it"),
            ("beam_candidates", "let log_prob = 2.0 * half - log_sum;", "a device has one class of it"),
            ("layer_norm", "for (var g = 0u; g < GROUPS; g++) { kept[g] += residual4(", "comes before `kept` is scaled"),
            ("layer_norm", "kept[g] -= mean;", "comes before `kept` is scaled"),
            ("layer_norm", "sum += ", "comes before `kept` is scaled"),
            ("layer_norm", "rests += ", "comes before `kept` is scaled"),
            ("attention_matrix", "", "nothing else has the bits of matrices"),
            ("", "fn add_scaled(c: MatrixC,", "nothing else has the bits of matrices"),
        ];
        let mut met = std::collections::BTreeSet::new();
        for variant in variants() {
            let (source, module) = (variant.source(), module(&variant));
            let info = Validator::new(ValidationFlags::all(), capabilities(&variant)).validate(&module);
            let info = info.unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
            for line in contraction::contractible(&module, &info, &source) {
                let allows = |&&(kernel, start, _): &&(&str, &str, &str)| {
                    (kernel.is_empty() || kernel == variant.kernel.name) && line.starts_with(start)
                };
                let allowed = ALLOWED.iter().find(allows).unwrap_or_else(|| panic!("{variant:?}: {line}"));
                met.insert(allowed);
            }
        }
        assert_eq!(met.len(), ALLOWED.len(), "of what is allowed there is only {met:?}");
    }

    /// Parameters have one source, in Rust: WGSL's structs agree with it name by name and byte by byte.
    #[test]
    fn parameters_lie_where_wgsl_expects_them() {
        for variant in variants() {
            let module = module(&variant);
            let fields = |name: &str| {
                module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).map(|(_, ty)| match &ty.inner {
                    naga::TypeInner::Struct { members, span } => {
                        let members = members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset as usize));
                        (members.collect::<Vec<_>>(), *span as usize)
                    }
                    other => panic!("{name} is {other:?}"),
                })
            };
            let owned = |fields: &[(&str, usize)]| fields.iter().map(|(n, o)| ((*n).to_owned(), *o)).collect::<Vec<_>>();
            let (found, span) = fields("Params").expect("a struct Params");
            assert_eq!(found, owned(variant.kernel.params_fields), "{variant:?}");
            assert_eq!(span, variant.kernel.params_size, "{variant:?}");
            if let Some((found, span)) = fields("Attention") {
                assert_eq!(found, owned(visibility::Attention::FIELDS), "{variant:?}");
                assert_eq!(span, size_of::<visibility::Attention>(), "{variant:?}");
            }
        }
    }

    /// The host's table of bindings is the shader's: names, groups, numbers, access.
    #[test]
    fn bindings_are_those_of_the_shader() {
        for variant in variants() {
            let module = module(&variant);
            let mut found: Vec<(String, u32, u32, bool)> = Vec::new();
            for (_, global) in module.global_variables.iter() {
                if let (Some(at), naga::AddressSpace::Storage { access }) = (global.binding, global.space) {
                    let writes = access.contains(naga::StorageAccess::STORE);
                    found.push((global.name.clone().unwrap_or_default(), at.group, at.binding, writes));
                }
            }
            let mut expected: Vec<_> =
                variant.bindings().map(|b| (b.name.to_owned(), b.group, b.binding, b.writes)).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{variant:?}");
            assert!(found.len() <= 8, "{variant:?} has {} storage buffers; WebGPU's default is 8", found.len());
        }
    }

    /// What a plan takes where its views are not aligned is a variant like any other: listed, validated and counted.
    #[test]
    fn what_stands_in_for_a_variant_is_one() {
        let all = variants();
        for variant in &all {
            let stand_in = variant.unaligned();
            assert!(all.contains(&stand_in), "{stand_in:?} for {variant:?}");
            if stand_in.storage == Storage::Packed {
                let typed = Variant { storage: Storage::F16, ..stand_in };
                assert!(all.contains(&typed), "{typed:?} for {variant:?} on a device with the f16 type");
            }
        }
    }

    /// Few variants: only storage, tile class and outputs specialise a pipeline.
    #[test]
    fn variants_are_few_and_differ() {
        let all = variants();
        let names: std::collections::HashSet<_> = all.iter().map(Variant::name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.len() <= 290, "{} variants", all.len());
        let wide = all.iter().filter(|v| v.features().is_empty() && Storage::WIDE.contains(&v.storage)).count();
        assert!(wide <= 92, "{wide} core variants of f32");
    }
}
