//! Text to ids and back, by whichever files a folder has.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::pieces::Pieces;
use crate::translator::Result;

/// A folder's vocabulary.
pub(crate) enum Text {
    /// Marian's files.
    Pieces(Box<Pieces>),
    /// tokenizer.json
    Tokenizer(Box<Tokenizer>),
}

impl Text {
    /// Reads source.spm and vocab.json, or tokenizer.json where there is no source.spm.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        if folder.join("source.spm").exists() {
            return Ok(Self::Pieces(Box::new(Pieces::open(folder)?)));
        }
        if !file.exists() {
            return Err(format!("{}: neither source.spm with vocab.json nor tokenizer.json", folder.display()).into());
        }
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| e.to_string())?;
        Ok(Self::Tokenizer(Box::new(tokenizer)))
    }

    /// A text's ids, the end token behind them.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Pieces(pieces) => pieces.encode(text),
            Self::Tokenizer(tokenizer) => {
                let ids = tokenizer.encode(text, true).map_err(|e| format!("{text:?}: {e}"))?.get_ids().to_vec();
                if ids.is_empty() { Err(format!("{text:?}: no tokens").into()) } else { Ok(ids) }
            }
        }
    }

    /// What a token is shown as by itself.
    pub(crate) fn piece(&self, id: u32) -> String {
        match self {
            Self::Pieces(pieces) => pieces.piece(id),
            Self::Tokenizer(tokenizer) => {
                tokenizer.decode(&[id], false).map_or_else(|_| format!("#{id}"), |piece| piece.trim().to_owned())
            }
        }
    }

    /// The text of ids.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Self::Pieces(pieces) => Ok(pieces.decode(ids)),
            Self::Tokenizer(tokenizer) => Ok(tokenizer.decode(ids, true).map_err(|e| e.to_string())?.trim().to_owned()),
        }
    }
}
