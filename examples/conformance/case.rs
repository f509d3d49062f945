//! A case: one safetensors file with its inputs, weights, expected outputs, and in its metadata everything that is no tensor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::host::Array;
use super::judge::{Outcome, Stop, failed, unsupported};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// f32, or another float that is converted.
    Float(Array<f32>),
    Bool(Array<bool>),
    Int(Array<i64>),
    /// Elements that no case of the known suites has.
    Other(Dtype),
}

impl Value {
    /// The floats that this must be.
    pub(crate) fn floats(&self, what: &str) -> Outcome<&Array<f32>> {
        match self {
            Self::Float(array) => Ok(array),
            Self::Bool(_) | Self::Int(_) => failed(format!("{what}: expected floats")),
            Self::Other(dtype) => unsupported(format!("{what}: elements of type {dtype:?}")),
        }
    }
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    metadata: HashMap<String, String>,
    /// By their names in the file: `in.NAME`, `w.NAME`, `out.NAME`.
    tensors: BTreeMap<String, Value>,
    /// The weights by their names without `w.`, as they are stored, where a model is to read them.
    stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    f16: bool,
}

impl Case {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        Self::parse(&std::fs::read(path).map_err(|e| Stop::Failed(e.to_string()))?)
    }

    /// Reads the bytes of a file.
    pub(crate) fn parse(bytes: &[u8]) -> Outcome<Self> {
        let malformed = |e: safetensors::SafeTensorError| Stop::Failed(format!("no safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut case = Self { metadata, tensors: BTreeMap::new(), stored: Vec::new(), f16: false };
        let is_model = case.metadata.contains_key("config");
        for (name, view) in file.iter() {
            if let Some(weight) = name.strip_prefix("w.").filter(|_| is_model) {
                case.stored.push((weight.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
            case.f16 |= view.dtype() == Dtype::F16 && !name.starts_with("out.");
            case.tensors.insert(name.to_owned(), value(&view)?);
        }
        Ok(case)
    }

    /// Whether any input or weight is f16.
    pub(crate) fn is_f16(&self) -> bool {
        self.f16
    }

    /// Who made the case. A file with neither suite nor operator is none.
    pub(crate) fn suite(&self) -> Outcome<&str> {
        if self.metadata.contains_key("suite") || self.metadata.contains_key("op") {
            self.text("suite")
        } else {
            unsupported("a file without suite and op in its metadata")
        }
    }

    /// A string of the metadata.
    pub(crate) fn text(&self, name: &str) -> Outcome<&str> {
        match self.metadata.get(name) {
            Some(text) => Ok(text),
            None => failed(format!("no {name} in the metadata")),
        }
    }

    /// A number of the metadata, where there is one.
    pub(crate) fn number(&self, name: &str) -> Outcome<Option<f64>> {
        match self.metadata.get(name).map(|text| text.trim().parse::<f64>()) {
            None => Ok(None),
            Some(Ok(number)) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            Some(_) => failed(format!("{name} in the metadata is no number of at least 0")),
        }
    }

    /// A JSON object of the metadata.
    pub(crate) fn attributes(&self, name: &'static str) -> Outcome<Attributes> {
        match serde_json::from_str(self.text(name)?) {
            Ok(values) => Ok(Attributes { name, values }),
            Err(e) => failed(format!("{name} in the metadata is no JSON object: {e}")),
        }
    }

    /// A JSON list of names of the metadata.
    pub(crate) fn names(&self, name: &str) -> Outcome<Vec<String>> {
        serde_json::from_str(self.text(name)?)
            .map_err(|e| Stop::Failed(format!("{name} in the metadata is no JSON list of names: {e}")))
    }

    /// A tensor by its full name.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.tensors.get(name)
    }

    /// Leaves out a case that has more inputs than these.
    pub(crate) fn expect_inputs(&self, known: &[&str]) -> Outcome<()> {
        let more = self.tensors.keys().find(|name| name.strip_prefix("in.").is_some_and(|name| !known.contains(&name)));
        more.map_or(Ok(()), |name| unsupported(format!("the input {name}")))
    }

    /// A float tensor by its full name, where there is one.
    pub(crate) fn optional(&self, name: &str) -> Outcome<Option<&Array<f32>>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.floats(name).map(Some),
        }
    }

    /// A float tensor by its full name.
    pub(crate) fn float(&self, name: &str) -> Outcome<&Array<f32>> {
        self.optional(name)?.map_or_else(|| failed(format!("no {name} in the file")), Ok)
    }

    /// The weights as a checkpoint's file.
    pub(crate) fn weights(&self) -> Outcome<Vec<u8>> {
        let malformed = |e: safetensors::SafeTensorError| Stop::Failed(format!("weights: {e}"));
        let mut views = Vec::new();
        for (name, dtype, sizes, bytes) in &self.stored {
            views.push((name.as_str(), TensorView::new(*dtype, sizes.clone(), bytes).map_err(malformed)?));
        }
        safetensors::serialize(views, None).map_err(malformed)
    }

    /// Whether NaN is expected anywhere.
    pub(crate) fn expects_nan(&self) -> bool {
        let is_nan = |value: &Value| matches!(value, Value::Float(array) if array.values().iter().any(|v| v.is_nan()));
        self.outputs().any(|(_, value)| is_nan(value))
    }

    /// The expected outputs, by their names without `out.`.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.tensors.iter().filter_map(|(name, value)| Some((name.strip_prefix("out.")?, value)))
    }
}

fn value(view: &TensorView<'_>) -> Outcome<Value> {
    let (sizes, data) = (view.shape(), view.data());
    match view.dtype() {
        Dtype::F32 => Array::new(sizes, elements(data, f32::from_le_bytes)).map(Value::Float),
        Dtype::F64 => Array::new(sizes, elements(data, |b| f64::from_le_bytes(b) as f32)).map(Value::Float),
        Dtype::F16 => Array::new(sizes, elements(data, |b| half::f16::from_le_bytes(b).to_f32())).map(Value::Float),
        Dtype::BOOL => Array::new(sizes, data.iter().map(|&b| b != 0).collect()).map(Value::Bool),
        Dtype::I32 => Array::new(sizes, elements(data, |b| i64::from(i32::from_le_bytes(b)))).map(Value::Int),
        Dtype::I64 => Array::new(sizes, elements(data, i64::from_le_bytes)).map(Value::Int),
        other => Ok(Value::Other(other)),
    }
}

fn elements<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| read(chunk)).collect()
}

/// Options in JSON; a null counts as left out.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    name: &'static str,
    values: serde_json::Map<String, serde_json::Value>,
}

impl Attributes {
    fn get<'a, T>(&'a self, key: &str, kind: &str, read: impl Fn(&'a serde_json::Value) -> Option<T>) -> Outcome<Option<T>> {
        match self.values.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(found) => match read(found) {
                Some(value) => Ok(Some(value)),
                None => failed(format!("{key} in {}: expected {kind}, found {found}", self.name)),
            },
        }
    }

    /// Leaves out a case that has more options than these: what is not read could change the result.
    pub(crate) fn expect(&self, known: &[&str]) -> Outcome<()> {
        let more = self.values.iter().find(|(key, value)| !value.is_null() && !known.contains(&key.as_str()));
        more.map_or(Ok(()), |(key, _)| unsupported(format!("attribute {key}")))
    }

    pub(crate) fn int(&self, key: &str) -> Outcome<Option<i64>> {
        self.get(key, "an integer", serde_json::Value::as_i64)
    }

    pub(crate) fn float(&self, key: &str) -> Outcome<Option<f32>> {
        self.get(key, "a number", |v| v.as_f64().map(|v| v as f32))
    }

    /// A size that must be there.
    pub(crate) fn size(&self, key: &str) -> Outcome<usize> {
        let size = self.get(key, "a size", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))?;
        size.map_or_else(|| failed(format!("no {key} in {}", self.name)), Ok)
    }

    /// A boolean, or an integer that is one; false where it is left out.
    pub(crate) fn flag(&self, key: &str) -> Outcome<bool> {
        let flag = self.get(key, "a boolean", |v| v.as_bool().or_else(|| v.as_i64().map(|v| v != 0)))?;
        Ok(flag.unwrap_or(false))
    }

    pub(crate) fn text(&self, key: &str) -> Outcome<Option<&str>> {
        self.get(key, "a string", serde_json::Value::as_str)
    }

    /// Sizes, given as one or as a list.
    pub(crate) fn sizes(&self, key: &str) -> Outcome<Vec<usize>> {
        let size = |v: &serde_json::Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        let sizes = self.get(key, "sizes", |v| match v.as_array() {
            Some(list) => list.iter().map(size).collect::<Option<Vec<_>>>(),
            None => size(v).map(|size| vec![size]),
        })?;
        sizes.map_or_else(|| failed(format!("no {key} in {}", self.name)), Ok)
    }
}
