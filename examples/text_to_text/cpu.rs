//! The same on the CPU reference: plain loops, over the whole target in every step.

use tileformer::models::seq2seq::{Output, Seq2Seq, Seq2SeqInputs};
use tileformer::models::{Checkpoint, HostWeights};
use tileformer::reference::layers::{self as reference, Batch, Weights};
use tileformer::reference::{Linear, beam_candidates, linear};
use tileformer::spec::beams::{BeamSearch, Beams};
use tileformer::spec::sampling::seen_words;
use tileformer::{Activation, Sequence, Sequences};

use crate::translator::{Maps, Result};

/// The model's twin.
pub(crate) struct Cpu<'a> {
    model: &'a Seq2Seq,
    search: BeamSearch,
    weights: HostWeights<f32>,
}

impl<'a> Cpu<'a> {
    /// Reads the weights.
    pub(crate) fn new(checkpoint: &Checkpoint, model: &'a Seq2Seq, search: &BeamSearch) -> Result<Self> {
        Ok(Self { model, search: search.clone(), weights: model.host_weights(checkpoint, &[Output::Logits])? })
    }

    /// The targets of sources.
    pub(crate) fn run(&self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        sources.iter().map(|source| self.translate(source)).collect()
    }

    fn translate(&self, source: &[u32]) -> Result<Vec<u32>> {
        let (weights, vocabulary) = (self.weights.weights()?, self.model.target.vocabulary);
        let last = Output::EncoderHidden(self.model.encoder.n_layers);
        let memory = self.forward(&weights, source, &[self.search.start], &[last])?.remove(0);
        let mut beams = Beams::new(&self.search, 1, vocabulary)?;
        let mut texts = vec![Vec::new(); self.search.beams];
        let mut banned = vec![0; self.search.beams * seen_words(vocabulary)];
        while !beams.done() {
            let rows: Vec<_> = beams.rows().collect();
            texts = rows.iter().map(|row| row.map_or(Vec::new(), |r| [&texts[r.parent][..], &[r.id]].concat())).collect();
            let running: Vec<&[u32]> = texts.iter().map(Vec::as_slice).filter(|text| !text.is_empty()).collect();
            let logits = self.logits(&weights, &memory, &running)?;
            beams.ban(&mut banned)?;
            let count = self.search.candidates();
            let mut words = Vec::with_capacity(2 * count * texts.len());
            for (logits, banned) in logits.chunks_exact(vocabulary).zip(banned.chunks_exact(seen_words(vocabulary))) {
                let candidates = beam_candidates(logits, None, Some(banned), self.search.renormalized, count)?;
                words.extend(candidates.into_iter().flat_map(|(id, log_prob): (u32, f32)| [id, log_prob.to_bits()]));
            }
            // Rows that rest stand behind the others.
            words.resize(2 * count * texts.len(), 0);
            beams.advance(&words)?;
        }
        Ok(beams.into_hypotheses().remove(0).into_iter().next().map_or(Vec::new(), |best| best.ids))
    }

    /// Logits (texts, V) behind the last token of each text, all of one length, over one memory.
    fn logits(&self, weights: &Weights<'_, f32>, memory: &[f32], texts: &[&[u32]]) -> Result<Vec<f32>> {
        let Seq2Seq { decoder, tied, logits_bias, .. } = self.model;
        let target = self.model.target_embedding();
        let (length, d_in, d_out) = (texts[0].len(), target.d_model, target.vocabulary);
        let own = Sequences::padded(&vec![length; texts.len()], length)?;
        let keys = (memory.len() / d_in) as u32;
        let over = own.as_slice().iter().map(|s| Sequence { k_start: 0, k_len: keys, offset: 0, ..*s });
        let over = Sequences::new(over.collect())?;
        let (batch, cross) = (Batch::new(own.shape(), own.as_slice()), Batch::new(over.shape(), over.as_slice()));
        let x = reference::embeddings(&target, weights, "target.", &texts.concat(), None, Some(own.as_slice()))?;
        let y = reference::decoder(decoder, weights, "decoder.", &x, memory, &batch, &cross)?.y;
        let last: Vec<f32> = y.chunks_exact(length * d_in).flat_map(|rows| &rows[(length - 1) * d_in..]).copied().collect();
        let name = if *tied { "target.token_embedding.weight" } else { "head.weight" };
        Ok(linear(&Linear {
            x: &last,
            weight: weights.get(name, &[d_out, d_in])?,
            bias: weights.get_if(*logits_bias, "head.bias", &[d_out])?,
            residual: None,
            activation: Activation::Identity,
            rows: texts.len(),
            d_in,
            d_out,
        })?)
    }

    /// These outputs of one source and target.
    fn forward(
        &self,
        weights: &Weights<'_, f32>,
        source_ids: &[u32],
        target_ids: &[u32],
        outputs: &[Output],
    ) -> Result<Vec<Vec<f32>>> {
        let (source, target) = (Sequences::packed(&[source_ids.len()])?, Sequences::packed(&[target_ids.len()])?);
        let inputs = Seq2SeqInputs { source_ids, source: &source, target_ids, target: &target, key_mask: None };
        let mut found = self.model.reference(weights, &inputs, outputs)?;
        Ok(outputs.iter().map(|output| found.remove(&output.name()).unwrap_or_default()).collect())
    }

    /// The attention of a source and its target.
    pub(crate) fn maps(&self, source: &[u32], target: &[u32]) -> Result<Maps> {
        let weights = self.weights.weights()?;
        Maps::of(self.model, |outputs| self.forward(&weights, source, target, outputs))
    }
}
