//! The table of variants: which compiled form of a kernel serves which shape on which device, and why.

mod case;
#[cfg(test)]
mod tests;

use crate::classes::{
    CHOOSE_8, CHOOSE_256, Class, FEW_1, FEW_1_NORMED, FEW_1_WIDE, FEW_4, FEW_4_WIDE, FEW_8, FEW_8_NORMED, FEW_8_WIDE, FLAT,
    HALVES_64, HALVES_64_M8, HALVES_128, HEADS_32, HEADS_64, HEADS_64_QUADS, HEADS_80, HEADS_96, HEADS_128, HEADS_256,
    MATRIX_32, MATRIX_32_DEEP, MATRIX_32_M8, MATRIX_64, MATRIX_64_DEEP, MATRIX_64_M8, MATRIX_128, MATRIX_HEADS_64,
    MATRIX_HEADS_64_M8, MATRIX_HEADS_64_QUERIES, MATRIX_HEADS_128, MATRIX_HEADS_128_M8, MATRIX_HEADS_128_QUERIES, PLAIN_64,
    PLAIN_128, QUADS_64, QUADS_128, ROW_8, ROW_128, ROWS_32, SPLIT_1, SPLIT_8, TILE_32, TILE_64, TILE_128, TILE_128X64,
};
use crate::storage::{DeviceClass, MatrixSize, Storage, Tier};
use crate::variant::Variant;
use case::{BUSY, MatrixTile, SHORTEST_SPLIT};
pub(crate) use case::{Case, Choice, Operation};

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

/// From how many rows on a CPU adapter takes eight at once: that takes it 3.6 times as long as one.
const SHARED_FROM: usize = 4;

/// Up to how many rows a GPU takes the form for few rows, which reads a weight once for eight of them and finds it in a cache for the
/// others; beyond, tiles read it once for all. A layer then has its norms and what it appends to a cache as dispatches of their own.
const FEW_ROWS: usize = 16;

/// The same of f16 where matrix units take it.
const FEW_ROWS_BESIDE_MATRICES: usize = 8;

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
        |c, _| c.columns >= 128 && (c.invariant || (c.fills_matrix_tiles() && c.soonest_on_matrices() == MatrixTile::M128)),
        "1.6 times as fast on an H100 as the next for 4096³, 1.05 times for 1024×768×3072, where a core has no tile left over",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64_DEEP,
        on_matrices::<16, 22_528>,
        |c, _| {
            c.columns >= 64 && (c.invariant || (c.fills_matrix_tiles() && c.soonest_on_matrices() == MatrixTile::M64Deep))
        },
        "four times as many tiles, where larger ones would leave cores idle",
    ),
    matrix(
        Operation::Linear,
        "linear_matrix",
        &MATRIX_64,
        on_matrices::<16, 14_336>,
        |c, _| c.columns >= 64 && (c.invariant || c.fills_matrix_tiles()),
        "short sums, of which a core makes three tiles at once; and what fits the least workgroup memory that there is",
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
        "f32 on matrix units, for who asks for them: 1.15 times as long as plain f32 on an H100, for 4096³",
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
        |c, d| !d.cpu && !c.invariant && c.tiles(128, 64) >= BUSY * 3 / 4 && c.larger_tiles_are_sooner(),
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
        |c, d| c.columns.max(c.depth) <= 64 && on_matrices::<16, 14_336>(c, d),
        MANY_QUERIES,
        "fewer queries, or less workgroup memory",
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
