//! Runs cases that others made and says which of them this machine's GPU gets right.
//!
//! ```text
//! cargo run --release --example conformance -- PATH…        files, or folders with .safetensors files in them
//!     --adapter NAME        part of an adapter's name, in any case; the fastest one otherwise
//!     --list-adapters       names the adapters and ends
//! ```
//!
//! A case is one safetensors file. Its metadata has `suite` (`onnx`, `pytorch` or `huggingface`), `op` and
//!
//! * for ONNX `attrs` (JSON), `opset`, `inputs` and `outputs` (the node's arguments, JSON, "" for one left out), `rtol` and `atol`,
//! * for PyTorch `attrs` and `call` (JSON: the call's arguments that are no tensors),
//! * for Hugging Face `config` (the model's `config.json`).
//!
//! Its tensors are inputs (`in.NAME`), weights (`w.NAME`) and expected outputs (`out.NAME`). Every expected output is computed on
//! the GPU and compared: an element may be off by 2e-5 of the tensor's largest |expected| and 1e-4 of its own, or by the file's own
//! `atol` and `rtol` where those allow more; by 1e-2 of either where an input is f16. NaN is wrong where it is not expected, and
//! infinities must be equal. Ids must be the expected ones. Models go through the crate's checkpoint loader, and are computed on the
//! CPU reference as well.
//!
//! What the crate does not do leaves a case out: an operator, an attribute that nothing here reads, a configuration that it refuses, and rows
//! that see no key where something else than zeros is expected of them.
//!
//! One line a case:
//!
//! ```text
//! ok NAME  worst error 2.4e-7 of allowance 1.9e-5
//! FAIL NAME  out.Y[0, 3]: expected 1.5, found 1.6: …
//! unsupported: NAME: operator Conv
//! 3 passed, 1 failed, 1 unsupported
//! ```
//!
//! The exit code is 1 where a case failed (a file that cannot be read is a failed case), 2 where there is no adapter.
//!
//! The host moves, pads, averages and scales tensors (masks of other ranks, sequence-first layouts, a past in front of the keys);
//! what is compared comes from the crate's kernels and layer programs.

#[path = "runner.rs"]
mod runner;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tileformer::convenience::{NO_ADAPTER, Setup, adapters};

use runner::gpu;
use runner::judge::Verdict;
use runner::suite::{self, Tally};

/// Runs conformance cases on a GPU.
#[derive(Debug, Parser)]
struct Args {
    /// Case files (safetensors), or folders of them
    #[arg(required_unless_present = "list_adapters")]
    paths: Vec<PathBuf>,
    /// Part of the adapter's name, in any case
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Name the adapters of this machine
    #[arg(long)]
    list_adapters: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list_adapters {
        return list_adapters();
    }
    let session = match pollster::block_on(gpu::Session::open(&Setup { adapter: args.adapter, ..Setup::default() })) {
        Ok(session) => session,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut tally = Tally::default();
    for path in &args.paths {
        match suite::files(path) {
            Ok(files) => {
                for file in files {
                    report(&suite::name(&file), &pollster::block_on(suite::run_file(&session, &file)), &mut tally);
                }
            }
            Err(reason) => report(&path.display().to_string(), &Verdict::Failed(reason), &mut tally),
        }
    }
    println!("{} passed, {} failed, {} unsupported", tally.passed, tally.failed, tally.unsupported);
    if tally.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Counts and prints a case.
fn report(name: &str, verdict: &Verdict, tally: &mut Tally) {
    tally.count(verdict);
    match verdict {
        Verdict::Passed(worst) => {
            println!("ok {name}  worst error {:.1e} of allowance {:.1e}", worst.error, worst.allowance);
        }
        Verdict::Failed(reason) => println!("FAIL {name}  {reason}"),
        Verdict::Unsupported(reason) => println!("unsupported: {name}: {reason}"),
    }
}

fn list_adapters() -> ExitCode {
    let found = adapters();
    if found.is_empty() {
        eprintln!("{NO_ADAPTER}");
        return ExitCode::from(2);
    }
    for info in found {
        println!("{} ({:?}, {:?})", info.name, info.backend, info.device_type);
    }
    ExitCode::SUCCESS
}
