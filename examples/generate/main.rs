//! Text that goes on, by any GPT-2, Llama, Mistral or Qwen2:
//!
//! ```text
//! cargo run --release --example generate -- --model gpt2 "The meaning of life is"
//! cargo run --release --example generate -- --model gpt2 --temperature 0.8 --top-p 0.95 --seed 7 --tokens 200 "Once upon a time"
//! ```
//!
//! `--model DIR` is a folder with config.json, safetensors and tokenizer.json. Text appears as it is made, in pieces of a few
//! tokens; how fast it was made goes to standard error.

mod app;
#[path = "../shared/cli.rs"]
#[allow(dead_code)]
mod cli;
mod model;
#[path = "../shared/sheet.rs"]
mod sheet;

use std::io;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = app::Args::parse();
    app::run(&args, io::stdin().lock(), &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
