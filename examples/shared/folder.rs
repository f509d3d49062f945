//! A folder with a BERT in it: weights, tokenizer, and what sentence-transformers says about embeddings.

use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tileformer::models::Checkpoint;
use tileformer::models::bert::Bert;
use tileformer::spec::Pooling;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{Tokenizer, TruncationParams};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A model that is open, its weights not read yet.
pub(crate) struct Folder {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) bert: Bert,
    tokenizer: Tokenizer,
    /// The most tokens that are read of a text.
    pub(crate) longest: usize,
}

/// A text as the model reads it.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) segment_ids: Vec<u32>,
    pub(crate) tokens: Vec<String>,
    /// Whether there was more of it than the model reads.
    pub(crate) cut: bool,
}

impl Folder {
    /// Opens a folder.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(format!("{}: no such folder; --model names another, and `sh examples/embed/fetch_minilm.sh` fetches a model for sentences", path.display()).into());
        }
        let checkpoint = Checkpoint::open(path)?;
        let mut bert = Bert::new(&checkpoint)?;
        let mut longest = bert.embedding.positions.unwrap_or(512);
        let sentences = |file: &str| read_json(&path.join(file));
        if let Some(stated) = sentences("sentence_bert_config.json")?.and_then(|v| v["max_seq_length"].as_u64()) {
            longest = longest.min(usize::try_from(stated)?).max(3);
        }
        if let Some(pooling) = sentences("1_Pooling/config.json")? {
            let on = |key: &str| pooling[key].as_bool().unwrap_or(false);
            bert.pooling = match (on("pooling_mode_cls_token"), on("pooling_mode_mean_tokens")) {
                (true, false) => Pooling::First,
                (false, true) => Pooling::Mean,
                _ => return Err("1_Pooling/config.json: expected the first token or the mean of all, one of them".into()),
            };
        }
        if let Some(modules) = sentences("modules.json")? {
            let kinds = modules.as_array().into_iter().flatten().filter_map(|m| m["type"].as_str());
            bert.normalize = kinds.into_iter().any(|kind| kind.ends_with("Normalize"));
        }
        let mut tokenizer = tokenizer(path)?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: longest, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| e.to_string())?;
        Ok(Self { checkpoint, bert, tokenizer, longest })
    }

    /// Text to ids.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoded> {
        let encoding = self.tokenizer.encode(text, true).map_err(|e| format!("{text:?}: {e}"))?;
        let ids = encoding.get_ids().to_vec();
        tileformer::spec::check_ids("tokenizer", &ids, self.bert.embedding.vocabulary)?;
        Ok(Encoded {
            text: text.to_owned(),
            ids,
            segment_ids: encoding.get_type_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            cut: !encoding.get_overflowing().is_empty(),
        })
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token of an id.
    pub(crate) fn token(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_else(|| format!("#{id}"))
    }
}

/// A JSON file, where there is one.
fn read_json(path: &PathBuf) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
    Ok(Some(serde_json::from_str(&text).map_err(|e| failed(&e))?))
}

/// `tokenizer.json`, or BERT's tokenizer over the words of `vocab.txt`.
fn tokenizer(path: &Path) -> Result<Tokenizer> {
    let (file, words) = (path.join("tokenizer.json"), path.join("vocab.txt"));
    let failed = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    if file.is_file() {
        return Ok(Tokenizer::from_file(&file).map_err(|e| failed(&file, &e))?);
    }
    if !words.is_file() {
        return Err(failed(path, &"neither tokenizer.json nor vocab.txt in this folder").into());
    }
    let model = WordPiece::from_file(&words.display().to_string()).unk_token("[UNK]".into()).build();
    let mut tokenizer = Tokenizer::new(model.map_err(|e| failed(&words, &e))?);
    let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| failed(&words, &format!("no {token} in it")));
    let specials = [("[CLS]", id("[CLS]")?), ("[SEP]", id("[SEP]")?)].map(|(token, id)| (token.to_owned(), id));
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .and_then(|b| b.try_pair("[CLS] $A [SEP] $B:1 [SEP]:1"))?
        .special_tokens(specials.to_vec())
        .build()?;
    let lowercase =
        read_json(&path.join("tokenizer_config.json"))?.and_then(|v| v["do_lower_case"].as_bool()).unwrap_or(true);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(template));
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|token| tokenizers::AddedToken::from(token, true));
    tokenizer.add_special_tokens(&specials);
    Ok(tokenizer)
}
