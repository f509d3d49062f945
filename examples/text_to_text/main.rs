//! From one text to another, by a folder of Marian's as the OPUS-MT project publishes them (Tiedemann and Thottingal, EAMT 2020), of a
//! BART, a T5 or an mT5:
//!
//! ```text
//! cargo run --release --example text_to_text -- --model opus-mt-de-en "Das ist ein Satz." "Und das noch einer."
//! cargo run --release --example text_to_text -- --model opus-mt-en-ROMANCE ">>fr<< This is a sentence."
//! cargo run --release --example text_to_text -- --model flan-t5-small "Translate to German: This is a sentence."
//! ```
//!
//! `--model DIR` has config.json, safetensors, and source.spm with vocab.json (Marian) or tokenizer.json. Texts are found by beam search, with
//! as many beams as the folder's generation_config.json or config.json says, or `--beams N`; with one each step takes the most probable token.

mod app;
#[path = "../shared/cli.rs"]
#[allow(dead_code)]
mod cli;
mod cpu;
mod pieces;
#[path = "../shared/sheet.rs"]
mod sheet;
mod text;
mod translator;

use std::io;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = app::Args::parse();
    app::run(&args, io::stdin().lock(), &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
