//! The example `translate`: the model's translations and logits are those of the training framework, on the GPU and on the
//! CPU reference, alone and in a batch, and what cannot be translated is refused.

#[path = "../examples/translate/app.rs"]
mod app;
#[path = "../examples/translate/cpu.rs"]
mod cpu;
#[path = "../examples/translate/engine.rs"]
mod engine;
#[path = "../examples/translate/gpu.rs"]
mod gpu;
#[path = "../examples/translate/model.rs"]
mod model;
#[path = "../examples/translate/plot.rs"]
mod plot;
#[path = "../examples/translate/programs.rs"]
mod programs;
#[path = "../examples/translate/text.rs"]
mod text;

use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use clap::Parser;
use safetensors::SafeTensors;
use serde_json::Value;
use tileformer::convenience::{Gpu, Setup};

use engine::{Engine, Result};
use model::{DATES, Model};
use text::Line;

const CASES: &str = include_str!("data/translate/cases.json");

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::parse(DATES).expect("the example's model"))
}

fn on_gpu() -> Result<gpu::OnGpu<'static>> {
    gpu::OnGpu::new(Gpu::open(&Setup::default())?, model())
}

fn on_cpu() -> Result<cpu::Cpu<'static>> {
    cpu::Cpu::new(model())
}

fn cases() -> Value {
    serde_json::from_str(CASES).expect("the cases are JSON")
}

fn strings(cases: &Value, field: &str) -> Vec<String> {
    cases["cases"].as_array().into_iter().flatten().filter_map(|c| c[field].as_str().map(String::from)).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|id| id.as_u64().map(|id| id as u32)).collect()
}

fn encode(texts: &[String]) -> Vec<Vec<u32>> {
    let line = |text: &String| Line { number: 1, text: text.clone() };
    texts.iter().map(|text| model().source.encode(&line(text)).expect("a text of the model's characters")).collect()
}

fn translate(engine: &mut dyn Engine, texts: &[String]) -> Result<Vec<String>> {
    let produced = engine.translate(&encode(texts))?;
    Ok(produced.iter().map(|ids| model().target.decode(ids)).collect())
}

/// What the program prints, what it says on stderr, and its exit code.
fn run(arguments: &[&str], input: &[u8]) -> (String, String, u8) {
    let arguments = [&["translate"], arguments].concat();
    let args = app::Args::try_parse_from(arguments).expect("arguments");
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let code = app::run(&args, input, &mut out, &mut notices);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(notices), code)
}

#[test]
fn all_cases_in_one_batch_on_the_gpu() -> Result<()> {
    let cases = cases();
    let (sources, expected) = (strings(&cases, "source"), strings(&cases, "expected"));
    assert_eq!((sources.len(), expected.len()), (200, 200));
    assert_eq!(translate(&mut on_gpu()?, &sources)?, expected);
    Ok(())
}

#[test]
fn the_cpu_reference_gives_the_same_text() -> Result<()> {
    let cases = cases();
    let every_tenth = |field| strings(&cases, field).into_iter().step_by(10).collect::<Vec<_>>();
    let sources = every_tenth("source");
    let on_cpu = translate(&mut on_cpu()?, &sources)?;
    assert_eq!(on_cpu, every_tenth("expected"));
    assert_eq!(on_cpu, translate(&mut on_gpu()?, &sources)?);
    Ok(())
}

#[test]
fn alone_or_in_a_batch_is_the_same() -> Result<()> {
    let sources: Vec<String> = strings(&cases(), "source").into_iter().step_by(25).collect();
    let mut gpu = on_gpu()?;
    let together = translate(&mut gpu, &sources)?;
    // The plan for all of them serves these smaller batches too.
    let in_two: Vec<String> = [translate(&mut gpu, &sources[..3])?, translate(&mut gpu, &sources[3..])?].concat();
    assert_eq!(in_two, together);
    for (source, together) in sources.iter().zip(&together) {
        assert_eq!(translate(&mut on_gpu()?, std::slice::from_ref(source))?, std::slice::from_ref(together));
    }
    Ok(())
}

#[test]
fn more_than_a_batch_runs_as_several() -> Result<()> {
    let (first, second) = ("3 May 1979".to_owned(), "12/31/2043".to_owned());
    let sources: Vec<String> = (0..engine::BATCH + 3).map(|i| if i % 2 == 0 { &first } else { &second }).cloned().collect();
    for (i, translation) in translate(&mut on_gpu()?, &sources)?.iter().enumerate() {
        assert_eq!(translation, if i % 2 == 0 { "1979-05-03" } else { "2043-12-31" }, "line {}", i + 1);
    }
    Ok(())
}

#[test]
fn logits_are_those_of_the_training_framework() -> Result<()> {
    let cases = cases();
    let logit_cases = cases["logit_cases"].as_array().expect("cases with logits");
    assert_eq!(logit_cases.len(), 3);
    let engines: [(&str, Box<dyn Engine>); 2] = [("GPU", Box::new(on_gpu()?)), ("CPU", Box::new(on_cpu()?))];
    for (name, mut engine) in engines {
        for case in logit_cases {
            let source = case["source"].as_str().unwrap_or_default();
            assert_eq!(encode(&[source.to_owned()]), [ids(&case["source_ids"])], "{source}");
            let rows = case["logits"].as_array().into_iter().flatten();
            let expected: Vec<f64> =
                rows.flat_map(|row| row.as_array().into_iter().flatten()).filter_map(Value::as_f64).collect();
            let found = engine.trace(&ids(&case["source_ids"]), &ids(&case["target_ids"]))?.logits;
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
            for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
                let allowed = 1e-4 * expected.abs() + 2e-5 * largest;
                let off = (f64::from(found) - expected).abs();
                assert!(off <= allowed, "{name}, {source}, logit {i}: {found} is {off} off {expected}, {allowed} allowed");
            }
        }
    }
    Ok(())
}

#[test]
fn the_model_was_measured_on_held_out_dates() -> Result<()> {
    let (_, header) = SafeTensors::read_metadata(DATES)?;
    let metadata = header.metadata().as_ref().ok_or("no metadata")?;
    let exact_match: f64 = metadata["held_out_exact_match"].parse()?;
    assert!((0.995..=1.0).contains(&exact_match), "{exact_match}");
    Ok(())
}

#[test]
fn attention_sums_to_one_and_is_the_same_on_both() -> Result<()> {
    let source = encode(&["Friday, the 13th of June, 2031".to_owned()]).remove(0);
    let target = [1, 6, 4, 7, 5, 3, 4, 10, 3, 5, 7]; // <bos>2031-06-13
    let on_gpu = on_gpu()?.trace(&source, &target)?;
    let on_cpu = on_cpu()?.trace(&source, &target)?;
    assert_eq!((on_gpu.cross_attention.len(), on_cpu.cross_attention.len()), (2, 2));
    for (found, expected) in on_gpu.cross_attention.iter().zip(&on_cpu.cross_attention) {
        assert_eq!(found.len(), 4 * target.len() * source.len());
        assert_eq!(found.len(), expected.len());
        for row in found.chunks_exact(source.len()) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        let off = found.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-4, "{off}");
    }
    Ok(())
}

#[test]
fn sheets_show_both_strings_and_every_head() -> Result<()> {
    let path = env::temp_dir().join(format!("tileformer-attention-{}.svg", std::process::id()));
    let second = path.with_extension("").display().to_string() + "-2.svg";
    let file = path.display().to_string();
    let (out, notices, code) = run(&["--cpu", "--attention", &file, "Oct. 4, 1957", "4.10.57"], b"");
    assert_eq!((notices.as_str(), code), ("", 0));
    assert!(out.starts_with("Oct. 4, 1957 → 1957-10-04\n4.10.57 → 1957-10-04\n"), "{out}");
    let sheets = [fs::read_to_string(&path)?, fs::read_to_string(&second)?];
    fs::remove_file(&path)?;
    fs::remove_file(&second)?;
    for (svg, source) in sheets.iter().zip(["Oct. 4, 1957", "4.10.57"]) {
        // One text element a line, between its tags' lines.
        let texts: Vec<&str> = svg.lines().map(str::trim).collect();
        assert!(texts.contains(&format!("{source} → 1957-10-04").as_str()), "{source}");
        for (layer, head) in (1..=2).flat_map(|layer| (1..=4).map(move |head| (layer, head))) {
            assert_eq!(texts.iter().filter(|t| **t == format!("layer {layer} head {head}")).count(), 1);
        }
        for character in source.chars().chain("1957-10-04".chars()) {
            let shown = if character == ' ' { "␣".into() } else { character.to_string() };
            let wanted = source.chars().chain("1957-10-04".chars()).filter(|c| *c == character).count();
            assert!(texts.iter().filter(|t| **t == shown).count() >= 8 * wanted, "{character:?} in {source}");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_translated_is_refused_and_nothing_is_printed() {
    let long = "May ".repeat(11);
    for (arguments, input, said) in [
        (&["3 May 1979", "3 Måi 1979"][..], &b""[..], "line 2, character 4: the model has no 'å' (U+00E5)"),
        (&["tab\there"], b"", "line 1, character 4: the model has no '\\t' (U+0009)"),
        (&[""], b"", "line 1 is empty"),
        (&["  "], b"", "line 1 is empty"),
        (&[&long], b"", "line 1 has 44 characters; the model reads at most 40"),
        (&[], b"\n3 May 1979\n\n3#5\n", "line 4, character 2: the model has no '#' (U+0023)"),
        (&[], b"3 May 1979\n\xff\n", "line 2 is not text (UTF-8)"),
        (&[], b" \n\n", "nothing to translate"),
        (&["--attention", "sheet.png", "3 May 1979"], b"", "sheet.png: attention is drawn as SVG"),
    ] {
        let (out, notices, code) = run(arguments, input);
        assert_eq!((out.as_str(), code), ("", 2), "{arguments:?}");
        assert!(notices.contains(said), "{arguments:?}: {notices}");
    }
}

#[test]
fn lines_of_standard_input_run_as_a_batch() {
    let (out, notices, code) = run(&["--cpu"], b"3 May 1979\r\n\n12/31/2043");
    assert_eq!((notices.as_str(), code), ("", 0));
    assert!(
        out.starts_with("3 May 1979 → 1979-05-03\n12/31/2043 → 2043-12-31\n\nCPU reference: 2 lines, 22 tokens in "),
        "{out}"
    );
}

#[test]
fn adapters_are_listed_and_chosen_by_name() -> Result<()> {
    let name = Gpu::open(&Setup::default())?.info.name;
    let (out, _, code) = run(&["--list-adapters"], b"");
    assert!(code == 0 && out.contains(&name), "{out}");
    let (out, notices, code) = run(&["--adapter", &name.to_uppercase(), "3 May 1979"], b"");
    assert!(out.starts_with("3 May 1979 → 1979-05-03\n") && out.contains(&name), "{out}{notices}");
    assert_eq!(code, 0);
    let (out, notices, code) = run(&["--adapter", "no such adapter", "3 May 1979"], b"");
    assert_eq!((out.as_str(), code), ("", 1));
    assert!(notices.contains("no such adapter") && notices.contains(&name), "{notices}");
    Ok(())
}

/// Runs itself again where wgpu is told to use its empty backend alone, which has no adapter for who does not ask for one.
#[test]
fn without_an_adapter_the_cpu_translates_and_a_notice_says_so() -> Result<()> {
    const CHILD: &str = "TILEFORMER_TEST_WITHOUT_ADAPTER";
    if env::var_os(CHILD).is_none() {
        let mut child = Command::new(env::current_exe()?);
        child.args(["--exact", "without_an_adapter_the_cpu_translates_and_a_notice_says_so"]);
        assert!(child.env(CHILD, "1").env("WGPU_BACKEND", "noop").status()?.success());
        return Ok(());
    }
    let (out, notices, code) = run(&["3 May 1979"], b"");
    assert!(out.starts_with("3 May 1979 → 1979-05-03\n\nCPU reference: 1 line, "), "{out}");
    assert!(notices.starts_with("notice: translating on the CPU reference: "), "{notices}");
    assert_eq!(code, 0);
    Ok(())
}

#[test]
fn a_model_that_is_none_is_an_error() {
    for file in ["Cargo.toml", "no such file"] {
        let (out, notices, code) = run(&["--model", file, "3 May 1979"], b"");
        assert_eq!((out.as_str(), code), ("", 1));
        assert!(notices.starts_with(&format!("error: {file}: ")), "{notices}");
    }
    // Truncated, or with another shape than it says.
    assert!(Model::parse(&DATES[..DATES.len() - 2]).is_err());
    assert!(Model::parse(&[]).is_err());
}
