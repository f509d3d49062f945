//! The words that fit best where a text has `[MASK]`, by a BERT with its masked-language head:
//!
//! ```text
//! cargo run --release --example fill_mask -- --model bert-base-uncased "The capital of France is [MASK]."
//! cargo run --release --example fill_mask -- --model bert-base-chinese "今天天气很[MASK]。"
//! ```
//!
//! `--model DIR` is a folder with config.json, safetensors and tokenizer.json or vocab.txt.

mod app;
#[path = "../shared/cli.rs"]
mod cli;
#[path = "../shared/engine.rs"]
mod engine;
#[path = "../shared/folder.rs"]
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
