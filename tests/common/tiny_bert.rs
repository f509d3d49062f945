//! A folder with a BERT of random weights in it, small enough for tests: the model of a conformance case, with a vocabulary.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

const CASE: &[u8] = include_bytes!("../data/conformance/huggingface/bert_0.safetensors");

/// A folder that goes when this does.
pub struct TinyBert {
    pub path: PathBuf,
}

impl TinyBert {
    /// The folder of test `name`, with the weights that `keep` takes.
    pub fn new(name: &str, keep: impl Fn(&str) -> bool) -> Self {
        let path = std::env::temp_dir().join(format!("tileformer-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(CASE).unwrap();
        fs::write(path.join("config.json"), &header.metadata().as_ref().unwrap()["config"]).unwrap();
        let case = SafeTensors::deserialize(CASE).unwrap();
        let weights = case.iter().filter_map(|(name, view)| Some((name.strip_prefix("w.")?.to_owned(), view)));
        let weights = weights.filter(|(name, _)| keep(name));
        safetensors::serialize_to_file(weights, None, &path.join("model.safetensors")).unwrap();
        fs::write(path.join("vocab.txt"), vocabulary().join("\n")).unwrap();
        Self { path }
    }

    pub fn argument(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path.join(file)).unwrap();
    }
}

impl Drop for TinyBert {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// 101 tokens: what BERT needs, some words, some characters of Chinese, letters as beginnings and as pieces.
fn vocabulary() -> Vec<String> {
    let mut words: Vec<String> = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on a mat dog ran . , ! & < 今 天 气 很 好"
        .split(' ')
        .map(Into::into)
        .collect();
    words.extend(('b'..='z').map(String::from));
    words.extend(('a'..='z').map(|c| format!("##{c}")));
    let missing = 101 - words.len();
    words.extend((0..missing).map(|i| format!("word{i}")));
    words
}

/// Every line of an SVG's text, trimmed.
pub fn svg_lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}
