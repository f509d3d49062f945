//! Buffers by name.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::program::{Inner, Program, Role};
use crate::tensor::TensorView;

/// Buffers by the names of a program's tensors.
///
/// ```no_run
/// # fn f(program: &tileformer::Program, x: tileformer::TensorView, y: tileformer::TensorView) -> tileformer::Result<()> {
/// let mut bindings = tileformer::Bindings::new();
/// bindings.set("x", x).set("y", y);
/// let plan = program.bind(&bindings)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    views: HashMap<String, TensorView>,
}

impl Bindings {
    /// No bindings yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a view (or a [`Weight`](crate::Weight)) to a name; a later one replaces an earlier one.
    pub fn set(&mut self, name: impl Into<String>, view: impl Into<TensorView>) -> &mut Self {
        self.views.insert(name.into(), view.into());
        self
    }

    /// What is bound to a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorView> {
        self.views.get(name)
    }

    /// Those whose names a program has: of a whole model's weights, the ones that this program reads.
    #[must_use]
    pub fn known_to(&self, program: &Program) -> Self {
        program.tensors().filter_map(|(name, ..)| Some((name, self.get(name)?.clone()))).collect()
    }

    /// Those whose names begin with `prefix`, without it: `weights.under("layers.3.")` is what the fourth of twelve equal layers
    /// binds to the program that they share.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        self.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view.clone()))).collect()
    }

    /// Names and views.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorView)> {
        self.views.iter().map(|(name, view)| (name.as_str(), view))
    }
}

impl<S: Into<String>, V: Into<TensorView>> Extend<(S, V)> for Bindings {
    fn extend<I: IntoIterator<Item = (S, V)>>(&mut self, items: I) {
        self.views.extend(items.into_iter().map(|(name, view)| (name.into(), view.into())));
    }
}

impl<S: Into<String>, V: Into<TensorView>> FromIterator<(S, V)> for Bindings {
    fn from_iter<I: IntoIterator<Item = (S, V)>>(items: I) -> Self {
        let mut bindings = Self::new();
        bindings.extend(items);
        bindings
    }
}

/// Checks bindings against a program's slots and puts them where they belong.
pub(crate) fn place_views(
    program: &Inner,
    bindings: &Bindings,
    views: &mut [Option<TensorView>],
    allowed: impl Fn(Role) -> bool,
) -> Result<()> {
    for (name, view) in bindings.iter() {
        let slot = program.by_name.get(name).copied().filter(|&s| allowed(program.slots[s].role));
        let Some(slot) = slot else {
            let mut known: Vec<&str> = program
                .slots
                .iter()
                .filter(|s| s.role != Role::Scratch && allowed(s.role))
                .map(|s| s.name.as_str())
                .collect();
            known.sort_unstable();
            return Err(Error::Unknown { tensor: name.to_owned(), known: known.join(", ") });
        };
        let expected = &program.slots[slot];
        if view.element() != expected.element {
            return Err(Error::Element {
                tensor: name.to_owned(),
                expected: expected.element.name(),
                found: view.element().name(),
            });
        }
        if !view.layout().is_same_place(&expected.layout) {
            return Err(Error::shape(name, expected.layout, view.layout()));
        }
        views[slot] = Some(view.clone());
    }
    Ok(())
}
