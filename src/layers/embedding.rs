//! Embeddings: tokens, positions and segments, before the first layer or before every layer.

use super::Batch;
use crate::builder::Builder;
use crate::error::Result;
use crate::kernels::EmbeddingRows;
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::spec::layers::{Embedding, check_prefix};
use crate::spec::{AttentionOptions, BatchShape};
use crate::tensor::Element;

impl Embedding {
    /// The embedding as a program: `ids` `u32` (rows), `segment_ids` `u32` (rows) where there are segments and `sequences` `u32` (B, 8) to
    /// `y` (rows, d_model), all of it `f32`. A [`Builder::with_storage`] of f16 takes [`Builder::embed`].
    ///
    /// # Errors
    /// As [`Embedding::check`].
    pub fn program(&self, kernels: &Kernels, shape: BatchShape) -> Result<Program> {
        self.check()?;
        let mut b = Builder::new(kernels, "embedding");
        let batch = b.batch("", &AttentionOptions::default(), 1, shape, None)?;
        let y = b.output_rows("y", shape.q_rows, self.d_model)?;
        b.embed("", self, &batch, y)?;
        b.finish()
    }
}

impl Builder {
    /// Appends y = norm(scale · token + position + segment) of the inputs `ids` and `segment_ids` under `prefix`.
    ///
    /// # Errors
    /// As [`Embedding::check`] and [`Builder::embedding`]; [`Error::Option`](crate::Error::Option) for a prefix that does not end in a dot.
    pub fn embed(&mut self, prefix: &str, spec: &Embedding, batch: &Batch, y: Tensor) -> Result<()> {
        let rows = batch.shape.q_rows;
        let ids = self.input(&format!("{prefix}ids"), Element::U32, Layout::contiguous(&[rows])?)?;
        self.embed_ids(prefix, spec, batch, ids, y)
    }

    /// As [`Builder::embed`], of ids that a kernel of this program may have written.
    ///
    /// # Errors
    /// As [`Builder::embed`].
    pub fn embed_ids(&mut self, prefix: &str, spec: &Embedding, batch: &Batch, ids: Tensor, y: Tensor) -> Result<()> {
        spec.check()?;
        let table = Layout::contiguous(&[spec.vocabulary, spec.d_model])?;
        let token = self.weight(&format!("{prefix}token_embedding.weight"), table)?;
        self.embed_from(prefix, spec, batch, (ids, token), y)
    }

    /// As [`Builder::embed_ids`], from a token table of any name.
    pub(crate) fn embed_from(
        &mut self,
        prefix: &str,
        spec: &Embedding,
        batch: &Batch,
        (ids, token): (Tensor, Tensor),
        y: Tensor,
    ) -> Result<()> {
        check_prefix(prefix)?;
        spec.check()?;
        let table = |b: &mut Self, name: &str, rows: usize| {
            b.weight(&format!("{prefix}{name}_embedding.weight"), Layout::contiguous(&[rows, spec.d_model])?)
        };
        let positions = spec.positions.map(|rows| table(self, "position", rows)).transpose()?;
        let segments = match spec.segments {
            Some(rows) => {
                let layout = Layout::contiguous(&[batch.shape.q_rows])?;
                let ids = self.input(&format!("{prefix}segment_ids"), Element::U32, layout)?;
                Some((ids, table(self, "segment", rows)?))
            }
            None => None,
        };
        let sum = match spec.norm {
            Some(_) => self.scratch_like("embedded", y)?,
            None => y,
        };
        let rows = EmbeddingRows {
            positions,
            segments,
            sequences: Some((batch.sequences, batch.shape.longest_q)),
            scale: spec.scale,
            first_position: spec.first_position,
            ..EmbeddingRows::new(ids, token, sum)
        };
        self.embedding(&format!("{prefix}embedding"), &rows)?;
        spec.norm.as_ref().map_or(Ok(()), |norm| self.norm(&format!("{prefix}norm."), norm, sum, y))
    }

    /// Appends y = x + `position_embedding.weight` (positions, d_model) of each row's position.
    pub(super) fn add_positions(
        &mut self,
        prefix: &str,
        positions: usize,
        batch: &Batch,
        x: Tensor,
        y: Tensor,
    ) -> Result<()> {
        crate::shape::nonzero("positions", positions)?;
        let columns = x.layout().sizes().last().copied().unwrap_or(0);
        let name = format!("{prefix}position_embedding.weight");
        let table = self.weight(&name, Layout::contiguous(&[positions, columns])?)?;
        let rows = EmbeddingRows {
            positions: Some(table),
            add: Some(x),
            sequences: Some((batch.sequences, batch.shape.longest_q)),
            ..EmbeddingRows::adding(y)
        };
        self.embedding(&format!("{prefix}positions"), &rows)
    }
}
