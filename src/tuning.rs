//! The table of variants: which compiled form of a kernel serves which shape on which device, and why.

mod attention;
mod case;
mod few;
mod linear;
mod row;
mod rows;
#[cfg(test)]
mod tests;

use crate::classes::FLAT;
use crate::storage::{DeviceClass, Tier};
use crate::variant::Variant;
pub(crate) use case::{Case, Choice, Operation};
pub(crate) use row::FEW_ROWS;
use row::Row;

/// Read from above, on a device that has what a row's tier needs: the first row of an operation that fits and is pinned, else the first
/// that fits and is best.
fn table() -> impl Iterator<Item = &'static Row> {
    [linear::ROWS, few::ROWS, attention::ROWS, rows::ROWS].into_iter().flatten()
}

/// Every choice that can run a case, in the table's order; those of rows that need more than they have to fit come more than once.
pub(crate) fn fitting<'a>(case: &'a Case, device: &'a DeviceClass) -> impl Iterator<Item = Choice> + 'a {
    candidates(case, device).map(|row| row.choice(case))
}

fn candidates<'a>(case: &'a Case, device: &'a DeviceClass) -> impl Iterator<Item = &'static Row> + 'a {
    table().filter(|row| {
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
    let row = candidates(case, device).find(|row| (row.best)(case, device));
    // The last row of every operation is for anything, but of those that need matrix units: who asks for one looks at the tier.
    row.map_or(Choice { kernel: case.kernel, class: &FLAT, tier: Tier::Core }, |row| row.choice(case))
}

/// Whether some row of an operation has this kernel (its own, or that of the case for all), class and tier.
pub(crate) fn has_row(operation: Operation, [asked, kernel, class]: [&str; 3], tier: Tier) -> bool {
    let same = |row: &Row| if row.kernel.is_empty() { asked == kernel } else { row.kernel == kernel };
    table().any(|row| (row.operation, row.class.name, row.tier) == (operation, class, tier) && same(row))
}
