//! The table of variants: which compiled form of a kernel serves which shape on which device, and why.

use crate::storage::{DeviceClass, MatrixSize, Storage, Tier};
use crate::variant::Variant;

/// One way to cut an operation into workgroups: constants that head the shader.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(crate) constants: &'static [(&'static str, u32)],
}

impl Class {
    /// The constant `name`; every class of a kernel has the same ones.
    pub(crate) fn get(&self, name: &str) -> u32 {
        self.constants.iter().find(|(n, _)| *n == name).map_or(1, |(_, value)| *value)
    }
}

/// A class of shared/tile.wgsl: outputs of a workgroup and k at a time, outputs of a thread, tiles in workgroup memory at once, how
/// many k of the product are unrolled, and whether the loads of the next tile go ahead of it.
macro_rules! tile {
    ($name:literal, [$m:literal, $n:literal, $k:literal], [$thread_m:literal, $thread_n:literal], $stages:literal, $unroll:literal, $ahead:literal) => {
        Class {
            name: $name,
            constants: &[
                ("TILE_M", $m),
                ("TILE_N", $n),
                ("TILE_K", $k),
                ("THREAD_M", $thread_m),
                ("THREAD_N", $thread_n),
                ("STAGES", $stages),
                ("UNROLL", $unroll),
                ("AHEAD", $ahead),
            ],
        }
    };
}

/// 256 threads, 8×8 outputs each, two tiles in 32 KiB: a barrier less a tile, and the least traffic from the cache for large
/// products: 8 bytes a clock for a core of 128 multiply-adds.
pub(crate) const TILE_128: Class = tile!("128x128x16-double", [128, 128, 16], [8, 8], 2, 4, 1);

/// 128 threads, 8×8 outputs each, in 12 KiB: twice the workgroups, at 12 bytes a clock.
pub(crate) const TILE_128X64: Class = tile!("128x64x16", [128, 64, 16], [8, 8], 1, 4, 1);

/// 64 threads, 8×8 outputs each, in 8 KiB: four times the workgroups, where parts of k are shared out too.
pub(crate) const TILE_64: Class = tile!("64x64x16", [64, 64, 16], [8, 8], 1, 4, 1);

/// 64 threads, 4×4 outputs each, k by 32: few rows, where the way through memory counts and not the product.
pub(crate) const TILE_32: Class = tile!("32x32x32", [32, 32, 32], [4, 4], 1, 4, 1);

/// The same loops as a CPU adapter wants them: it keeps no registers over a barrier, so that nothing is loaded ahead, and unrolls
/// too much as it is. 128×128 outputs have half the barriers of 64×64 for the work.
pub(crate) const PLAIN_128: Class = tile!("128x128x16-plain", [128, 128, 16], [8, 8], 1, 1, 0);

/// 64×64 outputs, 64 threads of 8×8: any device, any storage.
pub(crate) const PLAIN_64: Class = tile!("64x64x16-plain", [64, 64, 16], [8, 8], 1, 1, 0);

/// One row, 16 threads along k for every four columns: sixteen columns a workgroup.
pub(crate) const FEW_1: Class = Class { name: "1x16", constants: &[("THREADS", 64), ("K_THREADS", 16), ("ROWS", 1)] };

/// Eight rows at once.
pub(crate) const FEW_8: Class = Class { name: "8x16", constants: &[("THREADS", 64), ("K_THREADS", 16), ("ROWS", 8)] };

/// One row, 64 threads along k: a subgroup reads half a KiB of a row at once, and four times the threads keep loads in flight.
pub(crate) const FEW_1_WIDE: Class = Class { name: "1x64", constants: &[("THREADS", 64), ("K_THREADS", 64), ("ROWS", 1)] };

/// Eight rows at once, 64 threads along k.
pub(crate) const FEW_8_WIDE: Class = Class { name: "8x64", constants: &[("THREADS", 64), ("K_THREADS", 64), ("ROWS", 8)] };

/// `attention` with value heads of up to 32: 64 queries × 32 keys, 64 threads, 8×4 scores and 8×4 values each.
pub(crate) const HEADS_32: Class = Class {
    name: "64x32.v32",
    constants: &[("GROUPS_M", 8), ("GROUPS_N", 8), ("ROW_GROUPS", 2), ("VALUE_GROUPS", 1), ("TILE_K", 16), ("WRITERS", 4)],
};

/// Value heads of up to 64: 64 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_64: Class = Class {
    name: "64x32.v64",
    constants: &[("GROUPS_M", 8), ("GROUPS_N", 8), ("ROW_GROUPS", 2), ("VALUE_GROUPS", 2), ("TILE_K", 16), ("WRITERS", 4)],
};

/// Value heads of up to 80: 160 threads, five whole subgroups of 32, 4×4 scores and 4×8 values each.
pub(crate) const HEADS_80: Class = Class {
    name: "64x40.v80",
    constants: &[("GROUPS_M", 16), ("GROUPS_N", 10), ("ROW_GROUPS", 1), ("VALUE_GROUPS", 2), ("TILE_K", 16), ("WRITERS", 5)],
};

/// Value heads of up to 96: 96 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_96: Class = Class {
    name: "64x48.v96",
    constants: &[("GROUPS_M", 8), ("GROUPS_N", 12), ("ROW_GROUPS", 2), ("VALUE_GROUPS", 2), ("TILE_K", 16), ("WRITERS", 4)],
};

/// Value heads of up to 128: 128 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_128: Class = Class {
    name: "64x64.v128",
    constants: &[("GROUPS_M", 8), ("GROUPS_N", 16), ("ROW_GROUPS", 2), ("VALUE_GROUPS", 2), ("TILE_K", 16), ("WRITERS", 4)],
};

/// Value heads of up to 256: 256 threads, 8×4 scores and 8×8 values each, in slices of eight so that they fit 16 KiB.
pub(crate) const HEADS_256: Class = Class {
    name: "64x128.v256",
    constants: &[("GROUPS_M", 8), ("GROUPS_N", 32), ("ROW_GROUPS", 2), ("VALUE_GROUPS", 2), ("TILE_K", 8), ("WRITERS", 2)],
};

/// Queries of a tile of `attention`, in every class: a plan may take another one for views that are not aligned.
pub(crate) const HEADS_QUERIES: u32 = 64;

/// 32 threads a row, four rows a workgroup; up to 1024 columns in registers, eight loads of 16 bytes under way a thread. A row is
/// one subgroup on most GPUs, and 128 threads are whole subgroups of any size.
pub(crate) const ROWS_32: Class =
    Class { name: "rows32", constants: &[("THREADS", 128), ("ROW_THREADS", 32), ("GROUPS", 8)] };

/// 128 threads a row, up to 4096 columns in registers.
pub(crate) const ROW_128: Class =
    Class { name: "row128", constants: &[("THREADS", 128), ("ROW_THREADS", 128), ("GROUPS", 8)] };

/// Eight threads a row, one row a workgroup: a single vector of a CPU adapter, which a barrier does not suspend. What does not
/// fit its registers is cheap to read again there.
pub(crate) const ROW_8: Class = Class { name: "row8", constants: &[("THREADS", 8), ("ROW_THREADS", 8), ("GROUPS", 4)] };

/// One element group a thread.
pub(crate) const FLAT: Class = Class { name: "flat", constants: &[("THREADS", 64)] };

/// 128×128 outputs a workgroup, 32×64 a subgroup of 32 threads, two tiles of operands in 48 KiB of workgroup memory.
pub(crate) const MATRIX_128: Class = Class {
    name: "128x128x32m16",
    constants: &[
        ("MATRIX", 16),
        ("THREADS", 256),
        ("TILE_M", 128),
        ("TILE_N", 128),
        ("TILE_K", 32),
        ("STAGES", 2),
        ("PART_M", 32),
        ("PART_N", 64),
    ],
};

/// 64×64 outputs a workgroup, 32×32 a subgroup.
pub(crate) const MATRIX_64: Class = Class {
    name: "64x64x32m16",
    constants: &[
        ("MATRIX", 16),
        ("THREADS", 128),
        ("TILE_M", 64),
        ("TILE_N", 64),
        ("TILE_K", 32),
        ("STAGES", 2),
        ("PART_M", 32),
        ("PART_N", 32),
    ],
};

/// 32×64 outputs a workgroup, 16×32 a subgroup, with half as many barriers along k.
pub(crate) const MATRIX_32: Class = Class {
    name: "32x64x64m16",
    constants: &[
        ("MATRIX", 16),
        ("THREADS", 128),
        ("TILE_M", 32),
        ("TILE_N", 64),
        ("TILE_K", 64),
        ("STAGES", 2),
        ("PART_M", 16),
        ("PART_N", 32),
    ],
};

/// As [`MATRIX_64`], of smaller matrices.
pub(crate) const MATRIX_64_M8: Class = Class {
    name: "64x64x32m8",
    constants: &[
        ("MATRIX", 8),
        ("THREADS", 128),
        ("TILE_M", 64),
        ("TILE_N", 64),
        ("TILE_K", 32),
        ("STAGES", 2),
        ("PART_M", 32),
        ("PART_N", 32),
    ],
};

/// As [`MATRIX_32`], of smaller matrices.
pub(crate) const MATRIX_32_M8: Class = Class {
    name: "32x64x64m8",
    constants: &[
        ("MATRIX", 8),
        ("THREADS", 128),
        ("TILE_M", 32),
        ("TILE_N", 64),
        ("TILE_K", 64),
        ("STAGES", 2),
        ("PART_M", 16),
        ("PART_N", 32),
    ],
};

/// f32 products of two halves each: 128×128 outputs a workgroup, 32×64 a subgroup.
pub(crate) const HALVES_128: Class = Class {
    name: "128x128x16m16",
    constants: &[
        ("MATRIX", 16),
        ("THREADS", 256),
        ("TILE_M", 128),
        ("TILE_N", 128),
        ("TILE_K", 16),
        ("PART_M", 32),
        ("PART_N", 64),
    ],
};

/// 64×64 outputs a workgroup, 32×32 a subgroup.
pub(crate) const HALVES_64: Class = Class {
    name: "64x64x32m16",
    constants: &[
        ("MATRIX", 16),
        ("THREADS", 128),
        ("TILE_M", 64),
        ("TILE_N", 64),
        ("TILE_K", 32),
        ("PART_M", 32),
        ("PART_N", 32),
    ],
};

/// As [`HALVES_64`], of smaller matrices.
pub(crate) const HALVES_64_M8: Class = Class {
    name: "64x64x32m8",
    constants: &[
        ("MATRIX", 8),
        ("THREADS", 128),
        ("TILE_M", 64),
        ("TILE_N", 64),
        ("TILE_K", 32),
        ("PART_M", 32),
        ("PART_N", 32),
    ],
};

/// `attention_split` of one query: 128 keys a workgroup of 64 threads.
pub(crate) const SPLIT_1: Class = Class { name: "1x128", constants: &[("THREADS", 64), ("QUERIES", 1), ("KEYS", 128)] };

/// Of up to eight queries, which share every read of a key and a value.
pub(crate) const SPLIT_8: Class = Class { name: "8x128", constants: &[("THREADS", 64), ("QUERIES", 8), ("KEYS", 128)] };

/// `attention_reduce`: four columns a thread, of parts of 128 keys.
pub(crate) const REDUCE: Class = Class { name: "flat", constants: &[("THREADS", 64), ("KEYS", 128)] };

/// A class of `attention_matrix`: matrix size, threads, queries and keys of a tile, the widest head; 16 queries a subgroup.
macro_rules! matrix_heads {
    ($name:literal, $matrix:literal, $threads:literal, $m:literal, $n:literal, $head:literal) => {
        Class {
            name: $name,
            constants: &[
                ("MATRIX", $matrix),
                ("THREADS", $threads),
                ("TILE_M", $m),
                ("TILE_N", $n),
                ("HEAD", $head),
                ("PART_M", 16),
            ],
        }
    };
}

/// `attention_matrix` with heads of up to 64: 64 queries × 32 keys, four subgroups of 32 threads with 16 queries each.
pub(crate) const MATRIX_HEADS_64: Class = matrix_heads!("64x32.h64m16", 16, 128, 64, 32, 64);

/// Heads of up to 128.
pub(crate) const MATRIX_HEADS_128: Class = matrix_heads!("64x32.h128m16", 16, 128, 64, 32, 128);

/// Heads of up to 256: 32 queries × 16 keys, so that out stays in registers.
pub(crate) const MATRIX_HEADS_256: Class = matrix_heads!("32x16.h256m16", 16, 64, 32, 16, 256);

/// As [`MATRIX_HEADS_64`], of smaller matrices.
pub(crate) const MATRIX_HEADS_64_M8: Class = matrix_heads!("64x32.h64m8", 8, 128, 64, 32, 64);

/// As [`MATRIX_HEADS_128`], of smaller matrices.
pub(crate) const MATRIX_HEADS_128_M8: Class = matrix_heads!("64x32.h128m8", 8, 128, 64, 32, 128);

/// What a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Linear,
    /// Columns are those of a value head, the depth the longest key.
    Attention,
    AttentionWeights,
    AttentionScores,
    AttentionValues,
    /// `masked_softmax`, `layer_norm` and `argmax`: reductions over rows.
    Rows,
}

/// One dispatch that needs a variant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    /// The kernel, where several of one operation are no alternatives of each other.
    pub(crate) kernel: &'static str,
    pub(crate) storage: Storage,
    /// Rows of the output: those of a projection, the longest query.
    pub(crate) rows: usize,
    /// Columns of the output; for reductions, of the input.
    pub(crate) columns: usize,
    /// What is summed over.
    pub(crate) depth: usize,
    /// Whether `columns` depend on a batch, as a longest key does: with `invariant` they must not decide then.
    pub(crate) ragged_columns: bool,
    /// Forbids choices by what a batch changes: `rows`, and ragged columns.
    pub(crate) invariant: bool,
}

impl Case {
    /// Whether neither columns nor their alignment may decide: a batch changes both.
    fn ragged(&self) -> bool {
        self.invariant && self.ragged_columns
    }
}

/// What the table answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The kernel's name.
    pub(crate) kernel: &'static str,
    pub(crate) class: &'static Class,
    pub(crate) tier: Tier,
}

/// One row: where `fits` holds the choice can run, where `best` holds it is taken.
struct Row {
    operation: Operation,
    /// "" for the case's own kernel.
    kernel: &'static str,
    class: &'static Class,
    tier: Tier,
    fits: fn(&Case, &DeviceClass) -> bool,
    best: fn(&Case, &DeviceClass) -> bool,
    #[cfg_attr(not(test), allow(dead_code))]
    why: &'static str,
}

const ANY: fn(&Case, &DeviceClass) -> bool = |_, _| true;

/// Workgroups that keep a large GPU busy: two for each of the 132 multiprocessors of an H100, more than any smaller one needs.
const BUSY: usize = 264;

/// The shortest part of k that is worth a workgroup of its own.
const SHORTEST_SPLIT: usize = 128;

impl Case {
    /// Tiles of `m` × `n` that cover the output.
    fn tiles(&self, m: usize, n: usize) -> usize {
        self.rows.div_ceil(m).saturating_mul(self.columns.div_ceil(n))
    }

    /// Whether the rows decide, and are at most `rows`.
    fn has_few(&self, rows: usize) -> bool {
        !self.invariant && self.rows <= rows
    }

    /// How long the parts of k are, and how many, for a kernel of `class` that shares k out: as many as keep a device busy, and at
    /// most `most`. Lengths are a multiple of every tile's, and the same for every run of a shape.
    pub(crate) fn split(&self, class: &Class, most: usize) -> (usize, usize) {
        let tiles = self.tiles(class.get("TILE_M") as usize, class.get("TILE_N") as usize).max(1);
        let parts = (2 * BUSY).div_ceil(tiles).min(self.depth / SHORTEST_SPLIT).min(most).max(1);
        let length = self.depth.div_ceil(parts).next_multiple_of(32);
        (length, self.depth.div_ceil(length))
    }
}

const FOURS: fn(&Case, &DeviceClass) -> bool = |c, _| c.storage.in_fours();

/// A row of the core tier.
const fn row(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: fn(&Case, &DeviceClass) -> bool,
    best: fn(&Case, &DeviceClass) -> bool,
    why: &'static str,
) -> Row {
    Row { operation, kernel, class, tier: Tier::Core, fits, best, why }
}

/// Whether matrices of this size serve a case in f16, in so many bytes of workgroup memory.
fn on_matrices<const SIZE: u32, const BYTES: u32>(case: &Case, device: &DeviceClass) -> bool {
    has_matrices::<SIZE, BYTES>(device) && [Storage::F16, Storage::F16x4].contains(&case.storage)
}

/// Whether they serve a case in f32, which the caller must have asked for.
fn in_halves<const SIZE: u32, const BYTES: u32>(case: &Case, device: &DeviceClass) -> bool {
    device.f32_by_matrices && has_matrices::<SIZE, BYTES>(device) && Storage::WIDE.contains(&case.storage)
}

fn has_matrices<const SIZE: u32, const BYTES: u32>(device: &DeviceClass) -> bool {
    let size = match device.matrix {
        Some(MatrixSize::M16) => 16,
        Some(MatrixSize::M8) => 8,
        None => 0,
    };
    size == SIZE && device.workgroup_bytes >= BYTES
}

/// A row for matrices.
const fn matrix(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: fn(&Case, &DeviceClass) -> bool,
    best: fn(&Case, &DeviceClass) -> bool,
    why: &'static str,
) -> Row {
    Row { operation, kernel, class, tier: Tier::Matrix, fits, best, why }
}

/// Enough queries that a tile of 64 of them is not mostly empty.
const MANY_QUERIES: fn(&Case, &DeviceClass) -> bool = |c, _| c.invariant || c.rows > 16;

/// Read from above: the first row that fits, on a device that has what its tier needs.
static TABLE: &[Row] = &[
    row(
        Operation::Linear,
        "linear_few",
        &FEW_1,
        FOURS,
        |c, d| d.cpu && c.has_few(1),
        "one row on a CPU: every weight is read once, and a reduction of 16 is short",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_1_WIDE,
        FOURS,
        |c, d| !d.cpu && c.has_few(1),
        "one row on a GPU: memory is the limit, so whole subgroups read one row, and many of them",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_128,
        on_matrices::<16, 49_152>,
        |c, _| c.columns >= 1024 && (c.invariant || c.rows * c.columns >= 132 * 128 * 128),
        "the most products a byte of workgroup memory; enough tiles for every core of a large device",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64,
        on_matrices::<16, 24_576>,
        |c, _| c.columns >= 64 && (c.invariant || c.rows * c.columns >= 132 * 64 * 64),
        "four times as many tiles, where larger ones would leave cores idle",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_32,
        on_matrices::<16, 31_744>,
        |c, _| c.rows > 8 || c.invariant,
        "few rows or columns: less of a tile is empty, and more workgroups stream the weight",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64_M8,
        on_matrices::<8, 24_576>,
        |c, _| c.columns >= 64 && (c.invariant || c.rows > 32),
        "what 32 KiB of workgroup memory hold twice, beside the sums",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_32_M8,
        on_matrices::<8, 31_744>,
        |c, _| c.rows > 8 || c.invariant,
        "few rows or columns: less of a tile is empty",
    ),
    matrix(
        Operation::Linear,
        "linear_halves",
        &HALVES_128,
        in_halves::<16, 33_792>,
        |c, _| c.columns >= 1024 && (c.invariant || c.rows * c.columns >= 132 * 128 * 128),
        "f32 on matrix units: three products, each a third of their speed in f16 and above plain f32's",
    ),
    matrix(
        Operation::Linear,
        "linear_halves",
        &HALVES_64,
        in_halves::<16, 25_600>,
        |c, _| c.columns >= 64 && (c.invariant || c.rows > 32),
        "four times as many tiles, where larger ones would leave cores idle",
    ),
    matrix(
        Operation::Linear,
        "linear_halves",
        &HALVES_64_M8,
        in_halves::<8, 25_600>,
        |c, _| c.columns >= 64 && (c.invariant || c.rows > 32),
        "f32 on matrix units of the smaller size",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_8_WIDE,
        FOURS,
        |c, d| !d.cpu && c.has_few(16),
        "few rows on a GPU: memory is the limit still, and the second eight rows find the weights in the cache",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_8,
        ANY,
        |c, d| c.columns <= 32 || c.has_few(if d.cpu { 40 } else { 16 }),
        "few rows or columns: no tile is left empty, and none goes through workgroup memory",
    ),
    row(
        Operation::Linear,
        "linear",
        &PLAIN_128,
        FOURS,
        |c, d| d.cpu && !c.invariant && 40 * c.tiles(128, 128) <= 11 * c.tiles(64, 64),
        "a CPU, where no more of the larger tile is empty, or hardly: half the barriers for the work",
    ),
    row(
        Operation::Linear,
        "linear",
        &TILE_128,
        |c, d| c.storage.in_fours() && d.workgroup_bytes >= 32_768,
        |c, d| !d.cpu && !c.invariant && d.workgroup_bytes >= 49_152 && c.tiles(128, 128) >= BUSY,
        "large products that keep a large GPU busy at two workgroups a core; twice 32 KiB should fit",
    ),
    row(
        Operation::Linear,
        "linear",
        &TILE_128X64,
        FOURS,
        |c, d| !d.cpu && (c.invariant || c.depth < 2 * SHORTEST_SPLIT || c.tiles(128, 64) >= BUSY * 3 / 4),
        "what keeps a large GPU busy in smaller pieces, or cannot be split",
    ),
    row(
        Operation::Linear,
        "linear_split",
        &TILE_32,
        FOURS,
        |c, d| !d.cpu && c.rows <= 48,
        "skinny: the weights are read once from all over a GPU, parts of k beside each other",
    ),
    row(
        Operation::Linear,
        "linear_split",
        &TILE_64,
        FOURS,
        |_, d| !d.cpu,
        "too few tiles for a large GPU: parts of k are shared out, and their sums added by linear_sum",
    ),
    row(
        Operation::Linear,
        "linear",
        &PLAIN_64,
        ANY,
        ANY,
        "any device and any storage: the most multiply-adds a load and a barrier in 8 KiB",
    ),
    row(
        Operation::Linear,
        "linear_split",
        &PLAIN_64,
        ANY,
        |_, _| false,
        "never chosen: stands in for the other tiles where views are not aligned",
    ),
    row(
        Operation::Attention,
        "attention_split",
        &SPLIT_1,
        |c, _| matches!(c.storage, Storage::F32x4 | Storage::F16x4) && c.columns.max(c.depth) <= 256,
        |c, _| c.has_few(1),
        "one query: a tile of 64 would be empty but for one row, and one head would keep one core busy",
    ),
    row(
        Operation::Attention,
        "attention_split",
        &SPLIT_8,
        |c, _| c.columns.max(c.depth) <= 256,
        |c, _| c.has_few(8),
        "few queries: parts of the keys keep all cores busy, and each key is read once for all of them",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_64,
        |c, d| c.columns.max(c.depth) <= 64 && on_matrices::<16, 32768>(c, d),
        MANY_QUERIES,
        "both products on matrix units; the narrowest class that holds the head",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_128,
        |c, d| c.columns.max(c.depth) <= 128 && on_matrices::<16, 32768>(c, d),
        MANY_QUERIES,
        "both products on matrix units; the narrowest class that holds the head",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_256,
        |c, d| c.columns.max(c.depth) <= 256 && on_matrices::<16, 32768>(c, d),
        MANY_QUERIES,
        "both products on matrix units; the narrowest class that holds the head",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_64_M8,
        |c, d| c.columns.max(c.depth) <= 64 && on_matrices::<8, 32768>(c, d),
        MANY_QUERIES,
        "both products on matrix units; the narrowest class that holds the head",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_128_M8,
        |c, d| c.columns.max(c.depth) <= 128 && on_matrices::<8, 32768>(c, d),
        MANY_QUERIES,
        "both products on matrix units; the narrowest class that holds the head",
    ),
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_32,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 32 && c.storage == Storage::F32x4,
        best: ANY,
        why: "the narrowest class that holds the value head",
    },
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_64,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 64,
        best: ANY,
        why: "eight by eight values a thread, the most multiply-adds a load",
    },
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_80,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 80 && c.storage == Storage::F32x4,
        best: ANY,
        why: "the narrowest class that holds the value head",
    },
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_96,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 96 && c.storage == Storage::F32x4,
        best: ANY,
        why: "the narrowest class that holds the value head",
    },
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_128,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 128 && c.storage.in_fours(),
        best: ANY,
        why: "the narrowest class that holds the value head",
    },
    Row {
        operation: Operation::Attention,
        kernel: "attention",
        class: &HEADS_256,
        tier: Tier::Core,
        fits: |c, _| c.columns <= 256,
        best: ANY,
        why: "the widest value head that there is",
    },
    row(
        Operation::AttentionWeights,
        "attention_weights",
        &PLAIN_64,
        ANY,
        ANY,
        "what it writes takes longer than what it computes",
    ),
    row(Operation::AttentionScores, "", &PLAIN_64, ANY, ANY, "the most multiply-adds a load and a barrier in 8 KiB"),
    row(Operation::AttentionValues, "", &PLAIN_64, ANY, ANY, "the most multiply-adds a load and a barrier in 8 KiB"),
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROW_8,
        tier: Tier::Subgroups,
        fits: |c, _| c.storage == Storage::F32x4,
        best: |c, d| d.cpu && !c.ragged(),
        why: "a CPU adapter: a row is one vector, and shuffles suspend nothing",
    },
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROW_8,
        tier: Tier::Core,
        fits: |c, _| Storage::WIDE.contains(&c.storage),
        best: |_, d| d.cpu,
        why: "a CPU adapter: a row is one vector, and barriers of one vector suspend nothing",
    },
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROW_128,
        tier: Tier::Subgroups,
        fits: |c, _| c.storage.in_fours(),
        best: |c, _| c.columns > 1024 && !c.ragged(),
        why: "long rows: 4096 columns in registers, and few barriers",
    },
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROW_128,
        tier: Tier::Core,
        fits: |c, _| c.storage.in_fours(),
        best: |c, _| c.columns > 1024 && !c.ragged(),
        why: "long rows: 4096 columns in registers",
    },
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROWS_32,
        tier: Tier::Subgroups,
        fits: |c, _| c.storage.in_fours(),
        best: |c, _| !c.ragged(),
        why: "short rows: one subgroup each on most GPUs, and no barrier",
    },
    Row {
        operation: Operation::Rows,
        kernel: "",
        class: &ROWS_32,
        tier: Tier::Core,
        fits: ANY,
        best: ANY,
        why: "short rows in registers; rows that a batch makes longer, and unaligned ones of any length",
    },
];

/// The class that stands in for `class` where tensors are not aligned to groups of four: the fast ones come in those alone.
pub(crate) fn unaligned(class: &'static Class) -> &'static Class {
    let same = |names: &[&Class]| names.iter().any(|c| c.name == class.name);
    match class {
        _ if same(&[&TILE_128, &TILE_128X64, &TILE_64, &TILE_32, &PLAIN_128]) => &PLAIN_64,
        _ if same(&[&FEW_1, &FEW_1_WIDE, &FEW_8_WIDE]) => &FEW_8,
        _ if same(&[&ROW_128]) => &ROWS_32,
        _ if same(&[&SPLIT_1]) => &SPLIT_8,
        _ if same(&[&HEADS_32]) => &HEADS_64,
        _ if same(&[&HEADS_80, &HEADS_96, &HEADS_128]) => &HEADS_256,
        _ => class,
    }
}

/// The variant for a case: the first of `pinned` that can run it, else the table's.
pub(crate) fn choose(case: &Case, device: &DeviceClass, pinned: &[Variant]) -> Choice {
    let runs = |row: &&Row| {
        let needed = row.tier.features(case.storage);
        let kernel = row.kernel.is_empty() || case.kernel.is_empty() || row.kernel == case.kernel;
        row.operation == case.operation && kernel && device.features.contains(needed) && (row.fits)(case, device)
    };
    let choice = |row: &Row| Choice {
        kernel: if row.kernel.is_empty() { case.kernel } else { row.kernel },
        class: row.class,
        tier: row.tier,
    };
    let rows = || TABLE.iter().filter(runs);
    let is_pinned = |row: &&Row| {
        let Choice { kernel, class, tier } = choice(row);
        pinned.iter().any(|p| (p.kernel.name, p.class.name, p.tier) == (kernel, class.name, tier))
    };
    let row = rows().find(is_pinned).or_else(|| rows().find(|row| (row.best)(case, device)));
    // The last row of every operation is for anything.
    row.map_or(Choice { kernel: case.kernel, class: &FLAT, tier: Tier::Core }, choice)
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    /// Rule: the table says why, and names only variants that there are.
    #[test]
    fn every_row_has_a_reason_and_a_variant() {
        let all = crate::kernels::variants();
        for row in TABLE {
            assert!(!row.why.is_empty());
            let there = |v: &Variant| {
                (row.kernel.is_empty() || v.kernel.name == row.kernel)
                    && v.class.name == row.class.name
                    && v.tier == row.tier
            };
            assert!(all.iter().any(there), "no variant {} {}", row.kernel, row.class.name);
        }
    }

    /// Rule: where a row on matrices fits, the device has the workgroup memory that its shader declares.
    #[test]
    fn rows_on_matrices_know_their_workgroup_memory() {
        for variant in crate::kernels::variants().iter().filter(|v| v.tier == Tier::Matrix) {
            let module = naga::front::wgsl::parse_str(&variant.source()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
            let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size).sum();
            let size = if variant.class.get("MATRIX") == 8 { MatrixSize::M8 } else { MatrixSize::M16 };
            let device = |workgroup_bytes| DeviceClass {
                cpu: false,
                features: variant.features(),
                matrix: Some(size),
                f32_by_matrices: true,
                workgroup_bytes,
                invocations: 256,
            };
            let rows = || TABLE.iter().filter(|r| (r.kernel, r.class.name) == (variant.kernel.name, variant.class.name));
            assert!(rows().count() > 0, "{variant:?} is in no row");
            for row in rows() {
                let case = Case {
                    operation: row.operation,
                    kernel: row.kernel,
                    storage: variant.storage,
                    rows: 64,
                    columns: 64,
                    depth: 64,
                    ragged_columns: false,
                    invariant: false,
                };
                assert!(!(row.fits)(&case, &device(bytes - 1)), "{variant:?} needs {bytes} bytes");
                assert!((row.fits)(&case, &device(49_152)), "{variant:?} fits no device");
            }
        }
    }
}
