//! The example `fill_mask`: the reference's words from the GPU, for every mask, in any script; what cannot be filled in is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../examples/fill_mask/app.rs"]
mod app;
#[path = "../examples/shared/cli.rs"]
mod cli;
#[path = "../examples/shared/engine.rs"]
mod engine;
#[path = "../examples/shared/folder.rs"]
mod folder;
#[path = "../examples/shared/sheet.rs"]
mod sheet;
#[path = "common/tiny_bert.rs"]
mod tiny_bert;

use clap::Parser;
use tiny_bert::{TinyBert, svg_lines};

fn run(model: &str, arguments: &[&str], input: &[u8]) -> (String, String, u8) {
    let arguments = [&["fill_mask", "--model", model], arguments].concat();
    let args = app::Args::try_parse_from(arguments).expect("arguments");
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let code = app::run(&args, input, &mut out, &mut notices);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(notices), code)
}

/// What is printed, without where and how fast.
fn filled(model: &str, arguments: &[&str], input: &[u8]) -> String {
    let (out, notices, code) = run(model, arguments, input);
    assert_eq!((notices.as_str(), code), ("", 0));
    let (words, summary) = out.rsplit_once("\n\n").unwrap();
    assert!(summary.contains(" ms (before that "), "{summary}");
    words.to_owned()
}

/// Rule: the words and their probabilities are the reference's, one list a mask, texts in their order.
#[test]
fn words_are_the_references() {
    let model = TinyBert::new("fill", |_| true);
    let model = model.argument();
    let texts = ["the cat sat on the [MASK].", "今天天气很[MASK]", "[MASK] [MASK]"];
    let on_gpu = filled(model, &texts, b"");
    assert_eq!(on_gpu, filled(model, &[], texts.join("\n").as_bytes()));
    let lines: Vec<&str> = on_gpu.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[6], lines[12], lines[18]), (24, texts[0], texts[1], texts[2], "  and"));
    let parse = |text: &str| -> Vec<(f64, String)> {
        let words = text.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
        words.map(|(probability, word)| (probability.parse().unwrap(), word.to_owned())).collect()
    };
    let (found, right) = (parse(&on_gpu), parse(&filled(model, &[&["--cpu"], &texts[..]].concat(), b"")));
    assert_eq!((found.len(), right.len()), (20, 20));
    for (found, right) in found.iter().zip(&right) {
        assert!((found.0 - right.0).abs() <= 2e-4, "{found:?} for {right:?}");
    }
    assert!(
        found.chunks(5).all(|five| five.is_sorted_by(|a, b| a.0 >= b.0) && five.iter().map(|w| w.0).sum::<f64>() <= 1.0)
    );
    assert_eq!(parse(&filled(model, &["--top", "101", texts[0]], b"")).len(), 101);
}

#[test]
fn sheets_are_drawn() {
    let model = TinyBert::new("fill-sheets", |_| true);
    let path = model.path.join("sheet.svg");
    filled(model.argument(), &["--attention", path.to_str().unwrap(), "今天很[MASK]"], b"");
    let lines = svg_lines(&path);
    assert_eq!(lines.iter().filter(|line| *line == "[MASK]" || *line == "很").count(), 2 * 2 * 8);
}

#[test]
fn what_cannot_be_filled_in_is_refused() {
    let model = TinyBert::new("fill-refusals", |_| true);
    let long = "the cat sat on the mat, ".repeat(20) + "[MASK]";
    let fitting = "the cat sat on the mat, ".repeat(8) + "[MASK]";
    for (arguments, input, said) in [
        (&["the cat [MASK]", "the cat"][..], &b""[..], "there is no [MASK] in: the cat"),
        (&[&long], b"", "no [MASK] among the first 64 tokens in"),
        (&[], b"\n", "there is no text"),
        (&["--attention", "sheet.pdf", "[MASK]"], b"", "sheet.pdf: attention is drawn as SVG"),
    ] {
        let (out, notices, code) = run(model.argument(), arguments, input);
        assert_eq!((out.as_str(), code), ("", 2), "{arguments:?}");
        assert!(notices.contains(said), "{arguments:?}: {notices}");
    }
    assert_eq!(run(model.argument(), &["--cpu", &fitting], b"").2, 0);
    let base = TinyBert::new("fill-base", |name| name.starts_with("bert."));
    let (_, notices, code) = run(base.argument(), &["[MASK]"], b"");
    assert!(code == 2 && notices.contains("this model has no masked-language head"), "{notices}");
}
