//! From arguments to what is printed.

use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tileformer::BatchShape;
use tileformer::models::bert::Output;

use crate::cli::{self, Common, Failure};
use crate::engine::{Engine, packed_shape};
use crate::folder::{Encoded, Folder};
use crate::sheet;

/// How many numbers of an embedding a line shows.
const SHOWN: usize = 6;

/// Turns sentences into embeddings, and finds those that are nearest to a query.
#[derive(Debug, Parser)]
#[command(name = "embed")]
pub(crate) struct Args {
    /// What to embed; without any, the lines of --file or of standard input that are not blank
    texts: Vec<String>,
    /// Take the lines of this file
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Show the texts that are nearest to this one
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
    /// How many of them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), requires = "query")]
    top: u32,
    /// Print every number, as one line of JSON a text
    #[arg(long, conflicts_with = "query")]
    json: bool,
    /// Tokens of a batch
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    #[command(flatten)]
    common: Common,
}

/// Runs the program and gives its exit code. Nothing is written to `out` before everything is embedded and drawn.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    let result = if args.common.list_adapters { cli::list_adapters(notices) } else { embed(args, input, notices) };
    cli::finish(result, out, notices)
}

/// All that is to be printed.
fn embed(args: &Args, input: impl BufRead, notices: &mut dyn Write) -> Result<String, Failure> {
    let mut texts = cli::texts(&args.texts, args.file.as_deref(), input)?;
    let count = texts.len();
    if let Some(path) = &args.common.attention {
        cli::check_sheets(path, count)?;
    }
    if let Some(query) = &args.query {
        if query.trim().is_empty() {
            return Err(Failure::Usage("--query: there is no text".into()));
        }
        texts.push(query.clone());
    }
    let start = Instant::now();
    let folder = Folder::open(&args.common.model)?;
    let encoded = texts.iter().map(|text| folder.encode(text)).collect::<Result<Vec<_>, _>>()?;
    for text in encoded.iter().filter(|text| text.cut) {
        writeln!(notices, "notice: only the first {} tokens are read of: {}", folder.longest, beginning(&text.text))?;
    }
    let engine = Engine::choose(&args.common, notices)?;

    let batches = batches(&encoded, args.tokens as usize);
    let shape = batches.iter().map(|batch| packed_shape(batch.iter().map(|&i| encoded[i].ids.len())));
    let shape = shape.reduce(larger).unwrap_or_else(|| packed_shape([]));
    let loaded = engine.load(&folder, shape, &[Output::Embedding])?;
    let (prepared, start) = (start.elapsed(), Instant::now());
    let bar = ProgressBar::new(texts.len() as u64)
        .with_style(ProgressStyle::with_template("texts {bar:40} {pos} of {len}, {per_sec}").map_err(Box::new)?);
    let width = folder.bert.embedding.d_model;
    let mut embeddings = vec![Vec::new(); texts.len()];
    for batch in &batches {
        let ran = loaded.run(&batch.iter().map(|&i| &encoded[i]).collect::<Vec<_>>())?;
        for (&i, embedding) in batch.iter().zip(ran.get(Output::Embedding).chunks_exact(width)) {
            embeddings[i] = embedding.to_vec();
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    let elapsed = start.elapsed();

    if let Some(path) = &args.common.attention {
        for (i, text) in encoded[..count].iter().enumerate() {
            cli::write_sheet(path, i, &draw(&engine, &folder, text)?)?;
        }
    }
    if args.json {
        let line = |(text, embedding)| format!("{}\n", json!({"text": text, "embedding": embedding}));
        return Ok(texts.iter().zip(&embeddings).map(line).collect());
    }
    let tokens = encoded.iter().map(|text| text.ids.len()).sum();
    let text = match &args.query {
        Some(_) => nearest(&texts[..count], &embeddings, args.top as usize),
        None => texts.iter().zip(&embeddings).map(|(text, embedding)| shown(text, embedding)).collect(),
    };
    Ok(text + &summary(engine.name(), [texts.len(), tokens, batches.len()], elapsed, prepared))
}

fn draw(engine: &Engine, folder: &Folder, text: &Encoded) -> Result<String, Failure> {
    let tokens = text.tokens.len();
    if tokens > sheet::MOST_TOKENS {
        let (most, text) = (sheet::MOST_TOKENS, beginning(&text.text));
        return Err(Failure::Usage(format!("--attention draws at most {most} tokens; there are {tokens} in: {text}")));
    }
    Ok(engine.draw(folder, text)?)
}

/// Texts in batches of at most `tokens` tokens, or one text, those of like length together.
fn batches(texts: &[Encoded], tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(texts[i].ids.len()));
    let (mut batches, mut room) = (Vec::<Vec<usize>>::new(), 0);
    for i in order {
        let length = texts[i].ids.len();
        match batches.last_mut().filter(|_| length <= room) {
            Some(batch) => batch.push(i),
            None => {
                batches.push(vec![i]);
                room = tokens.max(length);
            }
        }
        room -= length;
    }
    batches
}

/// The shape that holds batches of both.
fn larger(a: BatchShape, b: BatchShape) -> BatchShape {
    BatchShape {
        sequences: a.sequences.max(b.sequences),
        q_rows: a.q_rows.max(b.q_rows),
        longest_q: a.longest_q.max(b.longest_q),
        k_rows: a.k_rows.max(b.k_rows),
        longest_k: a.longest_k.max(b.longest_k),
    }
}

/// The texts whose embeddings point most nearly where the last one, the query's, does.
fn nearest(texts: &[String], embeddings: &[Vec<f32>], top: usize) -> String {
    let Some((query, embeddings)) = embeddings.split_last() else { return String::new() };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |e: &Vec<f32>| dot(e, query) / (dot(e, e) * dot(query, query)).sqrt().max(f64::MIN_POSITIVE);
    let mut ranked: Vec<(f64, &String)> = embeddings.iter().map(cosine).zip(texts).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.iter().take(top).map(|(cosine, text)| format!("{cosine:7.4}  {text}\n")).collect()
}

/// A text and the first numbers of its embedding.
fn shown(text: &str, embedding: &[f32]) -> String {
    let mut line = format!("{text}\n  ");
    for number in embedding.iter().take(SHOWN) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{number:8.4} ");
    }
    format!("{line} … ({} numbers)\n", embedding.len())
}

/// The first words of a text.
fn beginning(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

/// Where it ran and how long it took.
fn summary(name: &str, [texts, tokens, batches]: [usize; 3], elapsed: Duration, prepared: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let (of_texts, of_tokens) = (texts as f64 / seconds, tokens as f64 / seconds);
    let plural = |n: usize, one: &str, more: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {more}") };
    let (texts, batches) = (plural(texts, "text", "texts"), plural(batches, "batch", "batches"));
    let (ms, before) = (seconds * 1e3, prepared.as_secs_f64() * 1e3);
    format!(
        "\n{name}: {texts}, {tokens} tokens, {batches} in {ms:.1} ms: {of_texts:.0} texts, {of_tokens:.0} tokens per second\n\
         (before that {before:.1} ms for tokens, device, weights, pipelines and plan)\n"
    )
}
