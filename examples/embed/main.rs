//! Sentences to embeddings, by any BERT that was trained for them, such as all-MiniLM-L6-v2:
//!
//! ```text
//! sh examples/embed/fetch_minilm.sh
//! cargo run --release --example embed -- "A sentence" "Another one"
//! cargo run --release --example embed -- --file notes.txt --query "what did we decide?"
//! ```
//!
//! `--model DIR` is a folder with config.json, safetensors and tokenizer.json or vocab.txt. Texts run packed, without padding,
//! in batches of about as many tokens as `--tokens` says.

mod app;
#[path = "../shared/cli.rs"]
mod cli;
#[path = "../shared/engine.rs"]
mod engine;
#[path = "../shared/folder.rs"]
#[allow(dead_code)]
mod folder;
#[path = "../shared/sheet.rs"]
mod sheet;

use std::io;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = app::Args::parse();
    app::run(&args, io::stdin().lock(), &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
