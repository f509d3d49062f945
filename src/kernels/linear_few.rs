//! `linear_few`: the form of `linear` for one to a few rows. Parameters, bindings and options are those of `linear`.

use super::linear::{BINDINGS, COMMON, Params};
use crate::variant::{ACTIVATE, Kernel, wgsl};

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear_few",
    shared: &[&ACTIVATE, &COMMON],
    parts: &[],
    source: wgsl!("linear_few.wgsl"),
    bindings: BINDINGS,
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};
