//! One module a kernel: from shapes and options to a dispatch.
//!
//! Each kernel is a struct of tensors and options, and a method of [`Builder`](crate::Builder) that has the kernel's name. Tensors may have any
//! offset and any strides; only their last dimension must be dense. (Those of a layer's own `program` lie without gaps: strides are said in
//! [`Builder::input`](crate::Builder::input) and its like.) What is a multiple of four throughout (offsets, strides, the
//! last dimension) runs in groups of four; f16 on a device without the type needs even ones.
//!
//! Where no element is named a tensor is `f32` or `f16`, the same in all of a kernel's. Sizes are B sequences, T query positions, S key
//! positions, NH heads of NH_kv that have keys and values, HS columns of a query or key, VS of a value, V tokens.
//!
//! One kernel alone: causal attention over two packed texts of 30 and 50 rows, q, k and v side by side, 12 heads of 64 each.
//!
//! ```no_run
//! # fn f(kernels: &tileformer::Kernels, encoder: &mut wgpu::CommandEncoder, qkv: &wgpu::Buffer, rows_of: &wgpu::Buffer, heads: &wgpu::Buffer)
//! #     -> tileformer::Result<()> {
//! use tileformer::kernels::{FusedAttention, Visibility};
//! use tileformer::{AttentionOptions, Bindings, Builder, Element, Layout, Sequences, TensorView};
//!
//! let batch = Sequences::packed(&[30, 50])?; // `batch.words()` is what the buffer `rows_of` holds
//! let mut b = Builder::new(kernels, "causal attention");
//! let all = b.input("qkv", Element::F32, Layout::contiguous(&[80, 3 * 12 * 64])?)?;
//! let part = |n: usize| all.narrow(1, n * 12 * 64, 12 * 64)?.split_heads(12, 64);
//! let sizes = [2, batch.shape().longest_q, batch.shape().longest_k];
//! let sequences = Some(b.input("sequences", Element::U32, Layout::contiguous(&[2, 8])?)?);
//! let visibility = Visibility { sequences, ..Visibility::new(AttentionOptions::causal()) };
//! let out = b.output("out", Element::F32, Layout::contiguous(&[80, 12, 64])?)?;
//! b.attention("attention", &FusedAttention::new(part(0)?, part(1)?, part(2)?, sizes, visibility, out))?;
//!
//! let mut bindings = Bindings::new();
//! bindings
//!     .set("qkv", TensorView::f32(qkv, &[80, 3 * 12 * 64])?)
//!     .set("sequences", TensorView::u32(rows_of, &[2, 8])?)
//!     .set("out", TensorView::f32(heads, &[80, 12, 64])?);
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
mod linear_blocks;
mod linear_few;
mod mark_seen;
mod masked_softmax;
mod pool;
mod rotary;
#[cfg(test)]
mod tests;
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
    BLOCKS, BLOCKS_ALONE, CHOOSE_8, CHOOSE_256, Class, FEW_1, FEW_1_NORMED, FEW_1_WIDE, FEW_4, FEW_4_WIDE, FEW_8,
    FEW_8_NORMED, FEW_8_WIDE, FLAT, HALVES_64, HALVES_64_M8, HALVES_128, HEADS_32, HEADS_64, HEADS_64_KEYS, HEADS_64_QUADS,
    HEADS_80, HEADS_96, HEADS_128, HEADS_128_QUADS, HEADS_256, MATRIX_32, MATRIX_32_DEEP, MATRIX_32_M8, MATRIX_64,
    MATRIX_64_DEEP, MATRIX_64_M8, MATRIX_128, MATRIX_HEADS_64, MATRIX_HEADS_64_M8, MATRIX_HEADS_64_QUERIES,
    MATRIX_HEADS_128, MATRIX_HEADS_128_M8, MATRIX_HEADS_128_QUERIES, PLAIN_64, QUADS, REDUCE, ROW_8, ROW_128, ROWS_32,
    SPLIT_1, SPLIT_8, TILE_32, TILE_64, TILE_128, TILE_128X64, UNPACK,
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
    family(&linear::KERNEL, &[&TILE_128, &TILE_128X64], Storage::IN_FOURS),
    family(&linear::KERNEL, &[&PLAIN_64], Storage::ALL),
    subgroup_family(&linear::KERNEL, &[&QUADS]),
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
    subgroup_family(&attention::KERNEL, &[&HEADS_64_QUADS, &HEADS_128_QUADS]),
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
    subgroup_family(&attention_scores::KERNEL, &[&QUADS]),
    family(&attention_weights::KERNEL, &[&PLAIN_64], Storage::ALL),
    family(&additive_scores::KERNEL, &[&FLAT], Storage::ALL),
    rows_x4(&masked_softmax::KERNEL, ROWS_X4, &[Storage::F32x4]),
    family(&masked_softmax::KERNEL, ROWS_SINGLE, &[Storage::F32]),
    family(&attention_values::KERNEL, &[&PLAIN_64], Storage::ALL),
    subgroup_family(&attention_values::KERNEL, &[&QUADS]),
    Family { outputs: 1, ..rows_x4(&layer_norm::KERNEL, ROWS_X4, &[Storage::F32x4]) },
    Family { outputs: 1, ..family(&layer_norm::KERNEL, ROWS_SINGLE, &[Storage::F32]) },
    Family { outputs: 1, ..rows_x4(&layer_norm::KERNEL, NARROW_ROWS_X4, &[Storage::F16x4, Storage::Packedx4]) },
    Family { outputs: 1, ..family(&layer_norm::KERNEL, &[&ROWS_32], &[Storage::F16, Storage::Packed]) },
    family(&linear_blocks::KERNEL, &[&BLOCKS], Storage::ALL),
    family(&linear_blocks::KERNEL, &[&BLOCKS_ALONE], Storage::FOURS_ON_CPUS),
    family(&linear_blocks::KERNEL, &[&BLOCKS_ALONE], Storage::SINGLES),
    family(&linear_blocks::KERNEL_UNPACK, &[&UNPACK], Storage::IN_FOURS),
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

/// The rows of a cache (2, slots, NH_kv, S, W) up to where the last slot's first head ends: a key of a slot lies below.
fn key_rows(cache: Tensor) -> u32 {
    let layout = cache.layout();
    ((layout.size(1) - 1) * layout.size(2) + 1) * layout.size(3)
}

/// The stride of dimension `dim` of an optional tensor.
fn stride(tensor: Option<Tensor>, dim: usize) -> u32 {
    tensor.map_or(0, |t| t.layout().stride(dim))
}
