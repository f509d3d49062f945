//! A row of the table, and what its conditions are made of.

use super::case::{Case, Choice, Operation};
use crate::classes::Class;
use crate::storage::{DeviceClass, MatrixSize, Storage, Tier};

/// What a row asks of a case and a device.
type Condition = fn(&Case, &DeviceClass) -> bool;

/// One row: where `fits` holds the choice can run, where `best` holds it is taken.
pub(super) struct Row {
    pub(super) operation: Operation,
    /// "" for the case's own kernel.
    pub(super) kernel: &'static str,
    pub(super) class: &'static Class,
    pub(super) tier: Tier,
    pub(super) fits: Condition,
    pub(super) best: Condition,
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) why: &'static str,
}

pub(super) const ANY: Condition = |_, _| true;

/// From how many rows on a CPU adapter takes eight at once: that takes it 3.6 times as long as one.
pub(super) const SHARED_FROM: usize = 4;

/// Up to how many rows a GPU takes the form for few rows, which reads a weight once for eight of them and finds it in a cache for the
/// others; beyond, tiles read it once for all. A layer then has its norms and what it appends to a cache as dispatches of their own.
pub(crate) const FEW_ROWS: usize = 16;

/// The same of f16 where matrix units take it.
pub(super) const FEW_ROWS_BESIDE_MATRICES: usize = 8;

pub(super) const FOURS: Condition = |c, _| c.storage.in_fours();
pub(super) const SINGLES: Condition = |c, _| !c.storage.in_fours();
/// Those in fours that the subgroup tier comes in: f16 as the type, not in pairs.
pub(super) const TYPED_FOURS: Condition = |c, _| Storage::TYPED_IN_FOURS.contains(&c.storage);

/// A row of the core tier.
pub(super) const fn row(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: Condition,
    best: Condition,
    why: &'static str,
) -> Row {
    Row { operation, kernel, class, tier: Tier::Core, fits, best, why }
}

/// A row of the subgroup tier.
pub(super) const fn subgroups(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: Condition,
    best: Condition,
    why: &'static str,
) -> Row {
    Row { tier: Tier::Subgroups, ..row(operation, kernel, class, fits, best, why) }
}

/// Whether matrices of this size serve a case in f16, in so many bytes of workgroup memory.
pub(super) fn on_matrices<const SIZE: u32, const BYTES: u32>(case: &Case, device: &DeviceClass) -> bool {
    has_matrices::<SIZE, BYTES>(device) && [Storage::F16, Storage::F16x4].contains(&case.storage)
}

/// Whether they serve a case in f32, which the caller must have asked for.
pub(super) fn in_halves<const SIZE: u32, const BYTES: u32>(case: &Case, device: &DeviceClass) -> bool {
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
pub(super) const fn matrix(
    operation: Operation,
    kernel: &'static str,
    class: &'static Class,
    fits: Condition,
    best: Condition,
    why: &'static str,
) -> Row {
    Row { tier: Tier::Matrix, ..row(operation, kernel, class, fits, best, why) }
}

/// Enough queries that a tile of 64 of them is not mostly empty.
pub(super) const MANY_QUERIES: Condition = |c, _| c.invariant || c.rows > 16;

impl Row {
    pub(super) fn choice(&self, case: &Case) -> Choice {
        let kernel = if self.kernel.is_empty() { case.kernel } else { self.kernel };
        Choice { kernel, class: self.class, tier: self.tier }
    }
}
