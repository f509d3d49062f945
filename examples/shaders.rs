//! Writes the WGSL of every variant that the crate can generate: `cargo run --example shaders -- DIR`.
//!
//! `DIR/webgpu/` gets what any WebGPU implementation may see, browsers included, `DIR/native/` what needs an extension of wgpu's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

/// Writes the WGSL of every variant that the crate can generate.
#[derive(Parser)]
struct Arguments {
    /// The folder to write to; made where it is not there.
    dir: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { dir } = Arguments::parse();
    match write(&dir) {
        Ok([webgpu, native]) => {
            println!("{webgpu} shaders in {}", dir.join("webgpu").display());
            println!("{native} shaders in {}", dir.join("native").display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes both folders, and says how many shaders each has.
fn write(dir: &Path) -> io::Result<[usize; 2]> {
    let folders = ["webgpu", "native"].map(|name| dir.join(name));
    for folder in &folders {
        fs::create_dir_all(folder)?;
    }
    let mut counts = [0; 2];
    for variant in tileformer::kernels::variants() {
        let source = variant.source();
        let folder = usize::from(is_native(&source));
        fs::write(folders[folder].join(format!("{}.wgsl", variant.name())), source)?;
        counts[folder] += 1;
    }
    Ok(counts)
}

/// Whether a shader enables an extension that WebGPU does not have; wgpu's names begin with `wgpu_`.
fn is_native(source: &str) -> bool {
    source.lines().any(|line| line.trim_start().starts_with("enable wgpu_"))
}
