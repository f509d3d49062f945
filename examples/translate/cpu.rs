//! Translation on the CPU reference: plain loops, for machines without an adapter and to check the GPU.

use std::thread;

use tileformer::reference::argmax;
use tileformer::reference::layers::{self as reference, Batch, DecoderOutput, Weights};
use tileformer::reference::{Linear, linear};
use tileformer::spec::layers::{Decoder, Embedding, Encoder};
use tileformer::{Activation, Sequences};

use crate::engine::{Engine, Result, Trace, padded_over_packed};
use crate::model::Model;
use crate::text::{TargetVocabulary, cut};

/// How many strings a thread takes at a time.
const SHARE: usize = 8;

/// The CPU twins of the layers, over a model's weights.
pub(crate) struct Cpu<'a> {
    weights: Weights<'a, f32>,
    source: Embedding,
    target: Embedding,
    encoder: Encoder,
    decoder: Decoder,
    steps: usize,
}

/// Sources that were read: what the decoder looks at.
struct Memory {
    rows: Vec<f32>,
    lengths: Vec<usize>,
}

impl<'a> Cpu<'a> {
    /// The reference over `model`.
    pub(crate) fn new(model: &'a Model) -> Result<Self> {
        let mut weights = Weights::new();
        for (name, weight) in &model.weights {
            weights.insert(name.as_str(), &weight.sizes, &weight.data)?;
        }
        Ok(Self {
            weights,
            source: model.source_embedding(),
            target: model.target_embedding(),
            encoder: model.encoder(),
            decoder: model.decoder(),
            steps: model.steps(),
        })
    }

    /// sources -> memory (rows of all sources, d_model), one behind the other
    fn encode(&self, sources: &[Vec<u32>]) -> tileformer::Result<Memory> {
        let lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        let sequences = Sequences::packed(&lengths)?;
        let batch = Batch::new(sequences.shape(), sequences.as_slice());
        let x =
            reference::embeddings(&self.source, &self.weights, "source.", &sources.concat(), None, Some(batch.sequences))?;
        let (rows, _) = reference::encoder(&self.encoder, &self.weights, "encoder.", &x, &batch)?;
        Ok(Memory { rows, lengths })
    }

    /// ids (B, T), memory -> y (B · T, d_model), attention weights
    fn decode(&self, memory: &Memory, ids: &[u32]) -> tileformer::Result<DecoderOutput<f32>> {
        let (b, t) = (memory.lengths.len(), ids.len() / memory.lengths.len());
        let own = Sequences::padded(&vec![t; b], t)?;
        let own_batch = Batch::new(own.shape(), own.as_slice());
        let cross = padded_over_packed(t, &memory.lengths)?;
        let cross_batch = Batch::new(cross.shape(), cross.as_slice());
        let x = reference::embeddings(&self.target, &self.weights, "target.", ids, None, Some(own.as_slice()))?;
        reference::decoder(&self.decoder, &self.weights, "decoder.", &x, &memory.rows, &own_batch, &cross_batch)
    }

    /// y (rows, d_model) -> logits (rows, V), by the tied token table
    fn logits(&self, y: &[f32]) -> tileformer::Result<Vec<f32>> {
        let (d_in, d_out) = (self.target.d_model, self.target.vocabulary);
        let weight = self.weights.get("target.token_embedding.weight", &[d_out, d_in])?;
        let (bias, residual, activation) = (None, None, Activation::Identity);
        linear(&Linear { x: y, weight, bias, residual, activation, rows: y.len() / d_in, d_in, d_out })
    }

    /// Greedy decoding, over the whole prefix in every step.
    fn translate_share(&self, sources: &[Vec<u32>]) -> tileformer::Result<Vec<Vec<u32>>> {
        let memory = self.encode(sources)?;
        let mut produced = vec![vec![TargetVocabulary::BOS]; sources.len()];
        for t in 1..=self.steps {
            let y = self.decode(&memory, &produced.concat())?.y;
            let last: Vec<f32> = y
                .chunks_exact(t * self.target.d_model)
                .flat_map(|rows| &rows[(t - 1) * self.target.d_model..])
                .copied()
                .collect();
            let next = argmax(&self.logits(&last)?, sources.len(), self.target.vocabulary)?;
            produced.iter_mut().zip(next).for_each(|(ids, id)| ids.push(id));
            if produced.iter().all(|ids| ids.contains(&TargetVocabulary::EOS)) {
                break;
            }
        }
        Ok(produced.iter().map(|ids| cut(&ids[1..]).to_vec()).collect())
    }
}

impl Engine for Cpu<'_> {
    fn name(&self) -> String {
        "CPU reference".into()
    }

    fn prepare(&mut self, _: &[Vec<u32>]) -> Result<()> {
        Ok(())
    }

    fn translate(&mut self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shares: Vec<&[Vec<u32>]> = sources.chunks(SHARE).collect();
        let mut translations = Vec::with_capacity(sources.len());
        for shares in shares.chunks(threads) {
            let done: Vec<_> = thread::scope(|scope| {
                let running: Vec<_> = shares.iter().map(|share| scope.spawn(|| self.translate_share(share))).collect();
                running.into_iter().map(thread::ScopedJoinHandle::join).collect()
            });
            for share in done {
                translations.extend(share.map_err(|_| "a thread of the CPU reference failed")??);
            }
        }
        Ok(translations)
    }

    fn trace(&mut self, source: &[u32], target: &[u32]) -> Result<Trace> {
        let memory = self.encode(&[source.to_vec()])?;
        let seen = self.decode(&memory, target)?;
        Ok(Trace { logits: self.logits(&seen.y)?, cross_attention: seen.cross_probs })
    }
}
