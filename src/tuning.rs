//! The table of variants: which compiled form of a kernel serves which shape on which device, and why.

use crate::classes::{
    CHOOSE_8, CHOOSE_256, Class, FEW_1, FEW_1_NORMED, FEW_1_WIDE, FEW_4, FEW_4_WIDE, FEW_8, FEW_8_NORMED, FEW_8_WIDE, FLAT,
    HALVES_64, HALVES_64_M8, HALVES_128, HEADS_32, HEADS_64, HEADS_64_QUADS, HEADS_80, HEADS_96, HEADS_128, HEADS_256,
    MATRIX_32, MATRIX_32_DEEP, MATRIX_32_M8, MATRIX_64, MATRIX_64_M8, MATRIX_128, MATRIX_HEADS_64, MATRIX_HEADS_64_M8,
    MATRIX_HEADS_64_QUERIES, MATRIX_HEADS_128, MATRIX_HEADS_128_M8, MATRIX_HEADS_128_QUERIES, PLAIN_64, PLAIN_128, QUADS_64,
    QUADS_128, ROW_8, ROW_128, ROWS_32, SPLIT_1, SPLIT_8, TILE_32, TILE_64, TILE_128, TILE_128X64,
};
use crate::storage::{DeviceClass, MatrixSize, Storage, Tier};
use crate::variant::Variant;

/// What a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub(crate) enum Operation {
    Linear,
    /// Many rows of f16 into f32: on matrix units alone.
    LinearWide,
    /// `linear_few` without a norm, as if there were few rows whatever their number: the classes of a device sum in one order.
    LinearFew,
    /// The same of `linear_few` with a norm, `linear_append` and `linear_logits`.
    LinearNormed,
    /// Columns are those of a value head, the depth is a key head's.
    Attention,
    AttentionWeights,
    AttentionScores,
    AttentionValues,
    /// `masked_softmax`, `layer_norm` and `argmax`: reductions over rows.
    Rows,
    /// `choose` and `beam_candidates`: the next tokens of rows of logits.
    Choose,
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
    /// Whether rows are new ones of texts in a cache: with `invariant` one row and many must sum in one order, that of few rows.
    pub(crate) cached: bool,
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

/// From how many rows on a CPU adapter takes eight at once: that takes it 3.6 times as long as one.
const SHARED_FROM: usize = 4;

/// Up to how many rows a GPU takes the form for few rows, which reads a weight once for eight of them and finds it in a cache for the
/// others; beyond, tiles read it once for all. A layer then has its norms and what it appends to a cache as dispatches of their own.
const FEW_ROWS: usize = 16;

/// The same of f16 where matrix units take it.
const FEW_ROWS_BESIDE_MATRICES: usize = 8;

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

    /// Whether any number of rows is taken as few are: a text's bits must not depend on the pieces that it comes in.
    fn in_steps(&self) -> bool {
        self.invariant && self.cached
    }

    /// Whether the form for few rows is due: there are at most `rows`, or any number must be taken so.
    fn takes_few(&self, rows: usize) -> bool {
        self.in_steps() || self.has_few(rows)
    }

    /// How long the parts of k are, and how many, for a kernel of `class` that shares k out: as many as keep a device busy, and at
    /// most `most`. Lengths are a multiple of the tile's, and the same for every run of a shape.
    pub(crate) fn split(&self, class: &Class, most: usize) -> (usize, usize) {
        let tiles = self.tiles(class.get("TILE_M") as usize, class.get("TILE_N") as usize).max(1);
        let parts = (2 * BUSY).div_ceil(tiles).min(self.depth / SHORTEST_SPLIT).min(most).max(1);
        let length = self.depth.div_ceil(parts).next_multiple_of(class.get("TILE_K").max(32) as usize);
        (length, self.depth.div_ceil(length))
    }
}

const FOURS: fn(&Case, &DeviceClass) -> bool = |c, _| c.storage.in_fours();
const SINGLES: fn(&Case, &DeviceClass) -> bool = |c, _| !c.storage.in_fours();
/// Those in fours that the subgroup tier comes in: f16 as the type, not in pairs.
const TYPED_FOURS: fn(&Case, &DeviceClass) -> bool = |c, _| Storage::TYPED_IN_FOURS.contains(&c.storage);

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

/// A row of the subgroup tier.
const fn subgroups(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: fn(&Case, &DeviceClass) -> bool,
    best: fn(&Case, &DeviceClass) -> bool,
    why: &'static str,
) -> Row {
    Row { tier: Tier::Subgroups, ..row(operation, kernel, class, fits, best, why) }
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
    Row { tier: Tier::Matrix, ..row(operation, kernel, class, fits, best, why) }
}

/// Enough queries that a tile of 64 of them is not mostly empty.
const MANY_QUERIES: fn(&Case, &DeviceClass) -> bool = |c, _| c.invariant || c.rows > 16;

/// Read from above, on a device that has what a row's tier needs: the first row that fits and is pinned, else the first that fits
/// and is best.
static TABLE: &[Row] = &[
    row(
        Operation::Linear,
        "linear_few",
        &FEW_1,
        FOURS,
        |c, d| d.cpu && c.takes_few(SHARED_FROM - 1),
        "up to three rows on a CPU: nothing is left to add up, and eight rows at once take as long as three and a half",
    ),
    subgroups(
        Operation::Linear,
        "linear_few",
        &FEW_1_WIDE,
        TYPED_FOURS,
        |c, d| !d.cpu && c.takes_few(1),
        "one row on a GPU: memory is the limit, so whole subgroups read one row, and many of them",
    ),
    row(Operation::Linear, "linear_few", &FEW_1_WIDE, FOURS, |c, d| !d.cpu && c.takes_few(1), "the same without subgroups"),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_128,
        on_matrices::<16, 24_576>,
        |c, _| c.columns >= 128 && (c.invariant || (c.rows > 64 && c.tiles(128, 128) >= BUSY / 2)),
        "a tile for every core of an H100: 1.8 times as fast there as the next for 4096³, 1.06 times for 1024×768×3072",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64,
        on_matrices::<16, 14_336>,
        |c, _| c.columns >= 64 && (c.invariant || (c.rows > 32 && c.tiles(64, 64) >= BUSY / 2)),
        "four times as many tiles, where larger ones would leave cores idle",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix_split",
        &MATRIX_32,
        on_matrices::<16, 13_312>,
        |c, _| c.rows > FEW_ROWS_BESIDE_MATRICES && !c.invariant && c.depth >= 2048 && c.tiles(32, 32) <= BUSY / 4,
        "few tiles and a long sum: parts of k are shared out, and their sums added by linear_sum",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_32_DEEP,
        on_matrices::<16, 37_888>,
        |c, _| c.rows > FEW_ROWS_BESIDE_MATRICES && !c.invariant && c.depth >= 512 && c.tiles(32, 32) <= BUSY / 2,
        "hardly a tile a core: each has more of k under way at once, 0.68 of the next one's time for 32×768×2304 on an H100",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_32,
        on_matrices::<16, 13_312>,
        |c, _| c.rows > FEW_ROWS_BESIDE_MATRICES || c.invariant,
        "few rows or columns: less of a tile is empty, more workgroups stream the weight",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64_M8,
        on_matrices::<8, 11_264>,
        |c, _| c.columns >= 64 && (c.invariant || c.rows > 32),
        "the same on matrices of the smaller size",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_32_M8,
        on_matrices::<8, 14_848>,
        |c, _| c.rows > FEW_ROWS_BESIDE_MATRICES || c.invariant,
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
        "four times as many tiles, where larger ones would leave cores idle; six waves by workgroup memory",
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
        |c, d| !d.cpu && c.takes_few(FEW_ROWS),
        "few rows on a GPU: memory is the limit still, and the second eight rows find the weights in the cache",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_8,
        FOURS,
        |c, d| d.cpu && (c.columns <= 32 || c.takes_few(40)),
        "few rows or columns on a CPU: no tile is left empty, and none goes through workgroup memory",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_4,
        SINGLES,
        |c, d| d.cpu && (c.columns <= 32 || c.takes_few(40)),
        "the same for what is not in groups of four, summed in the same order",
    ),
    row(
        Operation::Linear,
        "linear_few",
        &FEW_4_WIDE,
        SINGLES,
        |c, _| c.columns <= 32 || c.takes_few(FEW_ROWS),
        "the same for any storage",
    ),
    row(Operation::Linear, "linear_few", &FEW_8_WIDE, FOURS, |c, _| c.columns <= 32, "few columns: no tile is left empty"),
    subgroups(
        Operation::Linear,
        "linear",
        &QUADS_128,
        TYPED_FOURS,
        |c, d| d.cpu && !c.invariant && 40 * c.tiles(128, 128) <= 11 * c.tiles(64, 64),
        "a CPU, where no more of the larger tile is empty, or hardly: rows reach a vector by broadcasts, 1.5 times as fast",
    ),
    subgroups(Operation::Linear, "linear", &QUADS_64, TYPED_FOURS, |_, d| d.cpu, "the same in smaller tiles"),
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
        FOURS,
        |c, d| !d.cpu && !c.invariant && c.tiles(128, 128) >= BUSY,
        "large products that keep a large GPU busy at two workgroups a core",
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
        SINGLES,
        |_, _| false,
        "never chosen: stands in for the other tiles where views are not aligned",
    ),
    matrix(
        Operation::LinearWide,
        "linear_wide",
        &MATRIX_64,
        on_matrices::<16, 14_336>,
        |c, _| c.invariant || c.rows > 32,
        "a vocabulary has columns enough for larger tiles",
    ),
    matrix(
        Operation::LinearWide,
        "linear_wide",
        &MATRIX_32,
        on_matrices::<16, 13_312>,
        ANY,
        "up to 32 rows: no half of a tile is empty; a fifth of the time of the form for few rows on an H100",
    ),
    row(
        Operation::LinearFew,
        "",
        &FEW_1,
        FOURS,
        |c, d| d.cpu && c.rows < SHARED_FROM,
        "up to three rows on a CPU: nothing is left to add up, and eight rows at once take as long as three and a half",
    ),
    row(Operation::LinearFew, "", &FEW_8, FOURS, |_, d| d.cpu, "more rows on a CPU: eight share every read of a weight"),
    subgroups(
        Operation::LinearFew,
        "",
        &FEW_1_WIDE,
        TYPED_FOURS,
        |c, _| c.rows == 1,
        "one row on a GPU: memory is the limit",
    ),
    row(Operation::LinearFew, "", &FEW_1_WIDE, FOURS, |c, _| c.rows == 1, "the same without subgroups"),
    row(Operation::LinearFew, "", &FEW_8_WIDE, FOURS, ANY, "more rows on a GPU: eight share every read of a weight"),
    row(Operation::LinearFew, "", &FEW_4, SINGLES, |_, d| d.cpu, "what is not in groups of four, on a CPU"),
    row(Operation::LinearFew, "", &FEW_4_WIDE, SINGLES, ANY, "any storage that is not in groups of four"),
    row(
        Operation::LinearNormed,
        "",
        &FEW_1_NORMED,
        FOURS,
        |c, d| d.cpu && c.rows < SHARED_FROM,
        "up to three rows on a CPU: normed once for all columns of a workgroup",
    ),
    row(
        Operation::LinearNormed,
        "",
        &FEW_8_NORMED,
        FOURS,
        |_, d| d.cpu,
        "more rows on a CPU: eight share every read of a weight",
    ),
    subgroups(
        Operation::LinearNormed,
        "",
        &FEW_1_WIDE,
        TYPED_FOURS,
        |c, _| c.rows == 1,
        "one row on a GPU: memory is the limit",
    ),
    row(Operation::LinearNormed, "", &FEW_1_WIDE, FOURS, |c, _| c.rows == 1, "the same without subgroups"),
    row(Operation::LinearNormed, "", &FEW_8_WIDE, FOURS, ANY, "more rows on a GPU: eight share every read of a weight"),
    row(Operation::LinearNormed, "", &FEW_4, SINGLES, |_, d| d.cpu, "what is not in groups of four, on a CPU"),
    row(Operation::LinearNormed, "", &FEW_4_WIDE, SINGLES, ANY, "any storage that is not in groups of four"),
    row(
        Operation::Attention,
        "attention_split",
        &SPLIT_1,
        |c, _| Storage::TYPED_IN_FOURS.contains(&c.storage) && c.columns.max(c.depth) <= 256,
        |c, _| c.has_few(1),
        "one query: a tile of 64 would be empty but for one row, and one head would keep one core busy",
    ),
    row(
        Operation::Attention,
        "attention_split",
        &SPLIT_8,
        |c, _| c.columns.max(c.depth) <= 256,
        |c, _| c.takes_few(8),
        "few queries: all cores are busy, and each key is read once; six waves by workgroup memory, where sums of all threads meet",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_64_QUERIES,
        |c, d| c.columns.max(c.depth) <= 64 && on_matrices::<16, 24_576>(c, d),
        |c, _| c.invariant || c.rows > 64,
        "both products on matrix units; eight subgroups share every key: 2.6 times as fast on an H100 as four",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_128_QUERIES,
        |c, d| c.columns.max(c.depth) <= 128 && on_matrices::<16, 49_152>(c, d),
        |c, _| c.invariant || c.rows > 64,
        "the same for wider heads: 1.5 times as fast on an H100 as four subgroups with half the keys a tile",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_64,
        |c, d| c.columns.max(c.depth) <= 64 && on_matrices::<16, 24_840>(c, d),
        MANY_QUERIES,
        "fewer queries, or less workgroup memory; six waves on RDNA3",
    ),
    matrix(
        Operation::Attention,
        "attention_matrix",
        &MATRIX_HEADS_128,
        |c, d| c.columns.max(c.depth) <= 128 && on_matrices::<16, 18_184>(c, d),
        MANY_QUERIES,
        "the same for wider heads",
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
    row(
        Operation::Attention,
        "attention",
        &HEADS_32,
        |c, _| c.columns <= 32 && c.storage == Storage::F32x4,
        ANY,
        "the narrowest class that holds the value head",
    ),
    subgroups(
        Operation::Attention,
        "attention",
        &HEADS_64_QUADS,
        |c, d| c.columns <= 64 && Storage::TYPED_IN_FOURS.contains(&c.storage) && d.workgroup_bytes >= 24_576,
        |_, d| d.cpu,
        "a CPU: queries and weights reach a vector by broadcasts, and a tile of keys has a third of the barriers",
    ),
    row(
        Operation::Attention,
        "attention",
        &HEADS_64,
        |c, _| c.columns <= 64,
        ANY,
        "eight by eight values a thread, the most multiply-adds a load",
    ),
    row(
        Operation::Attention,
        "attention",
        &HEADS_80,
        |c, _| c.columns <= 80 && c.storage == Storage::F32x4,
        |_, d| !d.cpu,
        "the narrowest class that holds the value head; a CPU is faster with the eight rows a thread of the next one",
    ),
    row(
        Operation::Attention,
        "attention",
        &HEADS_96,
        |c, _| c.columns <= 96 && c.storage == Storage::F32x4,
        ANY,
        "the narrowest class that holds the value head",
    ),
    row(
        Operation::Attention,
        "attention",
        &HEADS_128,
        |c, _| c.columns <= 128 && c.storage.in_fours(),
        ANY,
        "the narrowest class that holds the value head",
    ),
    row(Operation::Attention, "attention", &HEADS_256, |c, _| c.columns <= 256, ANY, "the widest value head that there is"),
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
    subgroups(
        Operation::Rows,
        "",
        &ROW_8,
        |c, _| c.storage == Storage::F32x4,
        |c, d| d.cpu && !c.ragged(),
        "a CPU adapter: a row is one vector, and shuffles suspend nothing",
    ),
    row(
        Operation::Rows,
        "",
        &ROW_8,
        |c, _| Storage::WIDE.contains(&c.storage),
        |_, d| d.cpu,
        "a CPU adapter: a row is one vector, and barriers of one vector suspend nothing",
    ),
    subgroups(
        Operation::Rows,
        "",
        &ROW_128,
        |c, _| c.storage.in_fours(),
        |c, _| c.columns > 1024 && !c.ragged(),
        "long rows: 4096 columns in registers, and few barriers",
    ),
    row(
        Operation::Rows,
        "",
        &ROW_128,
        |c, _| c.storage.in_fours(),
        |c, _| c.columns > 1024 && !c.ragged(),
        "long rows: 4096 columns in registers",
    ),
    subgroups(
        Operation::Rows,
        "",
        &ROWS_32,
        |c, _| c.storage.in_fours(),
        |c, _| !c.ragged(),
        "short rows: one subgroup each on most GPUs, and no barrier",
    ),
    row(
        Operation::Rows,
        "",
        &ROWS_32,
        ANY,
        ANY,
        "short rows in registers; rows that a batch makes longer, and unaligned ones of any length",
    ),
    row(
        Operation::Choose,
        "",
        &CHOOSE_8,
        ANY,
        |_, d| d.cpu,
        "a CPU adapter: a row is one vector, and barriers of one vector suspend nothing",
    ),
    row(
        Operation::Choose,
        "",
        &CHOOSE_256,
        ANY,
        ANY,
        "one workgroup a row, as a row's passes follow each other: as many threads as any device has",
    ),
];

impl Row {
    fn choice(&self, case: &Case) -> Choice {
        let kernel = if self.kernel.is_empty() { case.kernel } else { self.kernel };
        Choice { kernel, class: self.class, tier: self.tier }
    }
}

/// Every choice that can run a case, in the table's order; those of rows that need more than they have to fit come more than once.
pub(crate) fn fitting<'a>(case: &'a Case, device: &'a DeviceClass) -> impl Iterator<Item = Choice> + 'a {
    rows(case, device).map(|row| row.choice(case))
}

fn rows<'a>(case: &'a Case, device: &'a DeviceClass) -> impl Iterator<Item = &'static Row> + 'a {
    TABLE.iter().filter(|row| {
        let needed = row.tier.features(case.storage);
        let kernel = row.kernel.is_empty() || case.kernel.is_empty() || row.kernel == case.kernel;
        row.operation == case.operation && kernel && device.features.contains(needed) && (row.fits)(case, device)
    })
}

/// The first choice that can run a case and is one of `pinned`.
pub(crate) fn pinned(case: &Case, device: &DeviceClass, pinned: &[Variant]) -> Option<Choice> {
    fitting(case, device).find(|choice| {
        let &Choice { kernel, class, tier } = choice;
        pinned.iter().any(|p| (p.kernel.name, p.class.name, p.tier) == (kernel, class.name, tier))
    })
}

/// The table's choice.
pub(crate) fn best(case: &Case, device: &DeviceClass) -> Choice {
    let row = rows(case, device).find(|row| (row.best)(case, device));
    // The last row of every operation is for anything, but of those that need matrix units: who asks for one looks at the tier.
    row.map_or(Choice { kernel: case.kernel, class: &FLAT, tier: Tier::Core }, |row| row.choice(case))
}

/// Whether some row of an operation has this kernel (its own, or that of the case for all), class and tier.
pub(crate) fn has_row(operation: Operation, [asked, kernel, class]: [&str; 3], tier: Tier) -> bool {
    let same = |row: &Row| if row.kernel.is_empty() { asked == kernel } else { row.kernel == kernel };
    TABLE.iter().any(|row| (row.operation, row.class.name, row.tier) == (operation, class, tier) && same(row))
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

    fn case(row: &Row, storage: Storage) -> Case {
        Case {
            operation: row.operation,
            kernel: row.kernel,
            storage,
            rows: 64,
            columns: 64,
            depth: 64,
            ragged_columns: false,
            invariant: false,
            cached: false,
        }
    }

    /// Rule: what a row fits there is a variant for. A pin or a measurement may choose it whatever is best.
    #[test]
    fn every_row_fits_only_storages_that_its_variant_comes_in() {
        let all = crate::kernels::variants();
        let mut count = 0;
        for row in TABLE.iter().filter(|row| !row.kernel.is_empty()) {
            for matrix in [MatrixSize::M8, MatrixSize::M16] {
                for &storage in Storage::ALL {
                    let device = DeviceClass {
                        cpu: false,
                        features: wgpu::Features::all(),
                        matrix: Some(matrix),
                        f32_by_matrices: true,
                        workgroup_bytes: 1 << 16,
                        invocations: 256,
                    };
                    if !(row.fits)(&case(row, storage), &device) {
                        continue;
                    }
                    // `linear_few` takes f16 in pairs on CPU adapters.
                    let pairs = storage == Storage::F16x4 && row.class.find("K_THREADS") == Some(1);
                    let stored = if pairs { Storage::Packedx4 } else { storage };
                    let there = |v: &&Variant| {
                        (v.kernel.name, v.class.name, v.storage, v.tier) == (row.kernel, row.class.name, stored, row.tier)
                    };
                    assert!(all.iter().any(|v| there(&v)), "{} {} {}", row.kernel, stored.name(), row.class.name);
                    count += 1;
                }
            }
        }
        assert!(count > 0);
    }

    /// Rule: a shader that declares more workgroup memory than every device has fits only devices that have it.
    #[test]
    fn rows_know_their_workgroup_memory() {
        const CORE_BYTES: u32 = 16_384;
        for variant in crate::kernels::variants() {
            let module = naga::front::wgsl::parse_str(&variant.source()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
            let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size).sum();
            if bytes <= CORE_BYTES {
                continue;
            }
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
                let case = case(row, variant.storage);
                assert!(!(row.fits)(&case, &device(bytes - 1)), "{variant:?} needs {bytes} bytes");
                assert!((row.fits)(&case, &device(49_152)), "{variant:?} fits no device");
            }
        }
    }

    /// Devices of each kind: CPU adapters and GPUs, with and without subgroups and matrices, with little and much workgroup memory.
    fn devices() -> Vec<DeviceClass> {
        let matrix = Tier::Matrix.features(Storage::F16);
        let mut all = Vec::new();
        for features in [wgpu::Features::empty(), Tier::Subgroups.features(Storage::F16), matrix] {
            for size in [None, Some(MatrixSize::M16), Some(MatrixSize::M8)] {
                if size.is_some() != features.contains(matrix) {
                    continue;
                }
                for (cpu, workgroup_bytes) in [(true, 32_768), (false, 16_384), (false, 49_152)] {
                    let f32_by_matrices = size.is_some();
                    let invocations = 256;
                    all.push(DeviceClass { cpu, features, matrix: size, f32_by_matrices, workgroup_bytes, invocations });
                }
            }
        }
        all
    }

    const OPERATIONS: [(Operation, &str); 11] = [
        (Operation::Linear, ""),
        (Operation::LinearWide, "linear_wide"),
        (Operation::LinearFew, "linear_few"),
        (Operation::LinearNormed, "linear_append"),
        (Operation::Attention, ""),
        (Operation::AttentionWeights, "attention_weights"),
        (Operation::AttentionScores, "attention_scores"),
        (Operation::AttentionValues, "attention_values"),
        (Operation::Rows, "layer_norm"),
        (Operation::Rows, "masked_softmax"),
        (Operation::Choose, "choose"),
    ];

    /// Rule: batch invariant, nothing is chosen by the number of rows; of the forms for few rows all sum in one order.
    #[test]
    fn rows_decide_nothing_where_batches_must_not() {
        for device in devices() {
            for (operation, kernel) in OPERATIONS {
                for (storage, cached) in Storage::ALL.iter().flat_map(|&s| [(s, false), (s, true)]) {
                    for (columns, depth) in [(8, 64), (64, 64), (96, 128), (768, 768), (3072, 768), (50_257, 4096)] {
                        let chosen = |rows| {
                            let (ragged_columns, invariant) = (false, true);
                            let case =
                                Case { operation, kernel, storage, rows, columns, depth, ragged_columns, invariant, cached };
                            let Choice { kernel, class, tier } = best(&case, &device);
                            match class.find("K_THREADS") {
                                Some(threads) => (kernel, threads.to_string(), None),
                                None => (kernel, class.name.to_owned(), Some(tier)),
                            }
                        };
                        let one = chosen(1);
                        for rows in [2, 3, 4, 8, 9, 16, 17, 32, 33, 40, 41, 64, 65, 128, 1000, 4096] {
                            assert_eq!(chosen(rows), one, "{operation:?} {storage:?} {columns} {depth} {rows} {device:?}");
                        }
                    }
                }
            }
        }
    }

    /// Rule: few rows take the form that reads each weight once and has norms and caches in it, whatever else a GPU has.
    #[test]
    fn few_rows_are_few_beside_matrices() {
        for device in devices().into_iter().filter(|device| !device.cpu && device.f16()) {
            for rows in 1..=FEW_ROWS_BESIDE_MATRICES {
                for columns in [768, 3072, 12_288, 16_384, 50_257, 250_000] {
                    let (operation, storage, depth) = (Operation::Linear, Storage::F16x4, 4096);
                    let (ragged_columns, invariant, cached, kernel) = (false, false, true, "");
                    let case = Case { operation, kernel, storage, rows, columns, depth, ragged_columns, invariant, cached };
                    assert_eq!(best(&case, &device).kernel, "linear_few", "{rows} × {columns}, {device:?}");
                }
            }
        }
    }
}
