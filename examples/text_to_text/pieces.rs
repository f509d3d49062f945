//! Text to ids and back, as Marian's folders have it: a unigram model of pieces (Kudo, arXiv 1804.10959) in `source.spm`, SentencePiece's
//! own file, and the ids of all pieces in `vocab.json`.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{Model, NormalizedString, Normalizer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What stands for a blank inside pieces.
const BLANK: char = '▁';
const END: &str = "</s>";
const UNKNOWN: &str = "<unk>";
/// What no translation shows.
const HIDDEN: [&str; 3] = [END, UNKNOWN, "<pad>"];

/// Both directions.
pub(crate) struct Pieces {
    model: Unigram,
    normalizer: Option<Precompiled>,
    ids: HashMap<String, u32>,
    pieces: HashMap<u32, String>,
    end: u32,
    unknown: u32,
}

impl Pieces {
    /// Reads a folder's files.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        Self::new(&read("source.spm")?, &read("vocab.json")?)
    }

    /// Of the bytes of both files.
    pub(crate) fn new(spm: &[u8], vocabulary: &[u8]) -> Result<Self> {
        let ids: HashMap<String, u32> = serde_json::from_slice(vocabulary).map_err(|e| format!("vocab.json: {e}"))?;
        let id = |piece: &str| ids.get(piece).copied().ok_or_else(|| format!("vocab.json: no {piece} in it"));
        let (end, unknown) = (id(END)?, id(UNKNOWN)?);
        let File { vocabulary, unknown: at, charsmap } = File::parse(spm).ok_or("source.spm: no SentencePiece model")?;
        if vocabulary.is_empty() {
            return Err("source.spm: not a unigram model, or one without pieces".into());
        }
        let model = Unigram::from(vocabulary, at, false).map_err(|e| format!("source.spm: {e}"))?;
        let normalizer = match charsmap {
            [] => None,
            bytes => Some(Precompiled::from(bytes).map_err(|e| format!("source.spm: {e}"))?),
        };
        let pieces = ids.iter().map(|(piece, &id)| (id, piece.clone())).collect();
        Ok(Self { model, normalizer, ids, pieces, end, unknown })
    }

    /// A text's ids, the end token behind them. A language in front, `>>fr<<`, is one piece.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let trimmed = text.trim_start();
        let language = trimmed
            .find("<<")
            .map(|at| trimmed.split_at(at + 2))
            .filter(|(code, _)| code.strip_prefix(">>").is_some_and(|code| !code.contains(char::is_whitespace)));
        let (language, text) = language.map_or((None, text), |(language, text)| (Some(language), text));
        let mut ids = Vec::new();
        if let Some(language) = language {
            ids.push(*self.ids.get(language).ok_or_else(|| format!("the model knows no language {language}"))?);
        }
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut normalized).map_err(|e| format!("{text:?}: {e}"))?;
        }
        let blanks: String = normalized.get().split_whitespace().map(|word| format!("{BLANK}{word}")).collect();
        if !blanks.is_empty() {
            let tokens = self.model.tokenize(&blanks).map_err(|e| format!("{text:?}: {e}"))?;
            ids.extend(tokens.iter().map(|token| self.ids.get(&token.value).copied().unwrap_or(self.unknown)));
        }
        ids.push(self.end);
        Ok(ids)
    }

    /// What a token is shown as by itself.
    pub(crate) fn piece(&self, id: u32) -> String {
        self.pieces.get(&id).map_or_else(|| format!("#{id}"), |piece| piece.replace(BLANK, " ").trim().to_owned())
    }

    /// The text of ids.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let pieces = ids.iter().filter_map(|id| self.pieces.get(id)).filter(|piece| !HIDDEN.contains(&piece.as_str()));
        pieces.map(String::as_str).collect::<String>().replace(BLANK, " ").trim().to_owned()
    }
}

/// What is read of SentencePiece's file: ModelProto of its sentencepiece_model.proto.
struct File<'a> {
    /// Pieces with the logarithms of their probabilities; none of another kind of model.
    vocabulary: Vec<(String, f64)>,
    unknown: Option<usize>,
    /// How characters are normalised.
    charsmap: &'a [u8],
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut file = File { vocabulary: Vec::new(), unknown: None, charsmap: &[] };
        let mut unigram = true;
        for (number, value) in fields(bytes)? {
            match (number, value) {
                (1, Value::Bytes(piece)) => {
                    let (mut text, mut score) = ("", 0.0);
                    for (number, value) in fields(piece)? {
                        match (number, value) {
                            (1, Value::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?,
                            (2, Value::Word(bytes)) => score = f64::from(f32::from_le_bytes(bytes)),
                            (3, Value::Number(2)) => file.unknown = Some(file.vocabulary.len()),
                            _ => {}
                        }
                    }
                    file.vocabulary.push((text.to_owned(), score));
                }
                // trainer_spec.model_type
                (2, Value::Bytes(spec)) => {
                    unigram &= fields(spec)?.iter().all(|field| !matches!(field, (3, Value::Number(kind)) if *kind != 1));
                }
                // normalizer_spec.precompiled_charsmap
                (3, Value::Bytes(spec)) => {
                    for (number, value) in fields(spec)? {
                        if let (2, Value::Bytes(bytes)) = (number, value) {
                            file.charsmap = bytes;
                        }
                    }
                }
                _ => {}
            }
        }
        if !unigram {
            file.vocabulary.clear();
        }
        Some(file)
    }
}

/// A field of a message in the wire format of protocol buffers.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Word([u8; 4]),
    Other,
}

/// The fields of a message with their numbers.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(number(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                Value::Other
            }
            2 => {
                let length = usize::try_from(number(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => Value::Word(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// A number of up to ten bytes, seven bits each, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << (7 * place).min(63);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}
