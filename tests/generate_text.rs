//! The example `generate`: the expected greedy texts of every family, drawn texts that their seed repeats; what cannot be continued is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../examples/generate/app.rs"]
mod app;
#[path = "../examples/shared/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "../examples/generate/model.rs"]
mod model;
#[path = "../examples/shared/sheet.rs"]
mod sheet;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use safetensors::SafeTensors;

/// A folder that goes when this does: the model of a conformance case, its tokens written w0 to w100.
struct Tiny {
    path: PathBuf,
    /// The expected text.
    ids: Vec<u32>,
}

impl Tiny {
    fn new(test: &str, case: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tileformer-{}-{test}-{case}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let folders =
            ["conformance/huggingface", "families"].map(|folder| data.join(folder).join(case).with_extension("safetensors"));
        let bytes = fs::read(folders.iter().find(|path| path.exists()).expect(case)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        fs::write(path.join("config.json"), &header.metadata().as_ref().unwrap()["config"]).unwrap();
        let case = SafeTensors::deserialize(&bytes).unwrap();
        let weights = case.iter().filter_map(|(name, view)| Some((name.strip_prefix("w.")?.to_owned(), view)));
        safetensors::serialize_to_file(weights, None, &path.join("model.safetensors")).unwrap();
        let words: serde_json::Map<_, _> = (0..101).map(|i| (format!("w{i}"), i.into())).collect();
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
        });
        fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let ids = case.tensor("out.greedy_ids_row0").unwrap().data().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b));
        Self { path, ids: ids.collect() }
    }

    /// What is printed, what is said beside, and the exit code.
    fn run(&self, arguments: &[&str], input: &[u8]) -> (String, String, u8) {
        let arguments = [&["generate", "--model", self.path.to_str().unwrap()], arguments].concat();
        let args = app::Args::try_parse_from(arguments).expect("arguments");
        let (mut out, mut notices) = (Vec::new(), Vec::new());
        let code = app::run(&args, input, &mut out, &mut notices);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(out), text(notices), code)
    }

    /// The text, without how fast it was made.
    fn text(&self, arguments: &[&str], input: &[u8]) -> String {
        let (out, notices, code) = self.run(arguments, input);
        assert!(code == 0 && notices.contains(" tokens per second\n(before that "), "{notices}");
        out
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn words(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

/// Rule: greedy texts are the expected ones, in pieces of any size, from an argument and from standard input.
#[test]
fn greedy_texts_are_the_expected() {
    for (case, positions) in [("gpt2_0", 64), ("llama_2", 64), ("mistral", 32), ("qwen2", 32)] {
        let tiny = Tiny::new("greedy", case);
        let (prompt, whole) = (words(&tiny.ids[..11]), words(&tiny.ids) + "\n");
        let tokens = (tiny.ids.len() - 11).to_string();
        assert_eq!(tiny.text(&["--endless", "--tokens", &tokens, &prompt], b""), whole, "{case}");
        let input = format!("{prompt}\n");
        assert_eq!(tiny.text(&["--endless", "--tokens", &tokens, "--chunk", "5"], input.as_bytes()), whole, "{case}");
        // From a shorter prompt, or from none, a text of the length that there is room for.
        let (out, notices, _) = tiny.run(&["--endless", "--tokens", "1000", ""], b"");
        assert_eq!(out.split_whitespace().count(), positions, "{notices}");
        let notice = format!("notice: at most {positions} new tokens, as the model has {positions} positions\n");
        assert!(notices.starts_with(&notice), "{notices}");
    }
}

/// Rule: the same seed draws the same text, another one another; options reach the choice; an end token ends the text unseen.
#[test]
fn drawn_texts_are_their_seeds() {
    let tiny = Tiny::new("drawn", "gpt2_0");
    let prompt = words(&tiny.ids[..11]);
    let drawn = |more: &[&str]| tiny.text(&[&["--endless", "--tokens", "24", &prompt], more].concat(), b"");
    let (hot, greedy) = (["--temperature", "3", "--seed"], words(&tiny.ids) + "\n");
    let first = drawn(&[&hot[..], &["1"]].concat());
    assert_eq!(first, drawn(&[&hot[..], &["1", "--chunk", "3"]].concat()));
    assert_ne!(first, drawn(&[&hot[..], &["2"]].concat()));
    assert_eq!(greedy, drawn(&[&hot[..], &["1", "--top-k", "1"]].concat()));
    assert_eq!(greedy, drawn(&[&hot[..], &["1", "--top-p", "0"]].concat()));
    let fresh = drawn(&["--repetition-penalty", "1000"]);
    let mut fresh: Vec<&str> = fresh.split_whitespace().skip(11).collect();
    fresh.sort_unstable();
    fresh.dedup();
    assert!(fresh.len() > 20 && !fresh.contains(&"w92"), "{fresh:?}");

    // With the token that ends the expected text's run of w60 as the end token, the text stops in front of it.
    let config = fs::read_to_string(tiny.path.join("config.json")).unwrap();
    fs::write(tiny.path.join("config.json"), config.replace("\"eos_token_id\": 1", "\"eos_token_id\": [1, 51]")).unwrap();
    let end = tiny.ids.iter().position(|&id| id == 51).unwrap();
    assert_eq!(tiny.text(&["--tokens", "24", &prompt], b""), words(&tiny.ids[..end]) + "\n");
}

/// Rule: a sheet shows every head of every layer, over the prompt and what was made, up to as many tokens as there is room for.
#[test]
fn sheets_are_drawn() {
    for (case, heads) in [("gpt2_0", 2 * 4), ("llama_2", 8)] {
        let tiny = Tiny::new("sheet", case);
        let path = tiny.path.join("sheet.svg");
        let prompt = words(&tiny.ids[..11]);
        tiny.text(
            &["--endless", "--tokens", "24", "--weights", "int4", "--attention", path.to_str().unwrap(), &prompt],
            b"",
        );
        assert!(fs::read_to_string(&path).unwrap().contains("layer 1 head 3"));
        tiny.text(&["--endless", "--tokens", "24", "--attention", path.to_str().unwrap(), &prompt], b"");
        let svg = fs::read_to_string(&path).unwrap();
        let shown = |svg: &str, word: &str| svg.lines().filter(|line| line.trim() == word).count();
        assert_eq!(shown(&svg, "layer 1 head 3"), 1);
        for id in [tiny.ids[0], tiny.ids[34]] {
            let times = tiny.ids.iter().filter(|other| **other == id).count();
            assert_eq!(shown(&svg, &format!("w{id}")), 2 * heads * times, "{case}");
        }
        let (_, notices, code) =
            tiny.run(&["--endless", "--tokens", "54", "--attention", path.to_str().unwrap(), &prompt], b"");
        assert!(code == 0 && notices.contains("notice: the sheet shows the first 64 of 65 tokens"), "{notices}");
    }
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let tiny = Tiny::new("refused", "llama_2");
    let long = "w5 ".repeat(65);
    for (arguments, said, expected) in [
        (&["--temperature=-1", "w3"][..], "temperature", 2),
        (&["--attention", "sheet.pdf", "w3"], "sheet.pdf: attention is drawn as SVG", 2),
        (&["--top-p", "2", "w3"], "top_p", 2),
        (&["--repetition-penalty", "0", "w3"], "repetition_penalty", 2),
        (&[&long], "the text has 65 tokens, and the model 64 positions", 2),
        (&["--adapter", "no such adapter", "w3"], "no such adapter", 1),
    ] {
        let (out, notices, code) = tiny.run(arguments, b"");
        assert_eq!((out.as_str(), code), ("", expected), "{arguments:?}: {notices}");
        assert!(notices.contains(said), "{arguments:?}: {notices}");
    }
    fs::remove_file(tiny.path.join("tokenizer.json")).unwrap();
    let (_, notices, code) = tiny.run(&["w3"], b"");
    assert!(code == 1 && notices.contains("tokenizer.json"), "{notices}");
    fs::remove_dir_all(&tiny.path).unwrap();
    let (_, notices, code) = tiny.run(&["w3"], b"");
    assert!(code == 1 && notices.contains("no such folder"), "{notices}");
}
