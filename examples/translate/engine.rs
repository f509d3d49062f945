//! What the GPU and the CPU reference have in common.

use std::error::Error;

use tileformer::Sequences;

/// Anything that can go wrong while translating.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The most strings that run at once; more are cut into batches of this size.
pub(crate) const BATCH: usize = 256;

/// Translates ids to ids.
pub(crate) trait Engine {
    /// What it runs on.
    fn name(&self) -> String;

    /// Makes ready for these sources: programs, pipelines, buffers. What is done here, no translation needs to do.
    fn prepare(&mut self, sources: &[Vec<u32>]) -> Result<()>;

    /// The greedy translation of each source: the ids that it produced, up to and with the first `<eos>`.
    fn translate(&mut self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>>;

    /// Runs the model over one source and a given target, and tells what it saw.
    fn trace(&mut self, source: &[u32], target: &[u32]) -> Result<Trace>;
}

/// `t` target rows of each sequence, over source rows that are packed one behind the other.
pub(crate) fn padded_over_packed(t: usize, lengths: &[usize]) -> tileformer::Result<Sequences> {
    Sequences::padded(&vec![t; lengths.len()], t)?.over(&Sequences::packed(lengths)?)
}

/// What the model makes of a source and a target that is known.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// (T, V): what it would write next behind each row of the target.
    pub(crate) logits: Vec<f32>,
    /// For each layer of the decoder, (NH, T, S): how much each target row looks at each source row.
    pub(crate) cross_attention: Vec<Vec<f32>>,
}

impl Trace {
    /// Where the model is least certain of a produced target: the place, and the probability that it gives to the token there.
    pub(crate) fn least_certain(&self, produced: &[u32]) -> Option<(usize, f64)> {
        let columns = self.logits.len().checked_div(produced.len())?;
        let probability = |row: &[f32], id: u32| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |x: f32| f64::from(x - most).exp();
            row.get(id as usize).map_or(0.0, |&x| weight(x)) / row.iter().copied().map(weight).sum::<f64>()
        };
        let rows = self.logits.chunks_exact(columns.max(1)).zip(produced);
        rows.map(|(row, &id)| probability(row, id)).enumerate().min_by(|a, b| a.1.total_cmp(&b.1))
    }
}
