//! The example `embed`: the same numbers alone and in batches, on the GPU and on the CPU reference; what cannot be embedded is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../examples/embed/app.rs"]
mod app;
#[path = "../examples/shared/cli.rs"]
mod cli;
#[path = "../examples/shared/engine.rs"]
mod engine;
#[path = "../examples/shared/folder.rs"]
#[allow(dead_code)]
mod folder;
#[path = "../examples/shared/sheet.rs"]
mod sheet;
#[path = "common/tiny_bert.rs"]
mod tiny_bert;

use clap::Parser;
use safetensors::SafeTensors;
use serde_json::Value;
use tiny_bert::{TinyBert, svg_lines};

/// What the program prints, what it says on stderr, and its exit code.
fn run(model: &str, arguments: &[&str], input: &[u8]) -> (String, String, u8) {
    let arguments = [&["embed", "--model", model], arguments].concat();
    let args = app::Args::try_parse_from(arguments).expect("arguments");
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let code = app::run(&args, input, &mut out, &mut notices);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(notices), code)
}

/// The embeddings that `--json` prints.
fn embeddings(model: &str, arguments: &[&str], input: &[u8]) -> Vec<Vec<f64>> {
    let (out, notices, code) = run(model, &[arguments, &["--json"]].concat(), input);
    assert_eq!((notices.as_str(), code), ("", 0));
    let numbers = |line: &str| -> Vec<f64> {
        let line: Value = serde_json::from_str(line).unwrap();
        line["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    out.lines().map(numbers).collect()
}

fn largest_difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.concat().iter().zip(b.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Rule: a text's embedding is the same in any batch, on the GPU and on the reference, and has length 1.
#[test]
fn batches_and_engines_agree() {
    let model = TinyBert::new("embed-batches", |_| true);
    let model = model.argument();
    let texts = ["the cat sat on the mat.", "a dog", "今天天气很好", "the dog ran on, and on, and on, and on!", "cat"];
    let mut together = embeddings(model, &texts, b"");
    for in_other_batches in [["--tokens", "16"], ["--tokens", "1"]] {
        assert!(largest_difference(&together, &embeddings(model, &[&in_other_batches, &texts[..]].concat(), b"")) < 2e-6);
    }
    let from_lines = embeddings(model, &[], (texts.join("\r\n\n") + "\n \n").as_bytes());
    assert!(largest_difference(&together, &from_lines) < 2e-6);
    assert!(largest_difference(&together, &embeddings(model, &[&["--cpu"], &texts[..]].concat(), b"")) < 2e-5);
    assert!(largest_difference(&together, &embeddings(model, &[&["--f16"], &texts[..]].concat(), b"")) < 2e-2);
    let blocks = embeddings(model, &[&["--weights", "int8"], &texts[..]].concat(), b"");
    let off = largest_difference(&together, &blocks);
    assert!(off > 1e-6 && off < 5e-2, "{off}");
    for embedding in &together {
        assert!((embedding.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    together.dedup();
    assert_eq!(together.len(), texts.len());
}

/// Rule: texts are shown with their first numbers, or ranked by how near they are to a query.
#[test]
fn texts_are_shown_or_ranked() {
    let model = TinyBert::new("embed-ranks", |_| true);
    let texts = ["the cat sat", "a dog ran", "今天"];
    let (out, notices, code) = run(model.argument(), &[&["--cpu"], &texts[..]].concat(), b"");
    assert_eq!((notices.as_str(), code), ("", 0));
    assert!(out.starts_with("the cat sat\n  ") && out.contains("… (48 numbers)\na dog ran\n"), "{out}");
    assert!(out.contains("\nCPU reference: 3 texts, "), "{out}");
    let file = model.path.join("lines.txt");
    std::fs::write(&file, texts.join("\n")).unwrap();
    let query = ["--file", file.to_str().unwrap(), "--query", "a dog ran", "--top", "2"];
    let (out, notices, code) = run(model.argument(), &query, b"");
    assert_eq!((notices.as_str(), code), ("", 0));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[2]), (" 1.0000  a dog ran", ""), "{out}");
}

/// Rule: a sheet has a panel for each head of each layer, and every token at both sides of each, in any script.
#[test]
fn sheets_show_every_head_and_token() {
    let model = TinyBert::new("embed-sheets", |_| true);
    let path = model.path.join("sheet.svg");
    let (_, notices, code) = run(model.argument(), &["--attention", path.to_str().unwrap(), "今天 & the cat", "a dog"], b"");
    assert_eq!((notices.as_str(), code), ("", 0));
    let (first, second) = (svg_lines(&path), svg_lines(&path.with_file_name("sheet-2.svg")));
    let count = |lines: &[String], text: &str| lines.iter().filter(|line| *line == text).count();
    for (layer, head) in (1..=2).flat_map(|layer| (1..=4).map(move |head| (layer, head))) {
        assert_eq!(count(&first, &format!("layer {layer} head {head}")), 1);
    }
    for token in ["[CLS]", "今", "天", "&amp;", "the", "cat", "[SEP]"] {
        assert_eq!(count(&first, token), 2 * 8, "{token}");
    }
    assert_eq!((count(&second, "dog"), count(&second, "cat")), (16, 0));
}

/// Rule: what cannot be done is refused before anything is printed, and what is cut is said.
#[test]
fn what_cannot_be_embedded_is_refused() {
    let model = TinyBert::new("embed-refusals", |_| true);
    let long = "the cat sat on the mat, ".repeat(20);
    let many = vec!["cat"; 21];
    for (arguments, input, said) in [
        (&[][..], &b" \n\n"[..], "there is no text"),
        (&[], b"cat\n\xff\n", "standard input: line 2 is not text (UTF-8)"),
        (&["--file", "no such file"], b"", "no such file: "),
        (&["--query", " ", "cat"], b"", "--query: there is no text"),
        (&["--attention", "sheet.png", "cat"], b"", "sheet.png: attention is drawn as SVG"),
        (&[&["--attention", "sheet.svg"], &many[..]].concat(), b"", "20 at most; there are 21"),
    ] {
        let (out, notices, code) = run(model.argument(), arguments, input);
        assert_eq!((out.as_str(), code), ("", 2), "{arguments:?}");
        assert!(notices.contains(said), "{arguments:?}: {notices}");
    }
    let (_, notices, code) = run(model.argument(), &["--cpu", &long], b"");
    assert!(code == 0 && notices.starts_with("notice: only the first 64 tokens are read of: the cat sat"), "{notices}");

    let failed = |model: &str, arguments: &[&str], said: &str| {
        let (out, notices, code) = run(model, arguments, b"");
        assert_eq!((out.as_str(), code), ("", 1), "{arguments:?}");
        assert!(notices.starts_with("error: ") && notices.contains(said), "{notices}");
    };
    failed("no such folder", &["cat"], "no such folder: no such folder; --model names another");
    failed(model.argument(), &["--adapter", "no such adapter", "cat"], "no such adapter");
    for (file, said) in [
        ("vocab.txt", "neither tokenizer.json nor vocab.txt"),
        ("config.json", "config.json"),
        ("model.safetensors", "neither model.safetensors nor"),
    ] {
        model.remove(file);
        failed(model.argument(), &["cat"], said);
    }
    for arguments in [
        &["--top", "0", "--query", "x"][..],
        &["--top", "3"],
        &["--json", "--query", "x"],
        &["--f16", "--cpu"],
        &["--tokens", "0"],
    ] {
        assert!(app::Args::try_parse_from([&["embed"], arguments].concat()).is_err(), "{arguments:?}");
    }
}

/// Rule: a model whose weights are not there names them; one without a pooler or heads is a model for sentences all the same.
#[test]
fn base_models_are_enough() {
    let base = TinyBert::new("embed-base", |name| name.starts_with("bert.") && !name.contains("pooler"));
    assert_eq!(run(base.argument(), &["--cpu", "cat"], b"").2, 0);
    assert_eq!(run(base.argument(), &["cat"], b"").2, 0);
    let lacking = TinyBert::new("embed-lacking", |name| name != "bert.encoder.layer.1.output.dense.bias");
    for engine in [&["cat"][..], &["--cpu", "cat"]] {
        let (_, notices, code) = run(lacking.argument(), engine, b"");
        assert_eq!(
            (notices.trim_end(), code),
            ("error: bert.encoder.layer.1.output.dense.bias: the checkpoint has no tensor of this name", 1)
        );
    }
}

/// Rule: the real model's text becomes the ids, and its sentences the embeddings, that others compute.
#[test]
#[ignore = "needs the model: sh examples/embed/fetch_minilm.sh"]
fn minilm_from_text() {
    let golden = include_bytes!("data/minilm_l6_v2.safetensors");
    let (_, header) = SafeTensors::read_metadata(golden).unwrap();
    let sentences: Vec<String> = serde_json::from_str(&header.metadata().as_ref().unwrap()["sentences"]).unwrap();
    let right = SafeTensors::deserialize(golden).unwrap();
    let right = right.tensor("embedding_f64").unwrap();
    let right: Vec<f64> = right.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
    let model = std::env::var("TILEFORMER_MINILM").unwrap_or_else(|_| "target/minilm".into());
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let found = embeddings(&model, &texts, b"");
    assert!(largest_difference(&found, &right.chunks(384).map(<[f64]>::to_vec).collect::<Vec<_>>()) < 2e-6);
}
