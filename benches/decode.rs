//! The rows that decode: text after text, token by token, from the first submission to the last id on the host.

use tileformer::convenience::{CHUNK_STEPS, Gpu};
use tileformer::spec::sampling::Sampling;
use tileformer::{Element, Kernels, Program, Result};

use crate::clock::{Clock, Times};
use crate::model::{self, Decode, Run, Sizes};
use crate::report::Entry;
use crate::task::Work;

/// One row of the table that decodes.
#[derive(Clone, Debug)]
pub(crate) struct DecodeRow {
    pub(crate) id: String,
    pub(crate) element: Element,
    sizes: Sizes,
    run: Run,
}

const GPT2: Sizes = Sizes { n_layers: 12, d_model: 768, n_heads: 12, d_ff: 3072, vocabulary: 50257 };
const EIGHT_BILLION: Sizes = Sizes { n_layers: 32, d_model: 4096, n_heads: 32, d_ff: 16384, vocabulary: 32000 };

/// The rows for a GPU, with a sweep over the context.
pub(crate) fn full() -> Vec<DecodeRow> {
    let mut rows = Vec::new();
    for element in [Element::F32, Element::F16] {
        for batch in [1, 32] {
            rows.push(row(format!("gpt2-decode@b{batch}"), element, GPT2, Run { batch, context: 128, steps: 128 }));
        }
        for context in [1024, 8192] {
            rows.push(row(format!("gpt2-decode@s{context}"), element, GPT2, Run { batch: 1, context, steps: 64 }));
        }
    }
    rows.push(row("8b-decode@b1".into(), Element::F16, EIGHT_BILLION, Run { batch: 1, context: 128, steps: 64 }));
    rows
}

/// The rows for a CPU adapter.
pub(crate) fn small() -> Vec<DecodeRow> {
    let sizes = Sizes { n_layers: 2, ..GPT2 };
    let mut rows = Vec::new();
    for element in [Element::F32, Element::F16] {
        for batch in [1, 32] {
            let run = Run { batch, context: 16, steps: 8 };
            rows.push(row(format!("gpt2-decode@b{batch}-small"), element, sizes, run));
        }
        for context in [128, 1024] {
            let run = Run { batch: 1, context, steps: 8 };
            rows.push(row(format!("gpt2-decode@s{context}-small"), element, sizes, run));
        }
    }
    rows
}

fn row(id: String, element: Element, sizes: Sizes, run: Run) -> DecodeRow {
    DecodeRow { id, element, sizes, run }
}

impl DecodeRow {
    /// What the report says of it; its time is that of a step, which makes a token of every text.
    pub(crate) fn entry(&self) -> Entry {
        let Sizes { n_layers, d_model, n_heads, d_ff, vocabulary } = self.sizes;
        let Run { batch, context, steps } = self.run;
        Entry {
            id: self.id.clone(),
            element: self.element,
            work: Work::Bytes(self.sizes.bytes(&self.run, self.element)),
            what: format!(
                "a step of {n_layers} layers C {d_model}, NH {n_heads}, F {d_ff}, V {vocabulary}, B {batch}, greedy, {steps} steps behind {context} tokens"
            ),
            tokens: Some(batch),
        }
    }

    /// Times the loop with its readbacks; gives the step's program too.
    ///
    /// # Errors
    /// [`tileformer::Error::Limit`] on a device that is too small for it.
    pub(crate) fn time(&self, gpu: &Gpu, clock: &Clock<'_>, kernels: &Kernels, samples: usize) -> Result<(Program, Times)> {
        let generator = self.sizes.generator(self.run.context + self.run.steps);
        let weights = model::weights(gpu, kernels, &generator, self.element, 1)?;
        let decode = Decode::new(gpu, kernels, (&generator, &weights, self.element), self.run, |_| Ok(Sampling::greedy()))?;
        decode.decode(CHUNK_STEPS)?;
        let (start, mut times) = (std::time::Instant::now(), Vec::new());
        while clock.wants_more(times.len(), samples, start) {
            let (time, _) = decode.decode(CHUNK_STEPS)?;
            times.push(time.as_secs_f64() / self.run.steps as f64);
        }
        Ok((decode.step.program().clone(), Times::of(times)))
    }
}
