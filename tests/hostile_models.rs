//! Checkpoints of an adversary: whatever configurations, headers, indices and folders hold, they are read within their bounds or refused in
//! a message of bounded length; nothing panics, waits or allocates what only a number asks for.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;

use std::fs;
use std::path::PathBuf;

use checkpoints::{APART, BART, MARIAN, MT5, T5, bert_config, folder, gpt2, llama, open, seq2seq_config, with_header};
use common::{on, pick, seeded};
use rand::RngExt;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use tileformer::layers::Inputs;
use tileformer::models::causal::{self, CausalModel};
use tileformer::models::seq2seq::{self, Seq2Seq};
use tileformer::models::{Checkpoint, Config, Source, bert};
use tileformer::{BatchShape, Error};

/// Longer than any message about a file.
const LONGEST_MESSAGE: usize = 2500;

fn bounded(error: &Error) -> String {
    let text = error.to_string();
    assert!(text.len() < LONGEST_MESSAGE, "a message of {} bytes: {:.200}", text.len(), text);
    text
}

/// What a number, and anything else, may be.
fn values() -> Vec<Value> {
    let numbers = [0, 1, 2, 3, 5, 24, 46, 65_537, 1 << 30, (1 << 30) + 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
    let mut all: Vec<Value> = numbers.into_iter().map(Value::from).collect();
    all.extend([json!(null), json!(-1), json!(i64::MIN), json!(0.5), json!(1e300), json!(1e-300), json!(-0.0), json!(true)]);
    all.extend([json!(""), json!("relu"), json!("tanh"), json!("default"), json!("é".repeat(5000)), json!([]), json!({})]);
    all.extend([json!([[[[1]]]]), json!({"0": "A"}), json!({"rope_type": "linear", "factor": 1e38})]);
    let llama3 = json!({"rope_type": "llama3", "factor": 1e30, "low_freq_factor": 1e-30, "high_freq_factor": 1e30,
        "original_max_position_embeddings": 1e-30});
    all.extend([llama3, json!({"rope_theta": 1e-37}), json!({"type": 7})]);
    all
}

/// Reads a configuration as every family, and makes of it whatever can be made.
fn read(text: &str, checkpoint: &Checkpoint) -> usize {
    let config = match Config::parse("config.json", text) {
        Ok(config) => config,
        Err(error) => {
            bounded(&error);
            return 0;
        }
    };
    let inputs = Inputs::new(BatchShape::cross(1, 2, 2));
    let kernels = &on().kernels;
    let mut accepted = 0;
    let mut check = |result: Result<(), Error>| match result {
        Ok(()) => accepted += 1,
        Err(error) => drop(bounded(&error)),
    };
    check(bert::Bert::from_config(&config).and_then(|model| {
        let outputs = [bert::Output::MaskedLanguage, bert::Output::SequenceClasses];
        let program = model.program(kernels, &inputs, &outputs).map(drop);
        model.host_weights::<f32>(checkpoint, &outputs).map(drop).and(program)
    }));
    check(CausalModel::from_config(&config).and_then(|model| {
        let outputs = [causal::Output::Logits];
        let program = model.program(kernels, &inputs, &outputs).map(drop);
        model.generator().check()?;
        model.host_weights::<f32>(checkpoint, &outputs).map(drop).and(program)
    }));
    check(Seq2Seq::from_config(&config).and_then(|mut model| {
        model.logits_bias = checkpoint.has("final_logits_bias");
        let outputs = [seq2seq::Output::Logits];
        let program = model.program(kernels, &inputs, &outputs).map(drop);
        model.generator().check()?;
        model.host_weights::<f32>(checkpoint, &outputs).map(drop).and(program)
    }));
    accepted
}

/// Rule: any value of any option is used or refused, alone and with another.
#[test]
fn no_configuration_panics() {
    let bert_sizes = [24, 4, 40, 1, 3];
    let (gpt2, llama) =
        (gpt2([24, 4, 40, 1], ""), llama([24, 4, 2, 8, 36, 1], r#", "rope_scaling": null, "rope_parameters": null"#));
    let mut families = vec![
        (bert_config(bert_sizes, r#", "layer_norm_eps": 1e-12, "num_labels": 3"#), checkpoints::bert(bert_sizes, "bert.")),
        (gpt2.clone(), checkpoints::causal(&gpt2)),
        (llama.clone(), checkpoints::causal(&llama)),
    ];
    families.extend([MARIAN, BART, APART, T5, MT5].map(|made| (seq2seq_config(&made), checkpoints::seq2seq(&made))));
    let further = [
        "tie_word_embeddings",
        "model_type",
        "scale_embedding",
        "pad_token_id",
        "attention_bias",
        "rope_theta",
        "feed_forward_proj",
    ];
    for (number, (text, tensors)) in families.into_iter().enumerate() {
        let checkpoint = tensors.checkpoint(&text, Dtype::F32);
        assert_eq!(read(&text, &checkpoint), 1, "{text}");
        let whole: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let keys: Vec<&str> = whole.keys().map(String::as_str).chain(further).collect();
        for key in &keys {
            for value in values() {
                let mut changed = whole.clone();
                changed.insert((*key).into(), value);
                read(&serde_json::to_string(&changed).unwrap(), &checkpoint);
            }
        }
        let mut rng = seeded("configurations", number as u64);
        for _ in 0..150 {
            let mut changed = whole.clone();
            for _ in 0..rng.random_range(2..5) {
                changed.insert(pick(&mut rng, &keys).into(), pick(&mut rng, &values()));
            }
            read(&serde_json::to_string(&changed).unwrap(), &checkpoint);
        }
        let deep = text.replacen("24", &format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)), 1);
        assert_eq!(read(&deep, &checkpoint), 0);
        for end in (0..text.len()).step_by(3) {
            assert_eq!(read(&text[..end], &checkpoint), 0);
        }
    }
}

/// Rule: whatever sizes, types and offsets a header names, tensors that are accepted have as many elements as their sizes say, each within
/// the file once, and can be put together in any way.
#[test]
fn accepted_tensors_lie_within_their_file() {
    let dtypes = [("F32", 4), ("F16", 2), ("BF16", 2), ("U8", 1), ("F64", 8), ("BOOL", 1)];
    let sizes = [0, 1, 1, 2, 2, 3, 5, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
    let (mut accepted, mut elements) = (0, 0);
    for number in 0..6000 {
        let mut rng = seeded("headers", number);
        let (mut entries, mut end) = (Vec::new(), 0u64);
        for name in 0..rng.random_range(0..5) {
            let (dtype, bytes) = pick(&mut rng, &dtypes);
            let shape: Vec<u64> = (0..rng.random_range(0..6)).map(|_| pick(&mut rng, &sizes)).collect();
            let length = shape.iter().fold(bytes, |n: u64, &size| n.wrapping_mul(size));
            let mut offsets = [end, end.wrapping_add(length)];
            if rng.random_range(0..8) == 0 {
                let which = rng.random_range(0..2);
                offsets[which] = match rng.random_range(0..5) {
                    0 => offsets[which].wrapping_add(1),
                    1 => offsets[which].wrapping_sub(1),
                    2 => 0,
                    3 => u64::MAX,
                    _ => rng.random_range(0..40),
                };
            }
            if rng.random_range(0..16) == 0 {
                offsets.reverse();
            }
            end = offsets[1];
            let name = if rng.random_range(0..20) == 0 { "t0".into() } else { format!("t{name}") };
            entries.push(json!([name, {"dtype": dtype, "shape": shape, "data_offsets": offsets}]));
        }
        let entries: Vec<String> = entries.iter().map(|entry| format!("{}:{}", entry[0], entry[1])).collect();
        let data = if end < 4096 { end as usize } else { 64 };
        let data = data + usize::from(rng.random_range(0..16) == 0);
        let checkpoint = match open(with_header(&format!("{{{}}}", entries.join(",")), data)) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                bounded(&error);
                continue;
            }
        };
        accepted += 1;
        let mut read_bytes = 0;
        for name in checkpoint.names() {
            let sizes = checkpoint.sizes(name).unwrap().to_vec();
            let count = if sizes.contains(&0) { 0 } else { sizes.iter().product() };
            let tensor = || Source::tensor(name);
            let read = |source: Source| match source.resolve(&checkpoint) {
                Ok(found) => {
                    let mut all = vec![f32::NAN; found.len() + 1];
                    found.read(0, &mut all);
                    assert!(
                        all[..found.len()].iter().all(|&v| v == 0.0) && all[found.len()].is_nan(),
                        "{name} of {entries:?}"
                    );
                    Some(found.len())
                }
                Err(error) => {
                    bounded(&error);
                    None
                }
            };
            if let Some(found) = read(tensor()) {
                assert_eq!(found, count, "{name} of {entries:?}");
                read_bytes += found;
                if sizes.len() == 2 {
                    assert_eq!(read(tensor().transposed()), Some(count));
                    assert_eq!(read(tensor().transposed().transposed()), Some(count));
                }
                if !sizes.is_empty() {
                    assert_eq!(read(Source::rows([tensor(), tensor()])), Some(2 * count), "{name} of {entries:?}");
                }
                assert_eq!(read(tensor().reshaped(&[count])), Some(count));
            }
        }
        assert!(read_bytes <= data, "{entries:?} in {data} bytes");
        elements += read_bytes;
    }
    assert!(accepted > 1000 && elements > 1000, "{accepted} accepted, {elements} elements");
}

/// Rule: sizes of 0 make whatever stands beside them harmless, and no header makes a message as long as itself.
#[test]
fn headers_of_any_length_are_refused_shortly() {
    let most = u64::MAX;
    let checkpoint =
        open(with_header(&format!(r#"{{"a":{{"dtype":"F32","shape":[0,{most},{most},5],"data_offsets":[0,0]}}}}"#), 0))
            .unwrap();
    assert!(Source::tensor("a").resolve(&checkpoint).unwrap().is_empty());

    let long = "x".repeat(1 << 20);
    for (header, part) in [
        (format!(r#"{{"{long}":{{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}}}"#), "do not make"),
        (format!(r#"{{"a":{{"dtype":"{long}","shape":[1],"data_offsets":[0,5]}}}}"#), "tensor a"),
        (
            format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,5]}}}}"#, "1,".repeat(1 << 20)),
            "dimensions, of at most 64",
        ),
        (format!(r#"{{"{long}":1}}"#), "expected"),
    ] {
        let found = bounded(&open(with_header(&header, 5)).unwrap_err());
        assert!(found.contains(part), "{found}");
    }
    let named = Config::parse("config.json", &format!(r#"{{"hidden_size": "{long}"}}"#)).unwrap();
    assert!(bounded(&named.size("hidden_size").unwrap_err()).contains("hidden_size: expected a size"));
    let many = Config::parse("config.json", r#"{"num_labels": 1073741824}"#).unwrap();
    assert!(bounded(&many.labels().unwrap_err()).contains("num_labels: expected at most 65536"));
}

/// Rule: an index of any size is read in the time that its length takes, and a table that is only computed is bounded.
#[test]
fn sizes_that_only_a_text_names_cost_nothing() {
    let path = folder("index");
    let entries: Vec<String> = (0..200_000).map(|i| format!(r#""t{i}":"{i}.safetensors""#)).collect();
    fs::write(path.join("model.safetensors.index.json"), format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))).unwrap();
    let found = bounded(&Checkpoint::open(&path).unwrap_err());
    assert!(found.contains(".safetensors: "), "{found}");

    let text = seq2seq_config(&MARIAN).replace(r#""max_position_embeddings": 24"#, r#""max_position_embeddings": 40000000"#);
    let model = Seq2Seq::from_config(&Config::parse("config.json", &text).unwrap()).unwrap();
    let found = bounded(&model.weights().unwrap_err());
    assert_eq!(found, "positions that are computed: expected at most 2796202, found 40000000");
    fs::remove_dir_all(&path).unwrap();
}

/// Rule: what is no file is refused before it is opened, what is no text or too long for one before it is parsed.
#[test]
#[cfg(unix)]
fn what_is_no_file_is_refused() {
    use std::os::unix::fs::symlink;

    let path = folder("files");
    let [config, index, whole] =
        ["config.json", "model.safetensors.index.json", "model.safetensors"].map(|name| path.join(name));
    let refused = |part: &str| {
        let found = bounded(&Checkpoint::open(&path).unwrap_err());
        assert!(found.contains(part), "{part:?} is not in {found:?}");
    };
    let tensors = with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    fs::write(&whole, &tensors).unwrap();
    symlink("/dev/zero", &config).unwrap();
    refused("config.json: not a file");
    fs::remove_file(&config).unwrap();
    symlink("nowhere", &config).unwrap();
    refused("config.json: ");
    fs::remove_file(&config).unwrap();
    fs::write(&config, [b'{', 0xff, b'}']).unwrap();
    refused("config.json: ");
    fs::File::create(&config).unwrap().set_len((64 << 20) + 1).unwrap();
    refused("config.json: 67108865 bytes, of at most 67108864");
    fs::write(&config, "{}").unwrap();
    assert!(Checkpoint::open(&path).unwrap().has("a"));

    // A pipe that nobody writes to, in the place of the file, of a shard and of the index.
    fs::remove_file(&whole).unwrap();
    let pipe = path.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let open = |files: &[&PathBuf]| bounded(&Checkpoint::open_files(&config, files).unwrap_err());
    assert!(open(&[&pipe]).contains("pipe: not a file"));
    assert!(open(&[&path]).contains("not a file"));
    fs::write(&index, r#"{"weight_map": {"a": "pipe"}}"#).unwrap();
    refused("pipe: not a file");
    fs::write(&index, [0xff, 0xfe]).unwrap();
    refused("index.json: ");
    fs::write(&index, format!(r#"{{"weight_map": {{"a": {}1{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000))).unwrap();
    refused("index.json: no JSON");
    fs::remove_file(&index).unwrap();
    symlink(&pipe, &index).unwrap();
    refused("neither model.safetensors nor");
    fs::remove_dir_all(&path).unwrap();
}
