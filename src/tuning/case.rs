//! What is asked of the table, and what it answers.

use crate::classes::Class;
use crate::storage::{Storage, Tier};

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
    /// `linear_blocks`, for few rows.
    LinearBlocks,
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

/// What the table answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The kernel's name.
    pub(crate) kernel: &'static str,
    pub(crate) class: &'static Class,
    pub(crate) tier: Tier,
}

/// Multiprocessors of an H100, the largest GPU that the table was measured on.
const CORES: usize = 132;

/// Workgroups that keep a large GPU busy: two for each core of an H100, more than any smaller one needs.
pub(super) const BUSY: usize = 2 * CORES;

/// A tile of `linear_matrix` for many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatrixTile {
    M128,
    M64Deep,
    M64,
}

/// The shortest part of k that is worth a workgroup of its own.
pub(super) const SHORTEST_SPLIT: usize = 128;

impl Case {
    /// Whether neither columns nor their alignment may decide: a batch changes both.
    pub(super) fn ragged(&self) -> bool {
        self.invariant && self.ragged_columns
    }

    /// Tiles of `m` × `n` that cover the output.
    pub(super) fn tiles(&self, m: usize, n: usize) -> usize {
        self.rows.div_ceil(m).saturating_mul(self.columns.div_ceil(n))
    }

    /// Whether there are tiles of 64×64 for every core of a large GPU, more than half full.
    pub(super) fn fills_matrix_tiles(&self) -> bool {
        self.rows > 32 && self.tiles(64, 64) >= CORES
    }

    /// Which tile an H100 takes least time with on matrix units. A core makes so many tiles at once, each such round has a beginning and
    /// an end that cost more the larger a tile is, and the last round, which may be nearly empty, takes as long as a full one. The
    /// times are fitted to eight shapes without an activation, which they meet within a tenth.
    pub(super) fn soonest_on_matrices(&self) -> MatrixTile {
        [
            (MatrixTile::M128, 128, 2, 11_600, 29),
            (MatrixTile::M64Deep, 64, 2, 2_600, 13),
            (MatrixTile::M64, 64, 3, 1_800, 23),
        ]
        .into_iter()
        .filter(|&(_, size, ..)| size <= self.columns)
        .min_by_key(|&(_, size, each, start, step)| {
            let round = self.depth.saturating_mul(step).saturating_add(start);
            self.tiles(size, size).div_ceil(CORES * each).saturating_mul(round)
        })
        .map_or(MatrixTile::M64, |(tile, ..)| tile)
    }

    /// Whether an H100 takes less time for an f32 product in tiles of 128×128 than of 128×64: by how long a core takes for one, two, ...
    /// of them at once, of 768×128×128 and 768×128×64 products, in µs.
    pub(super) fn larger_tiles_are_sooner(&self) -> bool {
        let time = |tiles: usize, times: &[usize]| {
            let each = tiles.div_ceil(CORES);
            let rest = each % times.len();
            each / times.len() * times[times.len() - 1] + if rest > 0 { times[rest - 1] } else { 0 }
        };
        time(self.tiles(128, 128), &[100, 156]) < time(self.tiles(128, 64), &[60, 100, 135])
    }

    /// Whether the rows decide, and are at most `rows`.
    pub(super) fn has_few(&self, rows: usize) -> bool {
        !self.invariant && self.rows <= rows
    }

    /// Whether any number of rows is taken as few are: a text's bits must not depend on the pieces that it comes in.
    pub(super) fn in_steps(&self) -> bool {
        self.invariant && self.cached
    }

    /// Whether the form for few rows is due: there are at most `rows`, or any number must be taken so.
    pub(super) fn takes_few(&self, rows: usize) -> bool {
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
