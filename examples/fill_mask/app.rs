//! From arguments to what is printed.

use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use tileformer::models::bert::Output;

use crate::cli::{self, Common, Failure};
use crate::engine::{Engine, packed_shape};
use crate::folder::Folder;
use crate::sheet;

/// What a text has where a word is missing.
const MASK: &str = "[MASK]";

/// Finds the words that fit best where a text has [MASK].
#[derive(Debug, Parser)]
#[command(name = "fill_mask")]
pub(crate) struct Args {
    /// Texts with [MASK] in them; without any, the lines of --file or of standard input that are not blank
    texts: Vec<String>,
    /// Take the lines of this file
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// How many words to show for each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    #[command(flatten)]
    common: Common,
}

/// Runs the program and gives its exit code. Nothing is written to `out` before everything is filled in and drawn.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    let result = if args.common.list_adapters { cli::list_adapters(notices) } else { fill(args, input, notices) };
    cli::finish(result, out, notices)
}

/// All that is to be printed.
fn fill(args: &Args, input: impl BufRead, notices: &mut dyn Write) -> Result<String, Failure> {
    let texts = cli::texts(&args.texts, args.file.as_deref(), input)?;
    if let Some(path) = &args.common.attention {
        cli::check_sheets(path, texts.len())?;
    }
    let start = Instant::now();
    let folder = Folder::open(&args.common.model)?;
    if !folder.checkpoint.has("cls.predictions.transform.dense.weight") {
        let model = args.common.model.display();
        return Err(Failure::Usage(format!(
            "{model}: this model has no masked-language head; --model names another, as bert-base-uncased"
        )));
    }
    let mask = folder.id(MASK).ok_or("the tokenizer has no [MASK]")?;
    let encoded = texts.iter().map(|text| folder.encode(text)).collect::<Result<Vec<_>, _>>()?;
    for text in &encoded {
        if !text.ids.contains(&mask) {
            let most = folder.longest;
            let problem = if text.cut { format!("no {MASK} among the first {most} tokens") } else { format!("no {MASK}") };
            return Err(Failure::Usage(format!("there is {problem} in: {}", text.text)));
        }
        if args.common.attention.is_some() && text.ids.len() > sheet::MOST_TOKENS {
            let (most, found) = (sheet::MOST_TOKENS, text.ids.len());
            return Err(Failure::Usage(format!(
                "--attention draws at most {most} tokens; there are {found} in: {}",
                text.text
            )));
        }
    }
    let engine = Engine::choose(&args.common, notices)?;
    // One text at a time, as the logits of all rows are many.
    let longest = encoded.iter().map(|text| text.ids.len()).max().unwrap_or(1);
    let loaded = engine.load(&folder, packed_shape([longest]), &[Output::MaskedLanguage])?;
    let (prepared, start) = (start.elapsed(), Instant::now());
    let (mut printed, vocabulary) = (String::new(), folder.bert.embedding.vocabulary);
    for text in &encoded {
        let ran = loaded.run(&[text])?;
        let rows = ran.get(Output::MaskedLanguage).chunks_exact(vocabulary);
        // Writing to a String cannot fail.
        let _ = writeln!(printed, "{}", text.text);
        let mut masks = 0;
        for (logits, _) in rows.zip(&text.ids).filter(|(_, id)| **id == mask) {
            masks += 1;
            if masks > 1 {
                printed.push_str("  and\n");
            }
            for (id, probability) in best(logits, args.top as usize) {
                let _ = writeln!(printed, "  {probability:.4}  {}", folder.token(id));
            }
        }
    }
    let elapsed = start.elapsed();
    if let Some(path) = &args.common.attention {
        for (i, text) in encoded.iter().enumerate() {
            cli::write_sheet(path, i, &engine.draw(&folder, text)?)?;
        }
    }
    let [ms, before] = [elapsed, prepared].map(|d| d.as_secs_f64() * 1e3);
    let _ = writeln!(
        printed,
        "\n{}: {ms:.1} ms (before that {before:.1} ms for tokens, device, weights, pipelines and plan)",
        engine.name()
    );
    Ok(printed)
}

/// The ids with the largest logits, and their probabilities.
fn best(logits: &[f32], top: usize) -> Vec<(u32, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit) - f64::from(largest)).exp();
    let sum: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.iter().take(top).map(|&(id, logit)| (id, weight(logit) / sum)).collect()
}
