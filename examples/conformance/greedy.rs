//! Greedy texts: the tokens must be the expected ones, up to the first that rounding may choose.

use serde_json::Value;
use tileformer::convenience::Gpu;
use tileformer::models::Checkpoint;
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{Bindings, Element};

use super::host::Array;
use super::judge::{Outcome, failed, unsupported};

/// Behind two logits that are as close as this, rounding chooses the token.
const CLOSE: f64 = 1e-3;

/// Settings that would choose other tokens, and what leaves them as they are.
const SETTINGS: [(&str, f64); 8] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("sequence_bias", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("guidance_scale", 1.0),
];

/// Leaves out texts that a configuration wants to be more than the largest logits of what is not banned.
pub(crate) fn expect_plain(checkpoint: &Checkpoint) -> Outcome<()> {
    let config = checkpoint.generation_config();
    let does_nothing = |value: &Value, neutral| match value {
        Value::Array(values) => values.is_empty(),
        value => value.as_f64() == Some(neutral),
    };
    let set = SETTINGS.iter().find(|(key, neutral)| config.get(key).is_some_and(|value| !does_nothing(value, *neutral)));
    set.map_or(Ok(()), |(key, _)| unsupported(format!("texts with {key}")))
}

/// Tokens of a setting: a number, or a list of them.
pub(crate) fn tokens(checkpoint: &Checkpoint, key: &str) -> Outcome<Vec<u32>> {
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let all = match checkpoint.generation_config().get(key) {
        None => Some(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(token).collect(),
        Some(value) => token(value).map(|id| vec![id]),
    };
    all.map_or_else(|| failed(format!("config.json: {key}: expected tokens")), Ok)
}

/// What a configuration bans everywhere: suppressed tokens, and bad words of one token each, of which end tokens are none.
pub(crate) fn banned(checkpoint: &Checkpoint) -> Outcome<Vec<u32>> {
    let (mut banned, ends) = (tokens(checkpoint, "suppress_tokens")?, tokens(checkpoint, "eos_token_id")?);
    let Some(words) = checkpoint.generation_config().get("bad_words_ids") else { return Ok(banned) };
    for word in words.as_array().into_iter().flatten() {
        match word.as_array().map(Vec::as_slice) {
            Some([id]) => banned.extend(id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| !ends.contains(id))),
            _ => return unsupported("texts with bad words of several tokens"),
        }
    }
    Ok(banned)
}

/// What a row of logits says about the next token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The one with the largest logit, the first of equals.
    pub(crate) id: u32,
    /// By how much it is larger than the one behind it.
    pub(crate) margin: f64,
}

impl Choice {
    /// The best of all tokens but the banned ones.
    pub(crate) fn of(logits: &[f64], banned: &[u32]) -> Self {
        let (mut best, mut second) = ((0, f64::NEG_INFINITY), f64::NEG_INFINITY);
        for (id, &logit) in (0u32..).zip(logits).filter(|(id, _)| !banned.contains(id)) {
            if logit > best.1 {
                (best, second) = ((id, logit), best.1);
            } else {
                second = second.max(logit);
            }
        }
        Self { id: best.0, margin: best.1 - second }
    }
}

/// Expected texts of one length, each of which begins with what is given: a prompt, or a start token.
pub(crate) struct Texts {
    name: String,
    /// Tokens of a text.
    pub(crate) length: usize,
    /// Those of them that are given.
    pub(crate) prompt: usize,
    /// (rows, length)
    expected: Vec<u32>,
    /// Tokens that are chosen nowhere.
    pub(crate) banned: Vec<u32>,
    /// How many tokens of each text are compared.
    compared: Vec<usize>,
}

impl Texts {
    /// Texts whose tokens (rows, length) are all compared.
    pub(crate) fn new(name: &str, [length, prompt]: [usize; 2], expected: Vec<u32>, banned: Vec<u32>) -> Self {
        let compared = expected.chunks_exact(length).map(|_| length).collect();
        Self { name: name.to_owned(), length, prompt, expected, banned, compared }
    }

    /// The same, compared up to the first token that is close: `choices` are those behind each text's prompt, by f64's logits of the
    /// expected tokens before them.
    pub(crate) fn up_to_close<'a>(mut self, choices: impl IntoIterator<Item = &'a [Choice]>) -> Self {
        for (compared, choices) in self.compared.iter_mut().zip(choices) {
            if let Some(close) = choices.iter().position(|choice| choice.margin <= CLOSE) {
                *compared = self.prompt + close;
            }
        }
        self
    }

    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.expected.chunks_exact(self.length)
    }

    /// Binds what makes a step's choices these: the largest logit of what is not banned.
    pub(crate) fn bind(&self, gpu: &Gpu, vocabulary: usize, bindings: &mut Bindings) -> Outcome<()> {
        let rows = self.rows().len();
        let mut bias = vec![0.0; vocabulary];
        for &id in &self.banned {
            if let Some(bias) = bias.get_mut(id as usize) {
                *bias = f32::NEG_INFINITY;
            }
        }
        let sampling = gpu.upload_u32(&[rows, SAMPLING_WORDS], Sampling::words(&vec![Sampling::greedy(); rows]))?;
        let bias = gpu.upload_floats(Element::F32, &[vocabulary], &bias)?;
        bindings.set("sampling", sampling).set("bias", bias);
        Ok(())
    }

    /// The texts with these tokens behind each prompt, as an output by its name. Behind what is compared the expected tokens stand.
    pub(crate) fn output(&self, made: &[Vec<u32>]) -> Outcome<(String, Array<f32>)> {
        let mut ids = Vec::with_capacity(self.expected.len());
        for ((text, &compared), made) in self.rows().zip(&self.compared).zip(made) {
            let whole = text[..self.prompt].iter().chain(made).take(compared);
            ids.extend(whole.chain(text.iter().skip(compared)).map(|&id| id as f32));
        }
        Ok((self.name.clone(), Array::new(&[made.len(), self.length], ids)?))
    }
}

/// The tokens of choices.
pub(crate) fn ids_of(choices: &[Vec<Choice>]) -> Vec<Vec<u32>> {
    choices.iter().map(|row| row.iter().map(|choice| choice.id).collect()).collect()
}

/// Words as a buffer holds them.
pub(crate) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
