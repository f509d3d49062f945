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

/// Workgroups that keep a large GPU busy: two for each of the 132 multiprocessors of an H100, more than any smaller one needs.
pub(super) const BUSY: usize = 264;

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
