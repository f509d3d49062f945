//! The conformance example gets the cases in `tests/data/conformance` right, and notices what is wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../examples/conformance/runner.rs"]
mod runner;

#[path = "conformance/options.rs"]
mod options;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use runner::case::Case;
use runner::gpu::Session;
use runner::greedy::{Choice, Texts, ids_of};
use runner::host::Array;
use runner::judge::{Deviation, Rule, Stop, Verdict};
use runner::suite::{self, Tally};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tileformer::convenience::Setup;

/// A machine without an adapter fails here: a test that skips itself tests nothing.
fn session() -> &'static Session {
    static SESSION: OnceLock<Session> = OnceLock::new();
    SESSION.get_or_init(|| pollster::block_on(Session::open(&Setup::default())).expect("a device; a software one will do"))
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/conformance").join(name)
}

/// Runs a folder; no case may fail, or be unsupported for another reason than `allowed`.
fn run_folder(name: &str, allowed: &[&str]) -> Tally {
    let mut tally = Tally::default();
    let mut bad = Vec::new();
    for file in suite::files(&folder(name)).expect("cases") {
        let verdict = pollster::block_on(suite::run_file(session(), &file));
        tally.count(&verdict);
        match verdict {
            Verdict::Passed(_) => {}
            Verdict::Unsupported(reason) if allowed.contains(&reason.as_str()) => {}
            other => bad.push(format!("{}: {other:?}", suite::name(&file))),
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    tally
}

#[test]
fn onnx_cases_pass() {
    let tally = run_folder("onnx", &[]);
    assert_eq!(tally, Tally { passed: 87, failed: 0, unsupported: 0 });
}

#[test]
fn pytorch_cases_pass() {
    let tally = run_folder("pytorch", &[]);
    assert_eq!(tally, Tally { passed: 98, failed: 0, unsupported: 0 });
}

#[test]
fn huggingface_cases_pass() {
    let tally = run_folder("huggingface", &[]);
    assert_eq!(tally, Tally { passed: 5, failed: 0, unsupported: 0 });
}

/// The heads that BERT is fine-tuned with, by the Transformers library.
#[test]
fn fine_tuned_heads_pass() {
    let tally = run_folder("../heads", &[]);
    assert_eq!(tally, Tally { passed: 3, failed: 0, unsupported: 0 });
}

/// Families with Llama's layers, and T5, by the Transformers library.
#[test]
fn further_families_pass() {
    let tally = run_folder("../families", &[]);
    assert_eq!(tally, Tally { passed: 5, failed: 0, unsupported: 0 });
}

/// A tensor's bytes, type and sizes.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    sizes: Vec<usize>,
    bytes: Vec<u8>,
}

/// A file taken apart: tensors by name, and metadata.
type Parts = (HashMap<String, Stored>, HashMap<String, String>);

fn bytes_of(file: &str) -> Vec<u8> {
    std::fs::read(folder(file)).expect(file)
}

/// A file after `change`.
fn edited(file: &str, change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let bytes = bytes_of(file);
    let read = SafeTensors::deserialize(&bytes).expect(file);
    let stored =
        |view: &TensorView<'_>| Stored { dtype: view.dtype(), sizes: view.shape().to_vec(), bytes: view.data().to_vec() };
    let tensors = read.iter().map(|(name, view)| (name.to_owned(), stored(&view))).collect();
    let (_, header) = SafeTensors::read_metadata(&bytes).expect(file);
    let mut parts = (tensors, header.metadata().clone().expect("metadata"));
    change(&mut parts);
    let views = parts.0.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.sizes.clone(), &t.bytes).expect(name)));
    safetensors::serialize(views, Some(parts.1)).expect("a file")
}

/// The verdict on a file after `change`.
fn verdict(file: &str, change: impl FnOnce(&mut Parts)) -> Verdict {
    match Case::parse(&edited(file, change)) {
        Ok(case) => pollster::block_on(suite::run_case(session(), &case)),
        Err(stop) => stop.into(),
    }
}

fn change_f32(tensor: &mut Stored, at: usize, change: impl Fn(f32) -> f32) {
    let element = &mut tensor.bytes[4 * at..4 * at + 4];
    let value = f32::from_le_bytes(element.try_into().unwrap());
    element.copy_from_slice(&change(value).to_le_bytes());
}

fn assert_fails(verdict: &Verdict, part: &str) {
    assert!(matches!(verdict, Verdict::Failed(reason) if reason.contains(part)), "expected {part:?}, found {verdict:?}");
}

const ATTENTION: &str = "onnx/attention_3d_with_past_and_present_qk_matmul.0.safetensors";
const LAYER: &str = "pytorch/TransformerEncoderLayer_000.safetensors";

#[test]
fn a_wrong_element_of_any_expected_tensor_fails() {
    assert!(matches!(verdict(ATTENTION, |_| {}), Verdict::Passed(_)));
    for name in ["out.Y", "out.present_key", "out.present_value", "out.qk_matmul_output"] {
        let changed = verdict(ATTENTION, |(tensors, _)| change_f32(tensors.get_mut(name).unwrap(), 100, |v| v + 0.01));
        assert_fails(&changed, &format!("{name}["));
    }
    let changed = verdict(LAYER, |(tensors, _)| change_f32(tensors.get_mut("out.0").unwrap(), 3, |_| f32::NAN));
    assert_fails(&changed, "out.0[0, 0, 3]: expected NaN");
}

#[test]
fn a_wrong_token_of_a_greedy_text_fails() {
    let marian = "huggingface/marian_0.safetensors";
    for at in [1, 22, 24, 26, 70] {
        let changed = verdict(marian, |(tensors, _)| tensors.get_mut("out.greedy_ids").unwrap().bytes[4 * at] ^= 1);
        assert_fails(&changed, &format!("out.greedy_ids[{}, {}]", at / 25, at % 25));
    }
}

#[test]
fn a_wrong_weight_fails() {
    for name in ["w.linear2.bias", "w.norm1.weight", "w.self_attn.in_proj_weight", "w.self_attn.out_proj.weight"] {
        let changed = verdict(LAYER, |(tensors, _)| change_f32(tensors.get_mut(name).unwrap(), 0, |v| v + 0.1));
        assert_fails(&changed, "out.0[");
    }
}

/// Rule: ids are right or wrong, to the end of a text; texts begin with their prompts.
#[test]
fn a_wrong_id_of_a_text_fails() {
    for file in ["huggingface/gpt2_0.safetensors", "huggingface/llama_2.safetensors"] {
        let changed = verdict(file, |(tensors, _)| {
            let id = &mut tensors.get_mut("out.greedy_ids_row0").unwrap().bytes[4 * 34..][..4];
            let other = (u32::from_le_bytes((&*id).try_into().unwrap()) + 1) % 101;
            id.copy_from_slice(&other.to_le_bytes());
        });
        assert_fails(&changed, "out.greedy_ids_row0[0, 34]");
        let prompt = verdict(file, |(tensors, _)| tensors.get_mut("out.greedy_ids_row0").unwrap().bytes[0] ^= 1);
        assert_fails(&prompt, "do not begin with the prompts");
    }
    let unnamed = verdict("huggingface/gpt2_0.safetensors", |(tensors, _)| {
        tensors.remove("w.transformer.h.1.attn.c_proj.weight");
    });
    assert_fails(&unnamed, "transformer.h.1.attn.c_proj.weight: the checkpoint has no tensor of this name");
}

/// Rule: the tokens of a text are compared up to the first whose runner-up is close, banned tokens apart; what rounding may have chosen
/// from there on is nobody's fault.
#[test]
fn greedy_texts_are_compared_up_to_a_close_choice() {
    let choices = [[0.0, 2.0, 1.9, 9.0], [3.0, 3.0005, 0.0, 9.0], [1.0, 0.0, 0.5, 9.0]].map(|row| Choice::of(&row, &[3]));
    assert_eq!(ids_of(&[choices.to_vec()]), [[1, 1, 0]]);
    let texts = || Texts::new("greedy_ids", [5, 2], vec![7, 8, 1, 0, 2], vec![3]);
    let made = |texts: Texts, new: [u32; 3]| texts.output(&[new.to_vec()]).unwrap().1.values().to_vec();
    assert_eq!(made(texts(), [1, 1, 0]), [7.0, 8.0, 1.0, 1.0, 0.0]);
    assert_eq!(made(texts().up_to_close([&choices[..]]), [1, 1, 0]), [7.0, 8.0, 1.0, 0.0, 2.0]);
    assert_eq!(made(texts().up_to_close([&choices[..]]), [2, 1, 0]), [7.0, 8.0, 2.0, 0.0, 2.0]);
    assert_eq!(made(texts().up_to_close([&choices[..1]]), [1, 1, 0]), [7.0, 8.0, 1.0, 1.0, 0.0]);
}

#[test]
fn nan_reaches_the_verdict() {
    let changed = verdict("pytorch/Linear_000.safetensors", |(tensors, _)| {
        change_f32(tensors.get_mut("in.input").unwrap(), 0, |_| f32::NAN);
    });
    assert_fails(&changed, "found NaN");
}

#[test]
fn malformed_cases_fail() {
    let without = |name: &str| {
        verdict(LAYER, |(tensors, metadata)| {
            tensors.remove(name);
            metadata.remove(name);
        })
    };
    for name in ["in.src", "w.linear1.weight", "w.norm2.bias", "w.self_attn.out_proj.weight", "suite", "op", "attrs", "call"]
    {
        assert_fails(&without(name), name.rsplit('.').next().unwrap());
    }
    assert_fails(&without("out.0"), "no expected output");
    let renamed = verdict(LAYER, |(tensors, _)| {
        let out = tensors["out.0"].clone();
        tensors.insert("out.7".into(), out);
    });
    assert_fails(&renamed, "out.7: not computed");
    let turned = verdict(LAYER, |(tensors, _)| tensors.get_mut("w.linear1.weight").unwrap().sizes.reverse());
    assert_fails(&turned, "w.linear1.weight: expected");
    let set = |key: &str, value: &str| verdict(LAYER, |(_, metadata)| drop(metadata.insert(key.into(), value.into())));
    assert_fails(&set("attrs", "[1"), "no JSON object");
    assert_fails(&set("attrs", "{\"d_model\": \"four\"}"), "d_model");
    assert_eq!(set("suite", "elsewhere"), Verdict::Unsupported("suite elsewhere".into()));
}

#[test]
fn corrupt_files_fail() {
    let fails = |bytes: &[u8]| matches!(Case::parse(bytes), Err(Stop::Failed(_)));
    let whole = bytes_of(LAYER);
    assert!(!fails(&whole));
    assert!((0..whole.len()).step_by(7).all(|end| fails(&whole[..end])));
    assert!(fails(&[0xff; 64]) && fails(b"not a tensor in sight"));
    assert_fails(&pollster::block_on(suite::run_file(session(), &folder("nowhere.safetensors"))), "");
    assert!(suite::files(&folder("../../../src")).is_err(), "a folder without cases");
}

#[test]
fn elements_are_judged_by_the_rule() {
    let case = |text: &str| {
        let metadata = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let tensor = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        Case::parse(&safetensors::serialize([("in.x", tensor)], Some(metadata)).unwrap()).unwrap()
    };
    let array = |values: &[f32]| Array::new(&[values.len()], values.to_vec()).unwrap();
    let compare = |text: &str, found: &[f32], expected: &[f32]| {
        Rule::of(&case(text)).unwrap().compare("y", &array(found), &array(expected))
    };
    let inf = f32::INFINITY;
    // 1e-4 of the element and 2e-5 of the largest, or the file's own numbers where they allow more.
    assert!(compare("", &[1.0, 100.0019], &[1.0, 100.0]).is_ok());
    assert!(compare("", &[1.0019, 100.0], &[1.0, 100.0]).is_ok());
    assert!(compare("", &[1.0022, 100.0], &[1.0, 100.0]).is_err());
    assert!(compare("rtol=0.001 atol=1e-7", &[1.0022, 100.09], &[1.0, 100.0]).is_err());
    assert!(compare("rtol=0.001 atol=1e-7", &[1.0019, 100.09], &[1.0, 100.0]).is_ok());
    // Infinities are equal or wrong, NaN is where it is expected.
    assert_eq!(compare("", &[-inf, f32::NAN, 0.0], &[-inf, f32::NAN, 0.0]), Ok(Deviation::default()));
    for (found, expected) in
        [(inf, -inf), (-inf, 0.0), (0.0, -inf), (f32::NAN, 0.0), (0.0, f32::NAN), (f32::NAN, inf), (1e-30, 0.0)]
    {
        assert!(compare("", &[found], &[expected]).is_err(), "{found} for {expected}");
    }
    assert!(compare("", &[0.0, 0.0], &[0.0]).is_err(), "other sizes");
}
