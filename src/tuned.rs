//! Tables of what was measured on a device: which of the forms that can run a case was the fastest there.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result};
use crate::storage::{DeviceClass, MatrixSize, Storage, Tier};
use crate::tuning::{self, Case, Choice, Operation};

/// Which compiled forms were the fastest on one device, for the exact shapes that were measured there: what
/// [`Gpu::tune`](crate::convenience::Gpu::tune) makes and [`Options::with_tuned`](crate::Options::with_tuned) takes.
///
/// With the feature `serde` it can be saved and read again. It belongs to the adapter, its driver and backend, to what of the
/// device is enabled, and to this version of the crate: [`Kernels::new`](crate::Kernels::new) refuses it anywhere else, so that an
/// engine knows when to measure anew. An entry for a form that its shape does not allow is passed over, as a pinned variant is.
///
/// A table never breaks a promise. Batch invariant kernels take nothing but what was measured for such ones, by entries in which the
/// number of rows does not decide; and [`LinearFew`](crate::kernels::LinearFew) keeps to forms that sum in one order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tuned {
    device: String,
    entries: Vec<Entry>,
}

/// The fastest form of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Entry {
    pub(crate) case: Key,
    pub(crate) form: Form,
    /// Of one launch, in the median.
    pub(crate) nanoseconds: u64,
    /// The same in the form that the built-in table has.
    pub(crate) built_in_nanoseconds: u64,
}

/// What decides in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Key {
    operation: Operation,
    kernel: Cow<'static, str>,
    storage: Storage,
    /// `None` where they must not decide.
    rows: Option<usize>,
    columns: usize,
    depth: usize,
    cached: bool,
    batch_invariant: bool,
}

impl Key {
    /// `None` for a case whose columns a batch changes, where it must not.
    pub(crate) fn of(case: &Case, batch_invariant: bool) -> Option<Self> {
        let &Case { operation, kernel, storage, rows, columns, depth, ragged_columns, cached, .. } = case;
        let rows = (!batch_invariant || sums_in_one_order(operation)).then_some(rows);
        let key = Self { operation, kernel: kernel.into(), storage, rows, columns, depth, cached, batch_invariant };
        (!(batch_invariant && ragged_columns)).then_some(key)
    }
}

/// A choice by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Form {
    pub(crate) kernel: Cow<'static, str>,
    pub(crate) class: Cow<'static, str>,
    pub(crate) tier: Tier,
}

impl From<Choice> for Form {
    fn from(Choice { kernel, class, tier }: Choice) -> Self {
        Self { kernel: kernel.into(), class: class.name.into(), tier }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}{}", self.kernel, self.class, self.tier.suffix()))
    }
}

/// How often a form for few rows may go through all weights or keys to be worth a try: beyond that it is slow enough to be taken for a
/// hang.
const MOST_PASSES: usize = 8;

/// Whether all classes of one width along k sum in one order, so that a row's bits do not depend on how many there are.
fn sums_in_one_order(operation: Operation) -> bool {
    matches!(operation, Operation::LinearFew | Operation::LinearNormed | Operation::LinearBlocks)
}

/// The choices among which a measurement may decide: the table's own first, then every other that can run the case, promises what the
/// table's does, and is not hopeless.
pub(crate) fn alternatives(case: &Case, device: &DeviceClass, batch_invariant: bool) -> Vec<Choice> {
    let best = tuning::best(case, device);
    let may_replace = |choice: &Choice| {
        let width = |c: &Choice| c.class.get("K_THREADS");
        let at_once = ["ROWS", "QUERIES"].into_iter().find_map(|name| choice.class.find(name));
        let promises = match (sums_in_one_order(case.operation), batch_invariant) {
            (true, _) => width(choice) == width(&best),
            // Other kernels split by the number of rows, or are no choice for another number.
            (false, true) => choice.kernel == best.kernel && at_once.is_none(),
            (false, false) => true,
        };
        promises && at_once.is_none_or(|n| case.rows.div_ceil(n as usize) <= MOST_PASSES)
    };
    let mut all = vec![best];
    for choice in tuning::fitting(case, device).filter(may_replace) {
        if !all.iter().any(|&c| Form::from(c) == Form::from(choice)) {
            all.push(choice);
        }
    }
    all
}

impl Tuned {
    /// An empty table for a device.
    pub(crate) fn new(device: &wgpu::Device, class: &DeviceClass) -> Self {
        let wgpu::AdapterInfo { name, driver, driver_info, backend, .. } = device.adapter_info();
        let mut text =
            format!("{name}, {driver} {driver_info}, {backend}, {} bytes of workgroup memory", class.workgroup_bytes);
        for (has, what) in [
            (class.features.contains(wgpu::Features::SUBGROUP), "subgroups"),
            (class.f16(), "f16"),
            (class.matrix == Some(MatrixSize::M16), "matrices of 16"),
            (class.matrix == Some(MatrixSize::M8), "matrices of 8"),
            (class.f32_by_matrices, "f32 by matrices"),
        ] {
            if has {
                text += &format!(", {what}");
            }
        }
        text += concat!(", tileformer ", env!("CARGO_PKG_VERSION"));
        Self { device: text, entries: Vec::new() }
    }

    /// The device that the table is of, with all that must be the same, in words: a name for the place where it is saved.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// How many cases were measured.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Refuses a table of another device than that of `own`, and names that there are not.
    pub(crate) fn check(&self, own: &Self) -> Result<()> {
        if self.device != own.device {
            return Err(Error::option("device of the tuned table", &own.device, &self.device));
        }
        let known = |Entry { case, form, .. }: &&Entry| {
            tuning::has_row(case.operation, [&case.kernel, &form.kernel, &form.class], form.tier)
        };
        match self.entries.iter().find(|entry| !known(entry)) {
            Some(Entry { case, form, .. }) => {
                let expected = format!("a form of {:?}", case.operation);
                Err(Error::option("tuned table", expected, form))
            }
            None => Ok(()),
        }
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.case == *key)
    }

    /// What was measured to be the fastest for a case, where it was and the case allows it.
    pub(crate) fn choice(&self, case: &Case, device: &DeviceClass, batch_invariant: bool) -> Option<Choice> {
        let entry = self.entry(&Key::of(case, batch_invariant)?)?;
        alternatives(case, device, batch_invariant).into_iter().find(|&choice| Form::from(choice) == entry.form)
    }

    /// Whether a case was measured.
    #[cfg(feature = "convenience")]
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.entry(key).is_some()
    }

    /// Adds a case that was not measured yet.
    #[cfg(feature = "convenience")]
    pub(crate) fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}

/// A table: case, form, time of one launch, and that of the built-in form.
impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        writeln!(
            f,
            "{:<20} {:>8} {:>8} {:>8} {:<40} {:>12} {:>12}",
            "case", "rows", "columns", "depth", "form", "ns", "built-in"
        )?;
        for Entry { case, form, nanoseconds, built_in_nanoseconds } in &self.entries {
            let name = format!("{:?}.{}", case.operation, case.storage.name());
            let rows = case.rows.map_or("any".into(), |rows| rows.to_string());
            let Key { columns, depth, .. } = case;
            writeln!(
                f,
                "{name:<20} {rows:>8} {columns:>8} {depth:>8} {form:<40} {nanoseconds:>12} {built_in_nanoseconds:>12}"
            )?;
        }
        Ok(())
    }
}
