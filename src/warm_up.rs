//! Compilation ahead of use, in bounded steps.

use crate::error::{Error, Result};
use crate::pipeline::Kernels;
use crate::variant::Variant;

impl Kernels {
    /// Compiles `variants` one step at a time, so that nothing freezes; take them from [`Program::variants`](crate::Program::variants).
    ///
    /// ```no_run
    /// # async fn f(kernels: &tileformer::Kernels, program: &tileformer::Program) -> tileformer::Result<()> {
    /// let mut warm_up = kernels.warm_up(program.variants());
    /// while let Some(progress) = warm_up.step().await? {
    ///     println!("{} of {}: {}", progress.done, progress.total, progress.variant);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn warm_up(&self, variants: impl IntoIterator<Item = Variant>) -> WarmUp {
        let mut waiting: Vec<Variant> = Vec::new();
        for variant in variants {
            if !waiting.contains(&variant) {
                waiting.push(variant);
            }
        }
        WarmUp { kernels: self.clone(), waiting, done: 0 }
    }
}

/// Compilation ahead of use, one variant a step: see [`Kernels::warm_up`].
#[derive(Debug)]
pub struct WarmUp {
    kernels: Kernels,
    waiting: Vec<Variant>,
    done: usize,
}

/// How far a warm-up is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Variants that are compiled.
    pub done: usize,
    /// Variants in all.
    pub total: usize,
    /// The one that this step compiled.
    pub variant: String,
}

impl WarmUp {
    /// Compiles the next variant; `None` when all are.
    ///
    /// # Errors
    /// [`Error::Compile`] with what the device said. The next step goes on with the next variant.
    pub async fn step(&mut self) -> Result<Option<Progress>> {
        let Some(variant) = self.waiting.get(self.done).copied() else { return Ok(None) };
        self.done += 1;
        if !self.kernels.pipelines().contains_key(&variant) {
            let compile = self.kernels.compile(&variant);
            if let Some(message) = compile.check.await {
                return Err(Error::Compile { variant: variant.name(), message });
            }
            self.kernels.pipelines().insert(variant, compile.pipeline);
        }
        Ok(Some(Progress { done: self.done, total: self.waiting.len(), variant: variant.name() }))
    }
}
