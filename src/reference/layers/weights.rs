//! Weights under their names.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::reference::expect_len;

/// Named weights, borrowed, each with its sizes.
///
/// ```
/// use tileformer::reference::layers::Weights;
/// let mut weights = Weights::new();
/// weights.insert("linear1.bias", &[3], &[0.1f32, 0.2, 0.3])?;
/// assert_eq!(weights.get("linear1.bias", &[3])?, [0.1, 0.2, 0.3]);
/// assert!(weights.get("linear1.bias", &[4]).is_err());
/// # Ok::<(), tileformer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weights<'a, T> {
    by_name: BTreeMap<String, (Vec<usize>, &'a [T])>,
}

impl<T> Default for Weights<'_, T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new() }
    }
}

impl<'a, T> Weights<'a, T> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a weight, row major, in the place of one of the same name.
    ///
    /// # Errors
    /// [`Error::Shape`] where `data` does not hold exactly `sizes`.
    pub fn insert(&mut self, name: impl Into<String>, sizes: &[usize], data: &'a [T]) -> Result<&mut Self> {
        let name = name.into();
        expect_len(&name, sizes, data.len())?;
        self.by_name.insert(name, (sizes.to_vec(), data));
        Ok(self)
    }

    /// The elements of the weight `name`.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is none, [`Error::Shape`] where it has other sizes.
    pub fn get(&self, name: &str, sizes: &[usize]) -> Result<&'a [T]> {
        match self.by_name.get(name) {
            Some((found, data)) if found == sizes => Ok(data),
            Some((found, _)) => Err(Error::shape(name, format!("{sizes:?}"), format!("{found:?}"))),
            None => Err(Error::Missing { tensor: name.into(), expected: format!("{sizes:?}") }),
        }
    }

    /// As [`Weights::get`] where `wanted`, else nothing.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_if(&self, wanted: bool, name: &str, sizes: &[usize]) -> Result<Option<&'a [T]>> {
        if wanted { self.get(name, sizes).map(Some) } else { Ok(None) }
    }
}
