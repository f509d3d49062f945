//! What the programs of all models have in common: inputs that they refuse, and where what they write goes.

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::layers::Inputs;
use crate::program::Tensor;
use crate::shape::Layout;
use crate::spec::BatchShape;
use crate::tensor::Element;

/// Refuses inputs that have more than a shape and a storage.
pub(super) fn only_shape(inputs: &Inputs) -> Result<BatchShape> {
    if inputs.mask.is_some() || inputs.cross_mask.is_some() || inputs.attention_weights {
        return Err(Error::option("inputs", "a shape and a storage alone", "masks or weights"));
    }
    Ok(inputs.shape)
}

/// Where rows are: an output of this name, or scratch.
pub(super) fn hidden(b: &mut Builder, output: Option<String>, sizes: [usize; 2]) -> Result<Tensor> {
    let layout = Layout::contiguous(&sizes)?;
    match output {
        Some(name) => b.output(&name, b.storage(), layout),
        None => b.scratch("hidden", b.storage(), layout),
    }
}

/// Where attention weights (B, NH, T, S) go, if anywhere.
pub(super) fn attention(b: &mut Builder, output: Option<String>, sizes: [usize; 4]) -> Result<Option<Tensor>> {
    match output {
        Some(name) => b.output(&name, Element::F32, Layout::contiguous(&sizes)?).map(Some),
        None => Ok(None),
    }
}
