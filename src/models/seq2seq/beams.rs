//! The beam search that a checkpoint's settings describe.

use serde_json::Value;

use super::family::token;
use super::{Seq2Seq, positions};
use crate::error::Result;
use crate::models::Config;
use crate::spec::beams::{BeamSearch, EarlyStopping, MAX_BEAMS};

/// Settings that change what `generate` of the Transformers library finds and that a search here does not have, with the number that
/// makes them do nothing.
const UNSUPPORTED: [(&str, f64); 14] = [
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("guidance_scale", 1.0),
    ("penalty_alpha", 0.0),
    ("constraints", 0.0),
    ("force_words_ids", 0.0),
    ("sequence_bias", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("stop_strings", 0.0),
    ("watermarking_config", 0.0),
];

impl Seq2Seq {
    /// The search that `settings` describe, those of [`Checkpoint::generation_config`](crate::models::Checkpoint::generation_config), with the defaults
    /// of the Transformers library for what they leave out: `num_beams` (one is greedy), `num_return_sequences`, `length_penalty`, `early_stopping`,
    /// `max_length` or `max_new_tokens` (that first; without either 20 new tokens, as far as positions reach), `min_length` or `min_new_tokens` (that
    /// first), `no_repeat_ngram_size`, `bad_words_ids`, `suppress_tokens`, `renormalize_logits`,
    /// `decoder_start_token_id`, `eos_token_id`, `forced_bos_token_id` and `forced_eos_token_id`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint), by its key, for a value that cannot be used, a token outside the vocabulary, and a setting that
    /// a search here does not have; for `decoder_start_token_id` and `eos_token_id` where neither settings nor model name them.
    pub fn beam_search(&self, settings: &Config) -> Result<BeamSearch> {
        if settings.flag("do_sample", false)? {
            return Err(settings.refusal("do_sample", false));
        }
        for (key, neutral) in UNSUPPORTED {
            let does_nothing = |value: &Value| match value {
                Value::Array(values) => values.is_empty(),
                value => value.as_f64() == Some(neutral),
            };
            if settings.get(key).is_some_and(|value| !does_nothing(value)) {
                return Err(settings.refusal(key, "nothing, as a beam search here does not have it"));
            }
        }
        let read = Read { settings, vocabulary: self.target.vocabulary };
        let start = read.token("decoder_start_token_id")?.or(self.tokens.start);
        let start = start.ok_or_else(|| settings.refusal("decoder_start_token_id", "a token"))?;
        let ends = match settings.get("eos_token_id") {
            Some(Value::Array(_)) => read.tokens("eos_token_id")?,
            _ => read.token("eos_token_id")?.or(self.tokens.end).into_iter().collect(),
        };
        let Some(&end) = ends.first() else { return Err(settings.refusal("eos_token_id", "a token")) };
        let beams = settings.optional_size("num_beams")?.unwrap_or(1);
        if beams > MAX_BEAMS {
            return Err(settings.refusal("num_beams", format!("at most {MAX_BEAMS}")));
        }
        let mut search = BeamSearch::new(beams, start, end);
        search.returned = settings.optional_size("num_return_sequences")?.unwrap_or(1);
        if search.returned > beams {
            return Err(settings.refusal("num_return_sequences", format!("at most {beams}, the beams")));
        }
        search.ends = ends;
        search.length_penalty = settings.number("length_penalty")?.unwrap_or(search.length_penalty);
        search.early_stopping = match settings.get("early_stopping") {
            None | Some(Value::Bool(false)) => EarlyStopping::No,
            Some(Value::Bool(true)) => EarlyStopping::Yes,
            Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
            Some(_) => return Err(settings.refusal("early_stopping", "true, false or \"never\"")),
        };
        // The start token is new to nobody.
        let new = settings.optional_size("max_new_tokens")?.map(|new| new + 1);
        let most = new.or(settings.optional_size("max_length")?);
        search.max_length =
            most.unwrap_or_else(|| (search.max_length + 1).min(positions(&self.target).unwrap_or(usize::MAX)));
        let new = read.count("min_new_tokens")?.map(|new| new + 1);
        search.min_length = new.or(read.count("min_length")?).unwrap_or(0);
        search.no_repeat_ngram = read.count("no_repeat_ngram_size")?.unwrap_or(0);
        search.banned = read.runs("bad_words_ids")?;
        search.banned.extend(read.tokens("suppress_tokens")?.into_iter().map(|token| vec![token]));
        search.renormalized = settings.flag("renormalize_logits", false)?;
        search.forced_first = read.token("forced_bos_token_id")?;
        search.forced_last = read.token("forced_eos_token_id")?;
        Ok(search)
    }
}

/// Settings of a vocabulary.
struct Read<'a> {
    settings: &'a Config,
    vocabulary: usize,
}

impl Read<'_> {
    /// A number of tokens, 0 included.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        if self.settings.get(key).is_some_and(|value| value.as_u64() == Some(0)) {
            return Ok(Some(0));
        }
        self.settings.optional_size(key)
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        token(self.settings, key, self.vocabulary)
    }

    fn token_of(&self, value: &Value) -> Option<u32> {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < self.vocabulary)
    }

    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let all = |value: &Value| value.as_array()?.iter().map(|value| self.token_of(value)).collect::<Option<Vec<_>>>();
        let Some(value) = self.settings.get(key) else { return Ok(Vec::new()) };
        all(value).ok_or_else(|| self.settings.refusal(key, format!("tokens below {}", self.vocabulary)))
    }

    fn runs(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let run = |value: &Value| {
            let run = value.as_array().filter(|run| !run.is_empty())?;
            run.iter().map(|value| self.token_of(value)).collect::<Option<Vec<_>>>()
        };
        let Some(value) = self.settings.get(key) else { return Ok(Vec::new()) };
        let all = value.as_array().and_then(|runs| runs.iter().map(run).collect());
        all.ok_or_else(|| self.settings.refusal(key, format!("lists of tokens below {}", self.vocabulary)))
    }
}
