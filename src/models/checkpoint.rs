//! Checkpoints: safetensors files and their `config.json`, memory-mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::Dtype;

use super::config::Config;
use super::header::{self, Entry};
use crate::error::{Error, Result};

/// What checkpoints put in front of the names of a base model, or leave out.
const PREFIXES: [&str; 3] = ["bert.", "model.", "transformer."];

/// The names of a norm's tensors in checkpoints that came from TensorFlow.
const OLD_NAMES: [(&str, &str); 2] = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];

/// The largest `config.json` or index that is read.
const MOST_TEXT: u64 = 64 << 20;

/// A model as it is published: a `config.json` and one or several safetensors files.
///
/// Files are memory-mapped: opening reads their headers only, and what is uploaded is read once, where it lies. Headers are checked before
/// anything else is believed of them; nothing is read beyond a file's end. As long as a checkpoint is open its files must stay as they
/// are: where one is overwritten its weights are others, and where one is cut short the operating system ends the process.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    /// `generation_config.json`, where there is one.
    generation: Option<Config>,
    files: Vec<Bytes>,
    tensors: HashMap<String, (usize, Entry)>,
}

/// A tensor of a checkpoint, where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    /// Its name in the checkpoint.
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) sizes: &'a [usize],
    pub(super) bytes: &'a [u8],
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Checkpoint {
    /// Opens a folder, or one `.safetensors` file with `config.json` beside it.
    ///
    /// A folder has `config.json`, `generation_config.json` where there is one, and either `model.safetensors` or the files that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a file that is missing, cannot be read, or is corrupt, and for an index that names files outside
    /// the folder, or tensors that their files do not have.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            let folder = path.parent().unwrap_or(Path::new(""));
            return Self::open_files(folder.join("config.json"), &[path]);
        }
        let (config, whole, index) =
            (path.join("config.json"), path.join("model.safetensors"), path.join("model.safetensors.index.json"));
        if whole.is_file() {
            return Self::open_files(config, &[whole]);
        }
        if !index.is_file() {
            let problem =
                "neither model.safetensors nor model.safetensors.index.json in this folder; other formats are not read";
            return Err(Error::checkpoint(path.display(), problem));
        }
        let (mut shards, mut numbers, mut places) = (Vec::new(), HashMap::new(), HashMap::new());
        for (tensor, file) in weight_map(&index)? {
            let number = *numbers.entry(file).or_insert_with_key(|file| {
                shards.push(file.clone());
                shards.len() - 1
            });
            places.insert(tensor, number);
        }
        let files = shards.iter().map(|shard| map(&path.join(shard))).collect::<Result<Vec<_>>>()?;
        let named: Vec<String> = shards.iter().map(|shard| path.join(shard).display().to_string()).collect();
        let mut parsed = parse_all(&named, &files)?;
        let mut tensors = HashMap::with_capacity(places.len());
        for (tensor, number) in places {
            let Some(entry) = parsed[number].remove(&tensor) else {
                let problem = format!("no tensor {tensor}, which the index says is here");
                return Err(Error::checkpoint(&named[number], problem));
            };
            tensors.insert(tensor, (number, entry));
        }
        Ok(Self { config: read_config(&config)?, generation: read_generation(&config)?, files, tensors })
    }

    /// Opens one or several safetensors files with the configuration `config`, and `generation_config.json` beside that where there is one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a file that is missing, cannot be read, or is corrupt, and for a tensor that is in two of them.
    pub fn open_files(config: impl AsRef<Path>, files: &[impl AsRef<Path>]) -> Result<Self> {
        let named: Vec<String> = files.iter().map(|f| f.as_ref().display().to_string()).collect();
        let files = files.iter().map(|file| map(file.as_ref())).collect::<Result<Vec<_>>>()?;
        let generation = read_generation(config.as_ref())?;
        Ok(Self { generation, ..Self::of(read_config(config.as_ref())?, &named, files)? })
    }

    /// A checkpoint in memory: the text of its `config.json`, and safetensors files as name and bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::open_files`].
    pub fn from_bytes(config: &str, files: Vec<(String, Vec<u8>)>) -> Result<Self> {
        let (named, files): (Vec<_>, Vec<_>) = files.into_iter().map(|(name, bytes)| (name, Bytes::Owned(bytes))).unzip();
        Self::of(Config::parse("config.json", config)?, &named, files)
    }

    /// The same with the text of a `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for text that is no JSON object.
    pub fn with_generation_config(self, text: &str) -> Result<Self> {
        Ok(Self { generation: Some(Config::parse("generation_config.json", text)?), ..self })
    }

    fn of(config: Config, named: &[String], files: Vec<Bytes>) -> Result<Self> {
        let mut tensors = HashMap::new();
        for (number, parsed) in parse_all(named, &files)?.into_iter().enumerate() {
            for (tensor, entry) in parsed {
                if let Some((other, _)) = tensors.insert(tensor.clone(), (number, entry)) {
                    let problem = format!("tensor {tensor} is in {} too", named[other]);
                    return Err(Error::checkpoint(&named[number], problem));
                }
            }
        }
        Ok(Self { config, generation: None, files, tensors })
    }

    /// The model's options.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the model is meant to write: `generation_config.json`, or `config.json` where there is none, as older checkpoints have it.
    #[must_use]
    pub fn generation_config(&self) -> &Config {
        self.generation.as_ref().unwrap_or(&self.config)
    }

    /// The names of the tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name, spelled as [`Checkpoint::sizes`] allows.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The sizes of a tensor, where there is one: of this name, or with one of the usual prefixes (`bert.`, `model.`, `transformer.`)
    /// more, less, or instead of another, or with the old names of a norm's tensors, `gamma` and `beta`.
    #[must_use]
    pub fn sizes(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|stored| stored.sizes)
    }

    /// Whether there are tensors of both names that are not the same, byte by byte: a configuration that ties them is not followed then, as
    /// the Transformers library does not either.
    pub(super) fn differ(&self, a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (self.find(a), self.find(b)) else { return false };
        (a.dtype, a.sizes, a.bytes) != (b.dtype, b.sizes, b.bytes)
    }

    /// The tensor that `name` means.
    pub(super) fn find(&self, name: &str) -> Option<Stored<'_>> {
        let old = OLD_NAMES.iter().find_map(|(new, old)| Some(format!("{}{old}", name.strip_suffix(new)?)));
        [Some(name.to_owned()), old].into_iter().flatten().find_map(|name| {
            let base = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(&name);
            let prefixed = PREFIXES.iter().map(|prefix| format!("{prefix}{base}"));
            let spellings = [name.clone(), base.to_owned()].into_iter().chain(prefixed);
            spellings.into_iter().find_map(|spelled| self.stored(&spelled))
        })
    }

    fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (name, (file, entry)) = self.tensors.get_key_value(name)?;
        let bytes = self.files.get(*file)?.get(entry.bytes.clone())?;
        Some(Stored { name, dtype: entry.dtype, sizes: &entry.sizes, bytes })
    }
}

fn parse_all(named: &[String], files: &[Bytes]) -> Result<Vec<HashMap<String, Entry>>> {
    let parse = |(name, bytes): (&String, &Bytes)| header::parse(bytes).map_err(|e| Error::checkpoint(name, e));
    named.iter().zip(files).map(parse).collect()
}

/// Opens a file, and nothing else: a pipe waits for a writer as soon as it is opened, and a device need not end.
fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |e: std::io::Error| Error::checkpoint(path.display(), e);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::checkpoint(path.display(), "not a file"));
    }
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((file, bytes))
}

fn map(path: &Path) -> Result<Bytes> {
    let (file, bytes) = open(path)?;
    if bytes == 0 {
        return Ok(Bytes::Owned(Vec::new()));
    }
    // SAFETY: the map is read-only and private to this process; its bytes are only ever copied out, as plain numbers of which any
    // value is valid, and never outlive it. That nobody changes the file meanwhile is asked of the caller in `Checkpoint`.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::checkpoint(path.display(), e))?;
    Ok(Bytes::Mapped(map))
}

fn read_text(path: &Path) -> Result<String> {
    let (file, bytes) = open(path)?;
    let mut text = String::new();
    // Whatever size a file is said to have, no more than this is read of it.
    if bytes <= MOST_TEXT {
        file.take(MOST_TEXT + 1).read_to_string(&mut text).map_err(|e| Error::checkpoint(path.display(), e))?;
    }
    let bytes = bytes.max(text.len() as u64);
    if bytes > MOST_TEXT {
        return Err(Error::checkpoint(path.display(), format!("{bytes} bytes, of at most {MOST_TEXT}")));
    }
    Ok(text)
}

fn read_config(path: &Path) -> Result<Config> {
    Config::parse(&path.display().to_string(), &read_text(path)?)
}

/// What is beside a `config.json`.
fn read_generation(config: &Path) -> Result<Option<Config>> {
    let path = config.with_file_name("generation_config.json");
    if path.is_file() { read_config(&path).map(Some) } else { Ok(None) }
}

/// Tensors and the files that an index says they are in, files of the index's own folder.
fn weight_map(index: &Path) -> Result<Vec<(String, String)>> {
    let failed = |problem: String| Err(Error::checkpoint(index.display(), problem));
    let text = read_text(index)?;
    let parsed: serde_json::Value = match serde_json::from_str(&text) {
        Ok(parsed) => parsed,
        Err(e) => return failed(format!("no JSON: {e}")),
    };
    let Some(entries) = parsed.get("weight_map").and_then(serde_json::Value::as_object).filter(|m| !m.is_empty()) else {
        return failed("no object weight_map with tensors in it".into());
    };
    let mut places = Vec::with_capacity(entries.len());
    for (tensor, file) in entries {
        let plain = file.as_str().filter(|file| is_plain(file));
        let Some(file) = plain else {
            return failed(format!("weight_map: {tensor}: expected the name of a file in this folder, found {file}"));
        };
        places.push((tensor.clone(), file.to_owned()));
    }
    Ok(places)
}

/// Whether a name is that of a file in the same folder, on every system.
fn is_plain(file: &str) -> bool {
    let path = PathBuf::from(file);
    !file.contains(['/', '\\', ':', '\0']) && path.file_name().is_some_and(|name| name == file)
}
