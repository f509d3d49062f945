//! Which tensors of a checkpoint the weights of a program come from.

use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use super::source::{Resolved, Source};
use crate::error::{Error, Result};
use crate::reference::Real;
use crate::reference::layers::Weights;

/// For each weight of a model's programs, by its name there, where it comes from.
///
/// Weights of your own, under names of your own:
///
/// ```no_run
/// # fn f(program: &tileformer::Program, upload: impl Fn(&[u8]) -> wgpu::Buffer) -> tileformer::Result<()> {
/// use tileformer::models::{Checkpoint, Source, WeightMap};
/// use tileformer::{Bindings, Role, TensorView};
///
/// let checkpoint = Checkpoint::open("my-model")?; // config.json, which may be {}, and model.safetensors
/// let mut map = WeightMap::new();
/// for part in ["weight", "bias"] {
///     let stacked = Source::rows(["query", "key", "value"].map(|name| Source::tensor(format!("attention.{name}.{part}"))));
///     map.insert(format!("self_attn.in_proj_{part}"), stacked);
/// }
/// map.insert_pair("self_attn.out_proj", "attention.output").insert_pair("linear1", "up").insert_pair("linear2", "down");
/// map.insert_pair("norm1", "first_norm").insert_pair("norm2", "second_norm");
///
/// // By a queue of your own; `Gpu::upload_checkpoint` does it in pieces.
/// let mut bindings = Bindings::new();
/// for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Weight) {
///     let weight = map.resolve(name, &program.sizes(name).unwrap_or_default(), &checkpoint)?;
///     let mut bytes = Vec::new();
///     weight.convert(element, 0..weight.len_as(element), |_, piece| bytes.extend_from_slice(piece))?;
///     bindings.set(name, TensorView::new(&upload(&bytes), 0, element, *layout)?);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightMap {
    sources: BTreeMap<String, Source>,
}

impl WeightMap {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says where a weight comes from, in the place of what was said before.
    pub fn insert(&mut self, weight: impl Into<String>, source: Source) -> &mut Self {
        self.sources.insert(weight.into(), source);
        self
    }

    /// `PREFIX.weight` and `PREFIX.bias` from the checkpoint's `NAME.weight` and `NAME.bias`.
    pub fn insert_pair(&mut self, prefix: &str, name: &str) -> &mut Self {
        for part in ["weight", "bias"] {
            self.insert(format!("{prefix}.{part}"), Source::tensor(format!("{name}.{part}")));
        }
        self
    }

    /// Where a weight comes from.
    #[must_use]
    pub fn get(&self, weight: &str) -> Option<&Source> {
        self.sources.get(weight)
    }

    /// The weights and where they come from, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.sources.iter().map(|(name, source)| (name.as_str(), source))
    }

    /// Finds a weight of the sizes that a program has for it ([`Program::sizes`](crate::Program::sizes)).
    ///
    /// # Errors
    /// As [`Source::resolve`]; [`Error::Missing`] for a weight that this map does not have, [`Error::Shape`] for other sizes, by the checkpoint's
    /// name.
    pub fn resolve<'a>(&'a self, weight: &str, expected: &[usize], checkpoint: &'a Checkpoint) -> Result<Resolved<'a>> {
        let Some(source) = self.get(weight) else {
            return Err(Error::Missing { tensor: weight.to_owned(), expected: format!("{expected:?}") });
        };
        let found = source.resolve(checkpoint)?;
        if found.sizes() == expected {
            return Ok(found);
        }
        let name = format!("{} (for {weight})", found.name());
        Err(Error::shape(name, format!("{expected:?}"), format!("{:?}", found.sizes())))
    }

    /// The weights whose names `wanted` takes, on the host, for the CPU reference.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    pub fn host<T: Real>(&self, checkpoint: &Checkpoint, wanted: impl Fn(&str) -> bool) -> Result<HostWeights<T>> {
        let mut tensors = Vec::new();
        for (name, source) in self.iter().filter(|(name, _)| wanted(name)) {
            let found = source.resolve(checkpoint)?;
            let mut values = vec![0.0; found.len()];
            found.read(0, &mut values);
            tensors.push((name.to_owned(), found.sizes().to_vec(), values.into_iter().map(T::of).collect()));
        }
        Ok(HostWeights { tensors })
    }
}

/// A model's weights on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostWeights<T> {
    tensors: Vec<(String, Vec<usize>, Vec<T>)>,
}

impl<T> HostWeights<T> {
    /// As the layers of the reference read them.
    ///
    /// # Errors
    /// Never, of weights that [`WeightMap::host`] read.
    pub fn weights(&self) -> Result<Weights<'_, T>> {
        let mut weights = Weights::new();
        for (name, sizes, values) in &self.tensors {
            weights.insert(name.as_str(), sizes, values)?;
        }
        Ok(weights)
    }
}
