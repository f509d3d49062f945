//! English dates to ISO dates, by a small encoder-decoder Transformer of 2017 that runs on this crate's layers.
//!
//! ```text
//! cargo run --release --example translate -- "the 3rd of May, 1979"
//! ```
//!
//! [`model`] reads the file, [`text`] makes ids of text and back, [`gpu`] (by [`programs`]) and [`cpu`] translate ids, [`plot`]
//! draws what the decoder looked at, [`app`] puts them together. `train.py` beside this file trained the model.

mod app;
mod cpu;
mod engine;
mod gpu;
mod model;
mod plot;
mod programs;
mod text;

use std::io;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = app::Args::parse();
    app::run(&args, io::stdin().lock(), &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
