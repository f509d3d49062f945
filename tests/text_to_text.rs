//! The example `text_to_text`: pieces from SentencePiece's file or tokenizer.json, texts that no batch changes; what cannot be read is
//! refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../examples/text_to_text/app.rs"]
mod app;
#[path = "../examples/shared/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "../examples/text_to_text/cpu.rs"]
mod cpu;
#[path = "../examples/text_to_text/pieces.rs"]
mod pieces;
#[path = "../examples/shared/sheet.rs"]
mod sheet;
#[path = "../examples/text_to_text/text.rs"]
mod text;
#[path = "../examples/text_to_text/translator.rs"]
mod translator;

use std::fs;
use std::path::PathBuf;

use clap::Parser;
use pieces::Pieces;
use safetensors::SafeTensors;
use serde_json::json;

const CASE: &[u8] = include_bytes!("data/conformance/huggingface/marian_0.safetensors");
const T5: &[u8] = include_bytes!("data/families/t5_gated.safetensors");

/// Pieces with their scores; whole words are likelier than their letters.
fn words() -> Vec<(String, f32)> {
    let mut words: Vec<(String, f32)> = ["<unk>", "<s>", "</s>"].map(|w| (w.to_owned(), 0.0)).to_vec();
    words.extend(["▁the", "▁cat", "▁sat", "▁Katze", "▁", "s"].map(|w| (w.to_owned(), -3.0)));
    words.extend(('a'..='r').map(|c| (c.to_string(), -6.0)));
    words
}

fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = [bytes.len() as u8 & 0x7f | 0x80, (bytes.len() >> 7) as u8];
    [&[number << 3 | 2], &length[..], bytes].concat()
}

/// SentencePiece's file with these pieces.
fn spm(kind: u8) -> Vec<u8> {
    let mut file = Vec::new();
    for (i, (word, score)) in words().iter().enumerate() {
        let kind = if i == 0 { 2 } else { 1 };
        let piece = [message(1, word.as_bytes()), vec![2 << 3 | 5], score.to_le_bytes().to_vec(), vec![3 << 3, kind]];
        file.extend(message(1, &piece.concat()));
    }
    file.extend(message(2, &[3 << 3, kind]));
    file
}

/// 101 ids, in another order than the pieces.
fn vocabulary() -> String {
    let mut all = vec!["<pad>".to_owned(), "</s>".into(), "<unk>".into(), ">>fr<<".into()];
    all.extend(words().into_iter().skip(3).map(|(word, _)| word));
    let missing = 101 - all.len();
    all.extend((0..missing).map(|i| format!("▁word{i}")));
    let entries: Vec<String> = all.iter().enumerate().map(|(id, word)| format!("{word:?}: {id}")).collect();
    format!("{{{}}}", entries.join(", "))
}

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Folder {
    /// A Marian's.
    fn new(name: &str) -> Self {
        let folder = Self::of(CASE, name);
        fs::write(folder.0.join("source.spm"), spm(1)).unwrap();
        fs::write(folder.0.join("vocab.json"), vocabulary()).unwrap();
        folder
    }

    /// Configuration and weights of a case.
    fn of(case: &[u8], name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tileformer-text-to-text-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(case).unwrap();
        fs::write(path.join("config.json"), &header.metadata().as_ref().unwrap()["config"]).unwrap();
        let case = SafeTensors::deserialize(case).unwrap();
        let weights = case.iter().filter_map(|(name, view)| Some((name.strip_prefix("w.")?.to_owned(), view)));
        safetensors::serialize_to_file(weights, None, &path.join("model.safetensors")).unwrap();
        Self(path)
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> (String, String, u8) {
        let arguments = [&["text_to_text", "--model", self.0.to_str().unwrap()], arguments].concat();
        let args = app::Args::try_parse_from(arguments).expect("arguments");
        let (mut out, mut notices) = (Vec::new(), Vec::new());
        let code = app::run(&args, input, &mut out, &mut notices);
        (String::from_utf8(out).unwrap(), String::from_utf8(notices).unwrap(), code)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Rule: the likeliest pieces, the ids of vocab.json, the end token behind them; and back.
#[test]
fn pieces_are_the_likeliest() {
    let pieces = Pieces::new(&spm(1), vocabulary().as_bytes()).unwrap();
    let ids = |text: &str| pieces.encode(text).unwrap();
    let (the, cat, sat, blank, s, a) = (4, 5, 6, 8, 9, 10);
    assert_eq!(ids("the cat  sat "), [the, cat, sat, 1]);
    assert_eq!(ids("cats as"), [cat, s, blank, a, s, 1]);
    assert_eq!(ids(">>fr<< the"), [3, the, 1]);
    assert_eq!(ids("the 猫"), [the, blank, 2, 1]);
    assert_eq!(ids(""), [1]);
    assert!(pieces.encode(">>xx<< the").unwrap_err().to_string().contains(">>xx<<"));
    assert_eq!(pieces.decode(&[the, cat, s, 1, 0]), "the cats");

    let refused = |spm: &[u8], vocabulary: &str| Pieces::new(spm, vocabulary.as_bytes()).map(drop).unwrap_err().to_string();
    assert!(refused(&spm(2), &vocabulary()).contains("not a unigram model"));
    assert!(refused(&spm(1), "{}").contains("no </s>"));
    assert!(refused(&spm(1), "[").contains("vocab.json"));
    let whole = spm(1);
    // Cut anywhere, it is fewer pieces or an error.
    (0..whole.len()).for_each(|end| drop(Pieces::new(&whole[..end], vocabulary().as_bytes())));
    assert!(refused(&[0xff; 40], &vocabulary()).contains("source.spm"));
}

/// Rule: a text's translation is the same alone, in a batch that is full, and in one that is not; from arguments and from lines.
#[test]
fn batches_change_nothing() {
    let folder = Folder::new("batches");
    let texts: Vec<String> = (0..19).map(|i| format!("the {} cat sat", "cab ".repeat(i % 5))).collect();
    let lines: String = texts.iter().map(|text| format!("{text}\n")).collect();
    let (all, _, code) = folder.run(&["--longest", "12"], lines.as_bytes());
    let all: Vec<&str> = all.lines().collect();
    assert_eq!((all.len(), code), (19, 0));
    for i in [0, 3, 18] {
        let (one, notices, code) = folder.run(&["--longest", "12", &texts[i]], b"");
        assert_eq!((one.trim_end_matches('\n'), code), (all[i], 0));
        assert!(notices.contains(" per second"), "{notices}");
    }
    assert!(all.iter().any(|text| *text != all[0]), "{all:?}");
    assert_eq!(folder.run(&["--f16", "the cat"], b"").2, 0);
    assert_eq!(folder.run(&["--f16", "--weights", "int8", "the cat"], b"").2, 0);
}

/// Rule: beams are those of the arguments, else those of the model's settings, else one; the CPU reference finds what the GPU finds.
#[test]
fn beams_are_asked_for_or_the_models_own() {
    let folder = Folder::new("beams");
    let texts = ["the cat sat", "cab cab", "the Katze sat as a cat"];
    let run = |arguments: &[&str]| {
        let (out, notices, code) = folder.run(&[&["--longest", "9"], arguments, &texts[..]].concat(), b"");
        assert_eq!(code, 0, "{notices}");
        out
    };
    let greedy = run(&[]);
    assert_eq!(greedy.lines().count(), 3);
    assert_eq!((run(&["--beams", "1"]), run(&["--cpu"])), (greedy.clone(), greedy.clone()));
    let wide = run(&["--beams", "5"]);
    assert_eq!(run(&["--beams", "5", "--cpu"]), wide);
    assert_ne!(wide, greedy);
    let settings = folder.0.join("generation_config.json");
    // config.json, which counts where there is no such file, forces the end token too.
    let own = r#"{"num_beams": 5, "forced_eos_token_id": 1, "bad_words_ids": [[0]], "renormalize_logits": false}"#;
    fs::write(&settings, own).unwrap();
    assert_eq!((run(&[]), run(&["--beams", "1"])), (wide, greedy));
    fs::write(&settings, r#"{"num_beams": 5, "diversity_penalty": 0.5}"#).unwrap();
    let (_, notices, code) = folder.run(&["the cat"], b"");
    assert!(code == 1 && notices.contains("generation_config.json: diversity_penalty"), "{notices}");
    // One beam too is what the settings say of all else.
    assert_eq!(folder.run(&["--beams", "1", "the cat"], b"").2, 1);
    fs::write(&settings, r#"{"no_repeat_ngram_size": 1, "min_length": 7, "forced_bos_token_id": 5}"#).unwrap();
    let unlike = run(&["--beams", "1"]);
    assert_eq!(run(&["--cpu"]), unlike);
    for line in unlike.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let once: std::collections::BTreeSet<_> = words.iter().collect();
        assert!(words.len() > 3 && once.len() == words.len() && words[0] == "cat", "{unlike}");
    }
}

/// Rule: a sheet a text, with every head of every layer of the encoder, the decoder and between them; GPU and CPU draw the same.
#[test]
fn sheets_show_every_head() {
    let folder = Folder::new("sheets");
    let path = folder.0.join("sheet.svg");
    let run = |more: &[&str]| {
        let arguments = [&["--longest", "6", "--attention", path.to_str().unwrap(), "the cat", "Katze"], more].concat();
        let (_, notices, code) = folder.run(&arguments, b"");
        assert_eq!(code, 0, "{notices}");
        [path.clone(), folder.0.join("sheet-2.svg")].map(|path| fs::read_to_string(path).unwrap())
    };
    let [first, second] = run(&[]);
    for part in ["encoder", "decoder", "decoder to source"] {
        for panel in ["layer 1 head 1", "layer 2 head 4"] {
            assert!(first.contains(&format!("{part} {panel}")) && second.contains(&format!("{part} {panel}")));
        }
    }
    assert!(first.contains("cat") && !first.contains("Katze") && second.contains("Katze"));
    let lines = |svg: &str| svg.matches("<polyline").count();
    let [other, _] = run(&["--cpu"]);
    assert!(lines(&first) > 100 && lines(&first).abs_diff(lines(&other)) < 5, "{} and {}", lines(&first), lines(&other));
    let (_, notices, code) = folder.run(&["--attention", "sheet.png", "cat"], b"");
    assert!(code == 2 && notices.contains("SVG"), "{notices}");
}

/// 61 pieces as T5's tokenizer.json has them.
fn tokenizer() -> String {
    let mut pieces: Vec<(String, f64)> = ["<pad>", "</s>", "<unk>"].map(|piece| (piece.to_owned(), 0.0)).to_vec();
    pieces.extend(["▁the", "▁cat", "▁sat", "▁"].map(|piece| (piece.to_owned(), -3.0)));
    pieces.extend(('a'..='z').map(|c| (c.to_string(), -6.0)));
    pieces.extend((pieces.len()..61).map(|i| (format!("▁w{i}"), -9.0)));
    let special = |id: usize| {
        json!({"id": id, "content": pieces[id].0, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
    };
    let blanks = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [special(0), special(1), special(2)], "normalizer": null, "pre_tokenizer": blanks,
        "post_processor": {"type": "TemplateProcessing", "single": [text("A"), end], "pair": [text("A"), end, text("B"), end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": blanks, "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false}})
    .to_string()
}

/// Rule: a T5 with its tokenizer.json writes the same on the GPU and on the reference, greedily and by beams, in every batch, and its
/// attention is drawn.
#[test]
fn a_tokenizer_serves_too() {
    let folder = Folder::of(T5, "t5");
    fs::write(folder.0.join("tokenizer.json"), tokenizer()).unwrap();
    let texts = ["the cat sat on the cat", "a zebra", "the"];
    let run = |arguments: &[&str], texts: &[&str]| {
        let (out, notices, code) = folder.run(&[&["--longest", "14"], arguments, texts].concat(), b"");
        assert_eq!(code, 0, "{notices}");
        out
    };
    for beams in ["1", "3"] {
        let together = run(&["--beams", beams], &texts);
        assert_eq!(together, run(&["--beams", beams, "--cpu"], &texts));
        let alone: String = texts.iter().map(|text| run(&["--beams", beams], &[text])).collect();
        assert_eq!(together, alone);
        let lines: Vec<&str> = together.lines().collect();
        assert!(lines[0] != lines[1] && lines.iter().all(|line| !line.is_empty() && !line.contains('<')), "{lines:?}");
    }
    let path = folder.0.join("sheet.svg");
    run(&["--attention", path.to_str().unwrap()], &texts[..1]);
    let sheet = fs::read_to_string(path).unwrap();
    assert!(sheet.contains("decoder to source layer 2 head 3") && sheet.contains("cat"));
    fs::write(folder.0.join("tokenizer.json"), "{").unwrap();
    let (_, notices, code) = folder.run(&["the"], b"");
    assert!(code == 1 && notices.contains("tokenizer.json"), "{notices}");
}

/// Rule: what is missing is named, with the exit code of its kind.
#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new("missing");
    assert_eq!(folder.run(&[], b" \n").2, 2);
    fs::remove_file(folder.0.join("source.spm")).unwrap();
    let (out, notices, code) = folder.run(&["the cat"], b"");
    assert_eq!((out.as_str(), code), ("", 1));
    assert!(notices.contains("source.spm"), "{notices}");
    let nowhere = Folder(folder.0.join("nowhere"));
    assert_eq!(nowhere.run(&["the cat"], b"").2, 2);
}
