//! The classes: how each kernel is cut into workgroups, as constants that head its shader.

/// One way to cut an operation into workgroups: constants that head the shader.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(crate) constants: &'static [(&'static str, u32)],
}

impl Class {
    /// The constant `name`; every class of a kernel has the same ones.
    pub(crate) fn get(&self, name: &str) -> u32 {
        self.find(name).unwrap_or(1)
    }

    /// The constant `name`, where the class has it.
    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        self.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

/// A class by its name and its constants.
macro_rules! class {
    ($name:literal, $($constant:ident: $value:expr),*) => {
        Class { name: $name, constants: &[$((stringify!($constant), $value)),*] }
    };
}

/// A class of shared/tile.wgsl: outputs of a workgroup and k at a time, outputs of a thread, how
/// many k of the product are unrolled, and whether the loads of the next tile go ahead of it.
macro_rules! tile {
    ($name:literal, [$m:expr, $n:expr, $k:expr], [$row:expr, $column:expr], $unroll:expr, $ahead:expr) => {
        class!(
            $name,
            TILE_M: $m, TILE_N: $n, TILE_K: $k, THREAD_M: $row, THREAD_N: $column, UNROLL: $unroll, AHEAD: $ahead
        )
    };
}

/// 256 threads, 8×8 outputs each, in 16 KiB: the least traffic from the cache for large products, 8 bytes a clock for a core of 128
/// multiply-adds. All k of a tile are written out, so that places in workgroup memory are constants.
pub(crate) const TILE_128: Class = tile!("128x128x16", [128, 128, 16], [8, 8], 16, 1);

/// 128 threads, 8×8 outputs each, in 12 KiB: twice the workgroups, at 12 bytes a clock.
pub(crate) const TILE_128X64: Class = tile!("128x64x16", [128, 64, 16], [8, 8], 16, 1);

/// 64 threads, 8×8 outputs each, in 8 KiB: four times the workgroups, where parts of k are shared out too.
pub(crate) const TILE_64: Class = tile!("64x64x16", [64, 64, 16], [8, 8], 16, 1);

/// 64 threads, 4×4 outputs each, k by 32: few rows, where the way through memory counts and not the product.
pub(crate) const TILE_32: Class = tile!("32x32x32", [32, 32, 32], [4, 4], 4, 1);

/// 64×64 outputs, 64 threads of 8×8: any device, any storage. Nothing is loaded ahead, as a CPU adapter keeps no registers over a barrier.
pub(crate) const PLAIN_64: Class = tile!("64x64x16-plain", [64, 64, 16], [8, 8], 1, 0);

/// 32×64 outputs by eight threads in quads, 32×8 each: a single vector of a CPU adapter, which goes through memory thread by thread and
/// through broadcasts all at once.
pub(crate) const QUADS: Class = class!("32x64-quads", TILE_M: 32, TILE_N: 64);

/// One row without a norm, 32 columns by eight threads, each of which goes along k by itself: a single vector of a CPU adapter, which
/// has nothing to add up and no barrier, before which it would have to keep its registers in memory.
pub(crate) const FEW_1: Class = class!("1x1-plain", THREADS: 8, K_THREADS: 1, ROWS: 1, NORMED: 0, CHUNK: 0, AHEAD: 0);

/// Eight rows at once.
pub(crate) const FEW_8: Class = class!("8x1-plain", THREADS: 8, K_THREADS: 1, ROWS: 8, NORMED: 0, CHUNK: 0, AHEAD: 0);

/// One row behind a norm, which up to 2048 k of it lie ready for all threads in workgroup memory.
pub(crate) const FEW_1_NORMED: Class = class!("1x1", THREADS: 8, K_THREADS: 1, ROWS: 1, NORMED: 1, CHUNK: 2048, AHEAD: 0);

/// Eight rows behind a norm.
pub(crate) const FEW_8_NORMED: Class = class!("8x1", THREADS: 8, K_THREADS: 1, ROWS: 8, NORMED: 1, CHUNK: 0, AHEAD: 0);

/// Four rows that are not in groups of four, on a CPU: summed in the order of the aligned classes, so that an offset changes no bit.
pub(crate) const FEW_4: Class = class!("4x1", THREADS: 8, K_THREADS: 1, ROWS: 4, NORMED: 1, CHUNK: 0, AHEAD: 0);

/// One row, 64 threads along k: a subgroup reads half a KiB of a row at once, and four times the threads keep loads in flight. With
/// subgroups each has AHEAD groups of k under way, all of a width of 768.
pub(crate) const FEW_1_WIDE: Class = class!("1x64", THREADS: 64, K_THREADS: 64, ROWS: 1, NORMED: 1, CHUNK: 0, AHEAD: 3);

/// Eight rows at once, 64 threads along k.
pub(crate) const FEW_8_WIDE: Class = class!("8x64", THREADS: 64, K_THREADS: 64, ROWS: 8, NORMED: 1, CHUNK: 0, AHEAD: 0);

/// Four rows that are not in groups of four, summed in the order of these.
pub(crate) const FEW_4_WIDE: Class = class!("4x64", THREADS: 64, K_THREADS: 64, ROWS: 4, NORMED: 1, CHUNK: 0, AHEAD: 0);

/// `attention` with value heads of up to 32: 64 queries × 32 keys, 64 threads, 8×4 scores and 8×4 values each.
pub(crate) const HEADS_32: Class =
    class!("64x32.v32", GROUPS_M: 8, GROUPS_N: 8, SCORE_GROUPS: 1, ROW_GROUPS: 2, VALUE_GROUPS: 1, TILE_K: 16, WRITERS: 4);

/// Value heads of up to 64: 64 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_64: Class =
    class!("64x32.v64", GROUPS_M: 8, GROUPS_N: 8, SCORE_GROUPS: 1, ROW_GROUPS: 2, VALUE_GROUPS: 2, TILE_K: 16, WRITERS: 4);

/// The same with 64 keys a tile: 8×8 scores each, of which a load from workgroup memory serves more.
pub(crate) const HEADS_64_KEYS: Class =
    class!("64x64.v64", GROUPS_M: 8, GROUPS_N: 8, SCORE_GROUPS: 2, ROW_GROUPS: 2, VALUE_GROUPS: 2, TILE_K: 16, WRITERS: 4);

/// Value heads of up to 80: 160 threads, five whole subgroups of 32, 4×4 scores and 4×8 values each.
pub(crate) const HEADS_80: Class =
    class!("64x40.v80", GROUPS_M: 16, GROUPS_N: 10, SCORE_GROUPS: 1, ROW_GROUPS: 1, VALUE_GROUPS: 2, TILE_K: 16, WRITERS: 5);

/// Value heads of up to 96: 96 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_96: Class =
    class!("64x48.v96", GROUPS_M: 8, GROUPS_N: 12, SCORE_GROUPS: 1, ROW_GROUPS: 2, VALUE_GROUPS: 2, TILE_K: 16, WRITERS: 4);

/// Value heads of up to 128: 128 threads, 8×4 scores and 8×8 values each.
pub(crate) const HEADS_128: Class =
    class!("64x64.v128", GROUPS_M: 8, GROUPS_N: 16, SCORE_GROUPS: 1, ROW_GROUPS: 2, VALUE_GROUPS: 2, TILE_K: 16, WRITERS: 4);

/// Value heads of up to 256: 256 threads, 8×4 scores and 8×8 values each, in slices of eight so that they fit 16 KiB.
pub(crate) const HEADS_256: Class =
    class!("64x128.v256", GROUPS_M: 8, GROUPS_N: 32, SCORE_GROUPS: 1, ROW_GROUPS: 2, VALUE_GROUPS: 2, TILE_K: 8, WRITERS: 2);

/// Value heads of up to 64 by eight threads in quads, each with four queries at a time: a single vector of a CPU adapter.
pub(crate) const HEADS_64_QUADS: Class = class!("64x32.v64-quads", THREAD_QUERIES: 4, KEY_GROUPS: 8, VALUE_GROUPS: 16);

/// Up to 128, two queries at a time.
pub(crate) const HEADS_128_QUADS: Class = class!("64x64.v128-quads", THREAD_QUERIES: 2, KEY_GROUPS: 16, VALUE_GROUPS: 32);

/// Queries of a tile of `attention`, in every class: a plan may take another one for views that are not aligned.
pub(crate) const HEADS_QUERIES: u32 = 64;

/// 32 threads a row, four rows a workgroup; up to 1024 columns in registers, eight loads of 16 bytes under way a thread. A row is
/// one subgroup on most GPUs, and 128 threads are whole subgroups of any size.
pub(crate) const ROWS_32: Class = class!("rows32", THREADS: 128, ROW_THREADS: 32, GROUPS: 8);

/// 128 threads a row, up to 4096 columns in registers.
pub(crate) const ROW_128: Class = class!("row128", THREADS: 128, ROW_THREADS: 128, GROUPS: 8);

/// Eight threads a row, one row a workgroup: a single vector of a CPU adapter, which a barrier does not suspend. What does not
/// fit its registers is cheap to read again there.
pub(crate) const ROW_8: Class = class!("row8", THREADS: 8, ROW_THREADS: 8, GROUPS: 4);

/// `linear_blocks`: 64 threads along k with four words of four columns each under way, for up to four rows.
pub(crate) const BLOCKS: Class = class!("4x64", THREADS: 64, K_THREADS: 64, ROWS: 4, AHEAD: 4);

/// The same on a CPU adapter: eight threads, each of which goes along k by itself.
pub(crate) const BLOCKS_ALONE: Class = class!("4x1", THREADS: 8, K_THREADS: 1, ROWS: 4, AHEAD: 4);

/// `unpack_blocks`: 16 groups of four columns a thread, neighbours side by side.
pub(crate) const UNPACK: Class = class!("flat", THREADS: 64, PASSES: 16);

/// One element group a thread.
pub(crate) const FLAT: Class = class!("flat", THREADS: 64);

/// `choose` with 256 threads a row, sixteen of which share a part of it: reads of 256 bytes that lie together.
pub(crate) const CHOOSE_256: Class = class!("row256", THREADS: 256, SHARE: 16);

/// Eight threads a row, a part each: a single vector of a CPU adapter, which a barrier does not suspend.
pub(crate) const CHOOSE_8: Class = class!("row8", THREADS: 8, SHARE: 1);

/// A class of linear_matrix.wgsl: size of matrices, outputs of a workgroup and k at a time, threads, matrices of a subgroup.
macro_rules! matrix {
    ($name:literal, $size:expr, [$m:expr, $n:expr, $k:expr], $threads:expr, [$blocks_m:expr, $blocks_n:expr]) => {
        class!(
            $name,
            MATRIX: $size, THREADS: $threads, TILE_M: $m, TILE_N: $n, TILE_K: $k, BLOCKS_M: $blocks_m, BLOCKS_N: $blocks_n
        )
    };
}

/// 128×128 outputs a workgroup, 64×64 a subgroup of 32 threads, in 24 KiB: the most products for an operand of which two workgroups
/// fit a core that has 50.
pub(crate) const MATRIX_128: Class = matrix!("128x128x32m16", 16, [128, 128, 32], 128, [4, 4]);

/// 64×64 outputs a workgroup, 32×32 a subgroup, in 14 KiB: three workgroups.
pub(crate) const MATRIX_64: Class = matrix!("64x64x32m16", 16, [64, 64, 32], 128, [2, 2]);

/// The same with a deeper tile in 22 KiB: two workgroups, with half the barriers.
pub(crate) const MATRIX_64_DEEP: Class = matrix!("64x64x64m16", 16, [64, 64, 64], 128, [2, 2]);

/// 32×32 outputs a workgroup, 16×16 a subgroup.
pub(crate) const MATRIX_32: Class = matrix!("32x32x64m16", 16, [32, 32, 64], 128, [1, 1]);

/// The same with a deep tile: few workgroups, each of which waits less often for memory.
pub(crate) const MATRIX_32_DEEP: Class = matrix!("32x32x256m16", 16, [32, 32, 256], 128, [1, 1]);

/// As [`MATRIX_64`], of smaller matrices.
pub(crate) const MATRIX_64_M8: Class = matrix!("64x64x32m8", 8, [64, 64, 32], 128, [4, 4]);

/// As [`MATRIX_32`], of smaller matrices.
pub(crate) const MATRIX_32_M8: Class = matrix!("32x64x64m8", 8, [32, 64, 64], 128, [2, 4]);

/// f32 products of two halves each: 128×128 outputs a workgroup, 32×64 a subgroup.
pub(crate) const HALVES_128: Class =
    class!("128x128x16m16", MATRIX: 16, THREADS: 256, TILE_M: 128, TILE_N: 128, TILE_K: 16, BLOCKS_M: 2, BLOCKS_N: 4);

/// 64×64 outputs a workgroup, 32×32 a subgroup.
pub(crate) const HALVES_64: Class =
    class!("64x64x32m16", MATRIX: 16, THREADS: 128, TILE_M: 64, TILE_N: 64, TILE_K: 32, BLOCKS_M: 2, BLOCKS_N: 2);

/// As [`HALVES_64`], of smaller matrices.
pub(crate) const HALVES_64_M8: Class =
    class!("64x64x32m8", MATRIX: 8, THREADS: 128, TILE_M: 64, TILE_N: 64, TILE_K: 32, BLOCKS_M: 4, BLOCKS_N: 4);

/// `attention_split` of one query: 128 keys a workgroup of 128 threads, which have all key rows of a head of 64 under way at once,
/// then all value rows. Eight threads read a key row, 64 bytes of f16 that lie together; a CPU adapter is slower with 256 threads.
pub(crate) const SPLIT_1: Class = class!("1x128", THREADS: 128, QUERIES: 1, KEYS: 128, KEY_THREADS: 8, GROUPS_AHEAD: 2);

/// Of up to eight queries, which share every read of a key and a value: 64 threads with two keys each, which leaves nothing to meet.
pub(crate) const SPLIT_8: Class = class!("8x128", THREADS: 64, QUERIES: 8, KEYS: 128, KEY_THREADS: 1, GROUPS_AHEAD: 4);

/// `attention_reduce`: four columns a thread, of parts of 128 keys.
pub(crate) const REDUCE: Class = class!("flat", THREADS: 64, KEYS: 128);

/// `attention_matrix` with heads of up to 64: 64 queries × 16 keys, four subgroups of 32 threads with 16 queries each, in 14 KiB.
pub(crate) const MATRIX_HEADS_64: Class =
    class!("64x16.h64m16", MATRIX: 16, THREADS: 128, TILE_M: 64, TILE_N: 16, BLOCKS: 1, HEAD_BLOCKS: 4);

/// Heads of up to 128: 64 queries × 16 keys, since with 32 RDNA3 has too few registers.
pub(crate) const MATRIX_HEADS_128: Class =
    class!("64x16.h128m16", MATRIX: 16, THREADS: 128, TILE_M: 64, TILE_N: 16, BLOCKS: 1, HEAD_BLOCKS: 8);

/// Eight subgroups of 16 queries that share every key, in 23 KiB.
pub(crate) const MATRIX_HEADS_64_QUERIES: Class =
    class!("128x16.h64m16", MATRIX: 16, THREADS: 256, TILE_M: 128, TILE_N: 16, BLOCKS: 1, HEAD_BLOCKS: 4);

/// Heads of up to 128, eight subgroups that share every key.
pub(crate) const MATRIX_HEADS_128_QUERIES: Class =
    class!("128x32.h128m16", MATRIX: 16, THREADS: 256, TILE_M: 128, TILE_N: 32, BLOCKS: 1, HEAD_BLOCKS: 8);

/// As [`MATRIX_HEADS_64`] with 32 keys, of smaller matrices.
pub(crate) const MATRIX_HEADS_64_M8: Class =
    class!("64x32.h64m8", MATRIX: 8, THREADS: 128, TILE_M: 64, TILE_N: 32, BLOCKS: 2, HEAD_BLOCKS: 8);

/// As [`MATRIX_HEADS_128`], of smaller matrices.
pub(crate) const MATRIX_HEADS_128_M8: Class =
    class!("64x32.h128m8", MATRIX: 8, THREADS: 128, TILE_M: 64, TILE_N: 32, BLOCKS: 2, HEAD_BLOCKS: 16);

/// The class that stands in for `class` where tensors are not aligned to groups of four: the fast ones come in those alone.
pub(crate) fn unaligned(class: &'static Class) -> &'static Class {
    let same = |names: &[&Class]| names.iter().any(|c| c.name == class.name);
    match class {
        _ if same(&[&TILE_128, &TILE_128X64, &TILE_64, &TILE_32, &QUADS]) => &PLAIN_64,
        _ if same(&[&FEW_1, &FEW_8, &FEW_1_NORMED, &FEW_8_NORMED]) => &FEW_4,
        _ if same(&[&FEW_1_WIDE, &FEW_8_WIDE]) => &FEW_4_WIDE,
        _ if same(&[&ROW_128]) => &ROWS_32,
        _ if same(&[&SPLIT_1]) => &SPLIT_8,
        _ if same(&[&HEADS_32, &HEADS_64_KEYS, &HEADS_64_QUADS]) => &HEADS_64,
        _ if same(&[&HEADS_80, &HEADS_96, &HEADS_128, &HEADS_128_QUADS]) => &HEADS_256,
        _ => class,
    }
}
