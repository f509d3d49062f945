//! What the examples that run published models have in common on the command line.

#[path = "program.rs"]
mod program;

use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tileformer::Element;

pub(crate) use program::{Failure, finish, list_adapters};

/// The most sheets that one run draws.
const MOST_SHEETS: usize = 20;

/// Options of all of them.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The model's folder: config.json, safetensors, and tokenizer.json or vocab.txt
    #[arg(long, value_name = "DIR", default_value = "target/minilm")]
    pub(crate) model: PathBuf,
    /// Store weights and rows in f16: half the memory
    #[arg(long, conflicts_with = "cpu")]
    pub(crate) f16: bool,
    /// Store the weights of projections in blocks of integers
    #[arg(long, value_name = "KIND", conflicts_with = "cpu")]
    pub(crate) weights: Option<Blocks>,
    /// Use the CPU reference even where there is an adapter
    #[arg(long)]
    pub(crate) cpu: bool,
    /// Use the adapter with this in its name, in any case
    #[arg(long, value_name = "NAME", conflicts_with = "cpu")]
    pub(crate) adapter: Option<String>,
    /// List the adapters and end
    #[arg(long)]
    pub(crate) list_adapters: bool,
    /// Draw the attention of every head of every layer: an SVG file for the first text, FILE-2.svg and so on for more
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) attention: Option<PathBuf>,
}

/// Integers that weights of projections are stored as.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Blocks {
    /// 9 bits a weight
    Int8,
    /// 5 bits a weight
    Int4,
}

/// What rows, and what weights of projections, are stored as.
pub(crate) fn storing(f16: bool, weights: Option<Blocks>) -> [Element; 2] {
    let rows = if f16 { Element::F16 } else { Element::F32 };
    let blocks = weights.map(|kind| match kind {
        Blocks::Int8 => Element::Int8,
        Blocks::Int4 => Element::Int4,
    });
    [rows, blocks.unwrap_or(rows)]
}

/// The arguments, or the lines of a file, or else those of standard input: those that are not blank.
pub(crate) fn texts(arguments: &[String], file: Option<&Path>, input: impl BufRead) -> Result<Vec<String>, Failure> {
    let lines = match (arguments, file) {
        ([], None) => lines("standard input", input)?,
        ([], Some(path)) => {
            let name = path.display().to_string();
            let bytes = fs::read(path).map_err(|e| Failure::Usage(format!("{name}: {e}")))?;
            lines(&name, bytes.as_slice())?
        }
        (arguments, _) => arguments.to_vec(),
    };
    let texts: Vec<String> = lines.into_iter().filter(|text| !text.trim().is_empty()).collect();
    if texts.is_empty() {
        Err(Failure::Usage("there is no text: no argument, and no line that is not blank".into()))
    } else {
        Ok(texts)
    }
}

fn lines(name: &str, mut input: impl BufRead) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    loop {
        let mut bytes = Vec::new();
        if input.read_until(b'\n', &mut bytes).map_err(|e| Failure::Usage(format!("{name}: {e}")))? == 0 {
            return Ok(lines);
        }
        let number = lines.len() + 1;
        let text =
            String::from_utf8(bytes).map_err(|_| Failure::Usage(format!("{name}: line {number} is not text (UTF-8)")))?;
        lines.push(text.trim_end_matches(['\r', '\n']).to_owned());
    }
}

/// Refuses sheets that cannot be drawn, before anything is computed.
pub(crate) fn check_sheets(path: &Path, sheets: usize) -> Result<(), Failure> {
    if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) {
        return Err(Failure::Usage(format!("{}: attention is drawn as SVG, to a file that ends in .svg", path.display())));
    }
    if sheets > MOST_SHEETS {
        let message = format!("--attention draws a sheet for each text, {MOST_SHEETS} at most; there are {sheets}");
        return Err(Failure::Usage(message));
    }
    Ok(())
}

/// Writes sheet number `i`: FILE.svg, FILE-2.svg, FILE-3.svg, …
pub(crate) fn write_sheet(path: &Path, i: usize, svg: &str) -> Result<(), Failure> {
    let mut path = path.to_owned();
    if i > 0 {
        let mut name = path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{}.svg", i + 1));
        path = path.with_file_name(name);
    }
    Ok(fs::write(&path, svg).map_err(|e| format!("{}: {e}", path.display()))?)
}
