//! Models under their checkpoint names, of Hugging Face's library, through the crate's loader: on the GPU, and on the CPU reference.

use std::collections::BTreeMap;

use tileformer::layers::Inputs;
use tileformer::models::Checkpoint;
use tileformer::models::bert::{Bert, BertInputs, Output};
use tileformer::{BatchShape, Sequences};

use super::case::{Case, Value};
use super::gpu::Session;
use super::host::Array;
use super::huggingface_causal;
use super::huggingface_seq2seq;
use super::judge::{Outcome, Results, failed, unsupported};

/// The classes of BERT: without a head, with those that it was trained with, and with those that it is fine-tuned with.
const BERTS: [&str; 7] = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
];

/// Why a case is left out whose outputs are those of rows that see no key.
pub(crate) const BLIND_ROWS: &str = "rows that see no key, which are zeros here and uniform or NaN there";

/// A model with its inputs, ready to be run anywhere.
pub(crate) enum Model {
    Bert(Box<Run>),
    Causal(Box<huggingface_causal::Run>),
    Seq2Seq(Box<huggingface_seq2seq::Run>),
}

impl Model {
    /// Reads a case.
    pub(crate) fn read(case: &Case) -> Outcome<Self> {
        match case.text("op")? {
            op if BERTS.contains(&op) => Ok(Self::Bert(Box::new(Run::new(case, op)?))),
            "GPT2Model" | "GPT2LMHeadModel" | "LlamaModel" | "LlamaForCausalLM" | "MistralModel" | "MistralForCausalLM"
            | "Qwen2Model" | "Qwen2ForCausalLM" => Ok(Self::Causal(Box::new(huggingface_causal::Run::new(case)?))),
            "MarianModel"
            | "MarianMTModel"
            | "BartModel"
            | "BartForConditionalGeneration"
            | "T5Model"
            | "T5ForConditionalGeneration"
            | "MT5Model"
            | "MT5ForConditionalGeneration" => Ok(Self::Seq2Seq(Box::new(huggingface_seq2seq::Run::new(case)?))),
            other => unsupported(format!("model {other}")),
        }
    }

    /// Every expected output that is known, from the GPU.
    pub(crate) async fn on_gpu(&self, session: &Session) -> Outcome<Results> {
        match self {
            Self::Bert(run) => run.on_gpu(session).await,
            Self::Causal(run) => run.on_gpu(session).await,
            Self::Seq2Seq(run) => run.on_gpu(session).await,
        }
    }

    /// The same from the CPU reference.
    pub(crate) fn on_reference(&self) -> Outcome<Results> {
        match self {
            Self::Bert(run) => run.on_reference(),
            Self::Causal(run) => run.on_reference(),
            Self::Seq2Seq(run) => run.on_reference(),
        }
    }
}

/// A BERT with its inputs.
pub(crate) struct Run {
    checkpoint: Checkpoint,
    bert: Bert,
    /// (B · T)
    ids: Vec<u32>,
    segment_ids: Vec<u32>,
    sequences: Sequences,
    /// (B, T), where lengths do not say which tokens count.
    key_mask: Option<Vec<u32>>,
    shape: BatchShape,
    outputs: Vec<Expected>,
}

/// An expected output.
struct Expected {
    name: String,
    ours: Output,
    /// The column of ours that it is, where it is not the whole.
    column: Option<usize>,
}

/// Which tokens of (B, T) count: by lengths where those come first, else by a mask.
pub(crate) struct Attended {
    pub(crate) sequences: Sequences,
    pub(crate) key_mask: Option<Vec<u32>>,
    /// Whether no token counts of some sequence.
    pub(crate) some_have_none: bool,
    /// Whether the first token of some sequence does not count: with causal order it sees no key.
    pub(crate) some_begin_hidden: bool,
}

impl Attended {
    pub(crate) fn of(mask: &[u32], [batch, longest]: [usize; 2]) -> Outcome<Self> {
        let rows = || mask.chunks_exact(longest.max(1));
        let lengths: Vec<usize> = rows().map(|row| row.iter().filter(|&&m| m != 0).count()).collect();
        let some_have_none = lengths.contains(&0);
        let some_begin_hidden = rows().any(|row| row[0] == 0);
        let (sequences, key_mask) = match rows().zip(&lengths).all(|(row, &len)| row[..len].iter().all(|&m| m != 0)) {
            true => (Sequences::padded(&lengths, longest)?, None),
            false => (Sequences::padded(&vec![longest; batch], longest)?, Some(mask.to_vec())),
        };
        Ok(Self { sequences, key_mask, some_have_none, some_begin_hidden })
    }
}

impl Run {
    fn new(case: &Case, op: &str) -> Outcome<Self> {
        let checkpoint = checkpoint(case)?;
        case.expect_inputs(&["input_ids", "token_type_ids", "attention_mask"])?;
        let mut bert = configured(Bert::new(&checkpoint))?;
        let (sizes, ids) = words(case, "in.input_ids")?;
        let &[batch, longest] = sizes else {
            return failed(format!("in.input_ids: expected (B, T), found {sizes:?}"));
        };
        if ids.is_empty() {
            return unsupported("sequences with a dimension of size 0");
        }
        let sizes = [batch, longest];
        let segment_ids = like_ids(case, "in.token_type_ids", sizes, 0)?;
        let attended = Attended::of(&like_ids(case, "in.attention_mask", sizes, 1)?, sizes)?;
        if attended.some_have_none {
            return unsupported(BLIND_ROWS);
        }
        let Attended { sequences, key_mask, .. } = attended;
        bert.layer.attention.options.key_mask = key_mask.is_some();
        let outputs = case.outputs().filter_map(|(name, _)| expected(op, name, bert.n_layers)).collect();
        let shape = BatchShape::padded(batch, longest);
        Ok(Self { checkpoint, bert, ids, segment_ids, sequences, key_mask, shape, outputs })
    }

    /// Each of our outputs once: an expected one may have two names.
    fn wanted(&self) -> Vec<Output> {
        let mut wanted = Vec::new();
        for Expected { ours, .. } in &self.outputs {
            if !wanted.contains(ours) {
                wanted.push(*ours);
            }
        }
        wanted
    }

    /// The outputs by their expected names, batch first.
    fn named(&self, mut take: impl FnMut(&str, &[usize]) -> Outcome<Array<f32>>) -> Outcome<Results> {
        let (batch, longest, width) = (self.shape.sequences, self.shape.longest_q, self.bert.embedding.d_model);
        let labels = self.bert.labels.len();
        let named = |Expected { name, ours, column }: &Expected| {
            let sizes = match ours {
                Output::Hidden(_) => vec![batch, longest, width],
                Output::Attention(_) => vec![batch, self.bert.layer.attention.n_heads, longest, longest],
                Output::Pooled => vec![batch, width],
                Output::MaskedLanguage => vec![batch, longest, self.bert.embedding.vocabulary],
                Output::SequenceClasses => vec![batch, labels],
                Output::TokenClasses => vec![batch, longest, labels],
                Output::Spans => vec![batch, longest, 2],
                _ => vec![batch, 2],
            };
            let whole = take(&ours.name(), &sizes)?.reshape(&sizes)?;
            let found = match column {
                None => whole,
                Some(column) => whole.swap(0, sizes.len() - 1)?.narrow(*column, 1)?.swap(0, sizes.len() - 1)?,
            };
            Ok((name.clone(), found))
        };
        self.outputs.iter().map(named).collect()
    }

    async fn on_gpu(&self, session: &Session) -> Outcome<Results> {
        if self.outputs.is_empty() {
            return Ok(Results::new());
        }
        let inputs = Inputs::new(self.shape).with_storage(session.storage());
        let program = self.bert.program(session.kernels(), &inputs, &self.wanted())?;
        let words = |values: &[u32]| values.to_vec();
        let mut feeds = BTreeMap::from([
            ("ids", words(&self.ids)),
            ("segment_ids", words(&self.segment_ids)),
            ("sequences", words(self.sequences.words())),
        ]);
        feeds.extend(self.key_mask.as_deref().map(|mask| ("key_mask", words(mask))));
        let bindings = session.gpu().upload_checkpoint(&[&program], &self.checkpoint, &self.bert.weights(), |_| {})?;
        let written = session.run_model(&program, bindings, &feeds).await?;
        self.named(|name, _| written.get(name))
    }

    fn on_reference(&self) -> Outcome<Results> {
        if self.outputs.is_empty() {
            return Ok(Results::new());
        }
        let wanted = self.wanted();
        let host = self.bert.host_weights::<f32>(&self.checkpoint, &wanted)?;
        let Self { ids, segment_ids, sequences, key_mask, .. } = self;
        let inputs = BertInputs { ids, segment_ids, sequences, key_mask: key_mask.as_deref() };
        let found = self.bert.reference(&host.weights()?, &inputs, &wanted)?;
        self.named(|name, sizes| Array::new(sizes, found.get(name).cloned().unwrap_or_default()))
    }
}

/// Our output for an expected one of a class, whose `logits` are those of its own head.
fn expected(class: &str, name: &str, layers: usize) -> Option<Expected> {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    let (ours, column) = match (name, class) {
        ("mlm_logits", _) | ("logits", "BertForMaskedLM") => (Output::MaskedLanguage, None),
        ("nsp_logits", _) | ("logits", "BertForNextSentencePrediction") => (Output::NextSentence, None),
        ("logits", "BertForSequenceClassification") => (Output::SequenceClasses, None),
        ("logits", "BertForTokenClassification") => (Output::TokenClasses, None),
        ("start_logits", _) => (Output::Spans, Some(0)),
        ("end_logits", _) => (Output::Spans, Some(1)),
        ("pooled", _) => (Output::Pooled, None),
        ("last_hidden", _) => (Output::Hidden(layers), None),
        _ => (number("hidden_").map(Output::Hidden).or_else(|| number("attention_").map(Output::Attention))?, None),
    };
    Some(Expected { name: name.to_owned(), ours, column })
}

/// The case's configuration and weights.
pub(crate) fn checkpoint(case: &Case) -> Outcome<Checkpoint> {
    Ok(Checkpoint::from_bytes(case.text("config")?, vec![("the case's weights".into(), case.weights()?)])?)
}

/// The model of a configuration; what the crate does not have of it leaves the case out.
pub(crate) fn configured<T>(model: tileformer::Result<T>) -> Outcome<T> {
    model.or_else(|error| unsupported(error.to_string()))
}

/// Integers that fit 32 bits without a sign, with their sizes.
pub(crate) fn words<'a>(case: &'a Case, name: &str) -> Outcome<(&'a [usize], Vec<u32>)> {
    let Some(Value::Int(array)) = case.get(name) else { return failed(format!("{name}: expected integers")) };
    let values: Option<Vec<u32>> = array.values().iter().map(|&v| u32::try_from(v).ok()).collect();
    match values {
        Some(values) => Ok((array.sizes(), values)),
        None => failed(format!("{name}: expected numbers from 0 to 2^32")),
    }
}

/// Integers of the same sizes as the ids, or `default` everywhere where there are none.
pub(crate) fn like_ids(case: &Case, name: &str, sizes: [usize; 2], default: u32) -> Outcome<Vec<u32>> {
    if case.get(name).is_none() {
        return Ok(vec![default; sizes[0] * sizes[1]]);
    }
    match words(case, name)? {
        (found, values) if found == sizes => Ok(values),
        (found, _) => failed(format!("{name}: expected {sizes:?}, found {found:?}")),
    }
}
