//! What tensors are stored as.

use super::Builder;
use crate::error::{Error, Result};
use crate::program::Tensor;
use crate::storage::Storage;
use crate::tensor::Element;

impl Builder {
    /// Stores weights, and whatever layers put between their dispatches, as `element`: [`Element::F32`], the default, or
    /// [`Element::F16`], which halves memory and its traffic and still sums in f32. Inputs and outputs of the caller's have the
    /// element that they are named with; the tensors of one kernel agree.
    ///
    /// # Errors
    /// [`Error::Option`] for an element that is no float, or a builder that has tensors already.
    pub fn with_storage(mut self, element: Element) -> Result<Self> {
        if !matches!(element, Element::F32 | Element::F16) {
            return Err(Error::option("storage", "f32 or f16", element.name()));
        }
        self.expect_empty("storage")?;
        self.storage = element;
        if self.weights.block_bits().is_none() {
            self.weights = element;
        }
        Ok(self)
    }

    /// Stores the weights of projections as `element`: in [`blocks`](crate::spec::blocks) of integers ([`Element::Int8`], [`Element::Int4`]), or
    /// as all else. Biases, norms, tables and what projects to a vocabulary stay as they are.
    ///
    /// Up to 16 rows read blocks as they are. For more a weight is unpacked into scratch first, each time, as large as the weight in the
    /// element of the rows, or as a binding; in f16 what it stands for is rounded once more. With
    /// [`Options::batch_invariant`](crate::Options) new rows over a cache always read blocks, and all others always unpack.
    ///
    /// # Errors
    /// [`Error::Option`] for another element, or a builder that has tensors already.
    pub fn with_weights(mut self, element: Element) -> Result<Self> {
        self.expect_empty("weights")?;
        if element != self.storage && element.block_bits().is_none() {
            let expected = format!("{}, as rows are stored, or blocks", self.storage.name());
            return Err(Error::option("weights", expected, element.name()));
        }
        self.weights = element;
        Ok(self)
    }

    fn expect_empty(&self, option: &str) -> Result<()> {
        match self.slots.len() {
            0 => Ok(()),
            tensors => Err(Error::option(option, "a choice before the first tensor", format!("{tensors} tensors"))),
        }
    }

    /// Both, with weights of projections as all else where nothing is said of them.
    pub(crate) fn storing(self, storage: Element, weights: Option<Element>) -> Result<Self> {
        self.with_storage(storage)?.with_weights(weights.unwrap_or(storage))
    }

    /// What weights of projections are stored as.
    #[must_use]
    pub fn weights(&self) -> Element {
        self.weights
    }

    /// What weights and intermediate tensors are stored as.
    #[must_use]
    pub fn storage(&self) -> Element {
        self.storage
    }

    /// Says how many numbers are in a row of a weight in blocks, which the words do not tell; refuses others than before.
    pub(crate) fn set_columns(&mut self, label: &str, weight: Tensor, columns: usize) -> Result<()> {
        let Some(slot) = self.slots.get_mut(weight.slot) else { return Ok(()) };
        let known = *slot.columns.get_or_insert(columns);
        if known == columns {
            return Ok(());
        }
        let name = format!("{} (weight of {label})", slot.name);
        Err(Error::shape(name, format!("rows of {known}"), format!("rows of {columns}")))
    }

    /// The element of a tensor that decides for a whole dispatch: f32 or f16.
    pub(crate) fn float(&self, label: &str, what: &str, tensor: Tensor) -> Result<Element> {
        match self.element(tensor) {
            element @ (Element::F32 | Element::F16) => Ok(element),
            // One of another builder is refused as such, further on.
            _ if tensor.builder != self.id => Ok(Element::F32),
            element => Err(Error::Element {
                tensor: self.part_name(label, what, tensor),
                expected: "f32 or f16",
                found: element.name(),
            }),
        }
    }

    /// How a dispatch stores its floats of `element`, given those tensors and the ones that are f32 in any case.
    pub(crate) fn storage_of(
        &self,
        label: &str,
        element: Element,
        floats: &[Option<Tensor>],
        wides: &[Option<Tensor>],
    ) -> Result<Storage> {
        let mut all = floats.iter().chain(wides).flatten();
        let storage = Storage::of(element, self.kernels.class().f16(), all.all(|t| t.is_in_groups(4)));
        // What stands behind an odd vector is in its last word, and belongs to columns that no output has: vectors are read only.
        let fits = |t: &Tensor| t.is_in_groups(storage.lanes()) || (storage == Storage::Packed && t.is_vector_in_pairs());
        match floats.iter().flatten().find(|t| !fits(t)) {
            Some(&odd) => {
                let name = self.part_name(label, "a tensor", odd);
                Err(Error::shape(name, "even offset, strides and inner size, as f16 is stored in pairs here", odd.layout))
            }
            None => Ok(storage),
        }
    }
}
