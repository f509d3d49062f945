//! `config.json`: a model's sizes and options.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::Activation;

/// The largest size that a configuration may name: no tensor has more rows or columns.
const MOST: usize = 1 << 30;

/// The most classes that are named by their number.
const MOST_LABELS: usize = 1 << 16;

/// The options of a model, by the keys of its `config.json`; null counts as left out. Each error names the key.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    file: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads the text of a `config.json`; `file` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for text that is no JSON object.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(values) => Ok(Self { file: file.to_owned(), values }),
            Err(e) => Err(Error::checkpoint(file, format!("no JSON object: {e}"))),
        }
    }

    /// The value of a key, where there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// The error for a value that cannot be used: what is supported instead.
    #[must_use]
    pub fn refusal(&self, key: &str, expected: impl ToString) -> Error {
        let found = self.get(key).map_or_else(|| "nothing".into(), Value::to_string);
        Error::checkpoint(format!("{}: {key}", self.file), format!("expected {}, found {found}", expected.to_string()))
    }

    fn read<'a, T>(&'a self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.refusal(key, kind))).transpose()
    }

    /// A size from 1 to 2³⁰, where there is one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for anything else.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let size = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MOST).contains(v));
        self.read(key, "a size from 1 to 2^30", size)
    }

    /// A size from 1 to 2³⁰ that must be there.
    ///
    /// # Errors
    /// As [`Config::optional_size`].
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.refusal(key, "a size from 1 to 2^30"))
    }

    /// A size, `default` where its key is left out; `None` where it is null.
    pub(super) fn size_or(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.values.contains_key(key) { self.optional_size(key) } else { Ok(default) }
    }

    /// A number of things, 0 included, where there is one.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a number from 0 to 2^30", |v| {
            v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v <= MOST)
        })
    }

    /// Strings, where there are any.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.read(key, "strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// The number of layers: a size of at most 1024.
    ///
    /// # Errors
    /// As [`Config::size`].
    pub fn layers(&self, key: &str) -> Result<usize> {
        let layers = self.size(key)?;
        if layers <= 1024 { Ok(layers) } else { Err(self.refusal(key, "at most 1024 layers")) }
    }

    /// A finite number, where there is one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for anything else.
    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        self.read(key, "a finite number", |v| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite()))
    }

    /// A boolean, or `default` where it is left out.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for anything else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string, where there is one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for anything else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// The options of an object inside this one, where there is one with any.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for anything else.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let values = self.read(key, "an object", Value::as_object)?.filter(|values| !values.is_empty());
        Ok(values.map(|values| Self { file: format!("{}: {key}", self.file), values: values.clone() }))
    }

    /// Refuses another value under a second name of `key` than under its first one.
    pub(super) fn expect_alias(&self, key: &str, alias: &str) -> Result<()> {
        match (self.get(key), self.get(alias)) {
            (Some(value), Some(other)) if value != other => Err(self.refusal(alias, format!("{value}, as {key} has it"))),
            _ => Ok(()),
        }
    }

    /// Refuses an attention that sees later tokens, or parts of a text alone.
    pub(super) fn expect_causal(&self, positions: usize) -> Result<()> {
        if !self.flag("is_causal", true)? {
            return Err(self.refusal("is_causal", true));
        }
        self.expect_wide("attention_chunk_size", positions)
    }

    /// Refuses a size of what attention sees, a window's say, below the number of positions.
    pub(super) fn expect_wide(&self, key: &str, positions: usize) -> Result<()> {
        match self.optional_size(key)? {
            Some(size) if size < positions => Err(self.refusal(key, format!("none below {positions}, the positions"))),
            _ => Ok(()),
        }
    }

    /// Refuses another text than one of `supported`; left out is fine.
    ///
    /// # Errors
    /// [`Error::Checkpoint`].
    pub fn expect(&self, key: &str, supported: &[&str]) -> Result<()> {
        match self.text(key)? {
            Some(text) if !supported.contains(&text) => Err(self.refusal(key, supported.join(" or "))),
            _ => Ok(()),
        }
    }

    /// An activation by the name that the Transformers library gives it, or `default` where it is left out.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for one that the crate does not have.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.text(key)? else { return Ok(default) };
        activation(name).ok_or_else(|| {
            self.refusal(key, "relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu, swish, tanh or linear")
        })
    }

    /// The names of the classes, from `id2label` or else `num_labels` of them; two where neither is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for labels that are not numbered from 0 on, and for more than 65536 without names.
    pub fn labels(&self) -> Result<Vec<String>> {
        let Some(labels) = self.read("id2label", "an object of labels", Value::as_object)? else {
            let count = self.optional_size("num_labels")?.unwrap_or(2);
            if count > MOST_LABELS {
                return Err(self.refusal("num_labels", format!("at most {MOST_LABELS} classes")));
            }
            return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
        };
        let label = |i: usize| labels.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned);
        let found: Option<Vec<String>> = (0..labels.len()).map(label).collect();
        found
            .filter(|l| !l.is_empty())
            .ok_or_else(|| self.refusal("id2label", "strings under \"0\", \"1\", … without a gap"))
    }
}

/// An activation by the name that the Transformers library gives it.
pub(super) fn activation(name: &str) -> Option<Activation> {
    match name {
        "relu" => Some(Activation::Relu),
        "gelu" | "gelu_python" => Some(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Some(Activation::GeluTanh),
        "silu" | "swish" => Some(Activation::Silu),
        "tanh" => Some(Activation::Tanh),
        "linear" => Some(Activation::Identity),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::parse("config.json", text)
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.map_or_else(|e| e.to_string(), |v| format!("no error but {v:?}"))
    }

    #[test]
    fn values_have_their_kinds_and_errors_their_keys() -> Result<()> {
        let c = config(
            r#"{"a": 7, "b": -1, "c": 1e40, "d": "swish", "e": null, "f": true, "g": 2.5, "h": "warp", "i": 4000000000}"#,
        )?;
        assert_eq!((c.size("a")?, c.optional_size("e")?, c.flag("f", false)?, c.flag("e", true)?), (7, None, true, true));
        assert_eq!((c.number("g")?, c.activation("d", Activation::Relu)?), (Some(2.5), Activation::Silu));
        assert_eq!(c.activation("e", Activation::Gelu)?, Activation::Gelu);
        assert_eq!(message(c.size("b")), "config.json: b: expected a size from 1 to 2^30, found -1");
        assert_eq!(message(c.size("e")), "config.json: e: expected a size from 1 to 2^30, found nothing");
        assert_eq!(message(c.number("c")), "config.json: c: expected a finite number, found 1e+40");
        assert!(message(c.activation("h", Activation::Relu)).starts_with("config.json: h: expected relu, gelu"));
        assert_eq!(message(c.expect("h", &["absolute"])), "config.json: h: expected absolute, found \"warp\"");
        for key in ["i", "d", "f", "g"] {
            assert!(message(c.size(key)).contains(key));
        }
        assert!(message(c.layers("i")).contains("config.json: i"));
        assert!(message(config("[1]")).starts_with("config.json: no JSON object"));
        Ok(())
    }

    #[test]
    fn labels_are_numbered() -> Result<()> {
        assert_eq!(config(r#"{"id2label": {"1": "B", "0": "A"}}"#)?.labels()?, ["A", "B"]);
        assert_eq!(config(r#"{"num_labels": 3}"#)?.labels()?.len(), 3);
        assert_eq!(config("{}")?.labels()?.len(), 2);
        for text in [
            r#"{"id2label": {"0": "A", "2": "B"}}"#,
            r#"{"id2label": {}}"#,
            r#"{"id2label": {"0": 1}}"#,
            r#"{"id2label": 1}"#,
        ] {
            assert!(message(config(text)?.labels()).contains("id2label"), "{text}");
        }
        Ok(())
    }
}
