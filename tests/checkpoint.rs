//! Checkpoints: what is read is what was written, whatever is wrong is refused by name, and nothing is read past a file.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;

use checkpoints::{folder, open, with_header};
use common::{floats, on, on_core, pick, seeded};
use half::{bf16, f16};
use rand::RngExt;
use safetensors::tensor::{Dtype, TensorView};
use tileformer::convenience::{Loaded, UPLOAD_BYTES};
use tileformer::kernels::Linear;
use tileformer::models::{Checkpoint, Source, WeightMap};
use tileformer::{Builder, Element, Error, Layout, Program};

/// A safetensors file of f32, f16 or bf16 tensors.
fn file(tensors: &[(&str, Dtype, &[usize], &[f32])]) -> Vec<u8> {
    let bytes = |dtype: Dtype, values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let all: Vec<_> =
        tensors.iter().map(|&(name, dtype, sizes, values)| (name, dtype, sizes, bytes(dtype, values))).collect();
    let views =
        all.iter().map(|(name, dtype, sizes, bytes)| (*name, TensorView::new(*dtype, sizes.to_vec(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn values(checkpoint: &Checkpoint, source: &Source) -> (Vec<usize>, Vec<f32>) {
    let found = source.resolve(checkpoint).unwrap();
    let mut all = vec![f32::NAN; found.len()];
    found.read(0, &mut all);
    (found.sizes().to_vec(), all)
}

fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("no error"),
    }
}

/// Rule: f32, f16 and bf16 come out as they went in, and sources put them together as they say.
#[test]
fn sources_put_tensors_together() {
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..6).map(|i| i as f32 / 2.0).collect(), vec![-1.0, 65504.0, 8.0]);
    let bytes = file(&[
        ("a", Dtype::F32, &[2, 3], &a),
        ("b", Dtype::F16, &[1, 3], &b),
        ("c", Dtype::BF16, &[3], &[1.5, -2.0, 1e30]),
        ("d", Dtype::F32, &[], &[7.0]),
        ("e", Dtype::F32, &[0, 3], &[]),
    ]);
    let c = open(bytes).unwrap();
    let get = |source: Source| values(&c, &source);
    let tensor = |name: &str| Source::tensor(name);
    assert_eq!(get(tensor("a")), (vec![2, 3], a.clone()));
    assert_eq!(get(tensor("b")), (vec![1, 3], b.clone()));
    assert_eq!(get(tensor("c")).1, [1.5, -2.0, bf16::from_f32(1e30).to_f32()]);
    assert_eq!(get(tensor("d")), (vec![], vec![7.0]));
    assert_eq!(get(Source::rows([tensor("a"), tensor("b"), tensor("e")])), (vec![3, 3], [a.clone(), b.clone()].concat()));
    let turned = [0.0, 1.5, 0.5, 2.0, 1.0, 2.5];
    assert_eq!(get(tensor("a").transposed()), (vec![3, 2], turned.to_vec()));
    assert_eq!(get(tensor("a").transposed().transposed()), (vec![2, 3], a.clone()));
    assert_eq!(get(tensor("a").reshaped(&[3, 2]).transposed()).1, [0.0, 1.0, 2.0, 0.5, 1.5, 2.5]);
    assert_eq!(get(tensor("b").reshaped(&[3])), (vec![3], b));
    assert_eq!(get(tensor("x").or("y").or("c")).0, [3]);
    assert_eq!(get(Source::values(&[2, 1], vec![3.0, 4.0])), (vec![2, 1], vec![3.0, 4.0]));
    let rows = tensor("a").gathered(vec![1, 0, 1, 1]);
    assert_eq!(get(rows.clone()).1, [1.5, 2.0, 2.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 1.5, 2.0, 2.5]);
    assert_eq!(
        get(rows.clone().transposed()),
        (vec![3, 4], vec![1.5, 0.0, 1.5, 1.5, 2.0, 0.5, 2.0, 2.0, 2.5, 1.0, 2.5, 2.5])
    );
    let [made, cut] = [Source::values(&[3, 1], vec![5.0, 6.0, 7.0]), tensor("a").reshaped(&[3, 2])];
    assert_eq!(
        (get(made.gathered(vec![2, 2])).1, get(cut.gathered(vec![2, 1])).1),
        (vec![7.0, 7.0], vec![2.0, 2.5, 1.0, 1.5])
    );
    assert_eq!(get(rows.clone().reshaped(&[2, 6])).1[6..8], [1.5, 2.0]);
    assert_eq!(
        get(Source::rows([tensor("b").scaled(0.5), rows.scaled(2.0).scaled(3.0)])).1[1..5],
        [32752.0, 4.0, 9.0, 12.0]
    );
    let both = Source::rows([tensor("a").transposed(), Source::values(&[1, 2], vec![8.0, 9.0])]);
    assert_eq!(get(both.clone()).1, [&turned[..], &[8.0, 9.0]].concat());

    // Any part of it is that part of the whole.
    let (found, whole) = (both.resolve(&c).unwrap(), get(both.clone()).1);
    for first in 0..whole.len() {
        for len in 0..=whole.len() - first {
            let mut part = vec![f32::NAN; len];
            found.read(first, &mut part);
            assert_eq!(part, whole[first..first + len]);
        }
    }

    let refused = |source: Source| message(source.resolve(&c));
    assert_eq!(refused(tensor("x").or("y")), "x: the checkpoint has no tensor of this name, and none named y");
    assert_eq!(
        refused(Source::rows([tensor("a"), tensor("c")])),
        "c: expected rows of the same sizes as a, [2, 3], found [3]"
    );
    assert_eq!(refused(tensor("c").transposed()), "c: expected one matrix, to be transposed, found [3]");
    let twice = tensor("a").transposed().reshaped(&[2, 3]).transposed();
    assert_eq!(refused(twice), "a: expected one matrix, to be transposed, found [2, 3]");
    assert_eq!(refused(tensor("a").reshaped(&[7])), "a: expected elements for [7], found [2, 3]");
    assert!(refused(tensor("a").reshaped(&[usize::MAX, 2])).starts_with("a: "));
    assert!(refused(Source::rows([])).contains("at least one source"));
    assert_eq!(refused(tensor("a").gathered(vec![0, 2])), "rows of a: expected rows below 2, found 2");
    let [turned, vector] = [tensor("a").transposed().gathered(vec![0]), tensor("c").gathered(vec![0])].map(refused);
    assert_eq!(turned, "a: expected one matrix that is neither turned nor gathered, to take rows of, found [3, 2]");
    assert_eq!(vector, "c: expected one matrix that is neither turned nor gathered, to take rows of, found [3]");
    let cut = tensor("a").gathered(vec![1, 0]).reshaped(&[3, 2]).transposed();
    assert_eq!(refused(cut), "a: expected rows as they were gathered, to be transposed, found [3, 2]");
    assert!(refused(Source::values(&[2], vec![])).contains("values"));
}

/// Rule: a name is found with and without the usual prefixes, and norms under their old names.
#[test]
fn names_may_have_prefixes() {
    let one: &[f32] = &[1.0];
    let names = ["bert.a.weight", "b.weight", "model.c", "transformer.h.0", "bert.LayerNorm.gamma", "LayerNorm.beta"];
    let tensors: Vec<_> = names.iter().map(|&name| (name, Dtype::F32, &[1][..], one)).collect();
    let c = open(file(&tensors)).unwrap();
    for name in ["a.weight", "bert.a.weight", "bert.b.weight", "b.weight", "model.b.weight", "c", "h.0", "transformer.h.0"] {
        assert!(c.has(name), "{name}");
    }
    assert!(c.has("LayerNorm.weight") && c.has("bert.LayerNorm.weight") && c.has("bert.LayerNorm.bias"));
    for name in ["a", "weight", "other.c", "gamma", "x.LayerNorm.bias"] {
        assert!(!c.has(name), "{name}");
    }
    assert_eq!(c.names().count(), names.len());
}

/// Rule: a header that lies about what is where is refused, and what is wrong is said.
#[test]
fn hostile_headers_are_refused() {
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let refused = |entries: &[String], data: usize, part: &str| {
        let found = message(open(with_header(&format!("{{{}}}", entries.join(",")), data)));
        assert!(found.starts_with("model.safetensors: ") && found.contains(part), "{part:?} is not in {found:?}");
    };
    let (a, huge) = (entry("a", "F32", "[2]", 0, 8), u64::MAX);
    assert!(open(with_header(&format!("{{{a}}}"), 8)).is_ok());
    refused(std::slice::from_ref(&a), 7, "tensor a");
    refused(std::slice::from_ref(&a), 9, "1 bytes of data behind");
    refused(&[a.clone(), entry("b", "F32", "[2]", 4, 12)], 12, "tensor b"); // overlapping
    refused(&[a.clone(), entry("b", "F32", "[1]", 12, 16)], 16, "tensor b"); // a hole
    refused(&[a.clone(), entry("b", "F32", "[2]", 8, 0)], 16, "tensor b"); // reversed
    refused(&[a.clone(), a.clone()], 8, "a is there twice");
    refused(&[entry("a", "F32", "[2]", 0, 4)], 4, "tensor a");
    refused(&[entry("a", "F16", "[2]", 0, 8)], 8, "tensor a");
    refused(&[entry("a", "F4", "[3]", 0, 1)], 1, "tensor a"); // half a byte
    refused(&[entry("a", "F32", "[9223372036854775807,3]", 0, 8)], 8, "tensor a");
    refused(&[entry("a", "F32", "[4611686018427387904]", 0, 0)], 0, "tensor a");
    refused(&[entry("a", "U8", "[1]", huge, huge)], 1, "tensor a");
    // No elements, however many there would be without the 0.
    let none = open(with_header(&format!("{{{}}}", entry("a", "F32", "[0,1099511627776,1099511627776,1]", 0, 0)), 0));
    assert!(values(&none.unwrap(), &Source::tensor("a")).1.is_empty());
    // Sizes that only wrap around to the file's.
    let eighth = huge / 8 + 1;
    let wrapping: Vec<String> = (0..8)
        .map(|i| entry(&format!("w{i}"), "U8", &format!("[{}]", eighth - 1), i * (eighth - 1), (i + 1) * (eighth - 1)))
        .collect();
    refused(&wrapping, 16, "tensor w0");
    refused(&[entry("a", "F32", "[-1]", 0, 4)], 4, "tensor a");
    refused(&[entry("a", "F31", "[1]", 0, 4)], 4, "tensor a");
    refused(&[r#""a":{"dtype":"F32"}"#.into()], 4, "tensor a");
    refused(&[r#""a":[]"#.into()], 4, "tensor a");
    refused(&[r#""__metadata__":{},"__metadata__":{}"#.into()], 0, "twice");
    for (bytes, part) in [
        (vec![], "too few"),
        (vec![1; 7], "too few"),
        (huge.to_le_bytes().to_vec(), "claims"),
        ([200_000_000u64.to_le_bytes().to_vec(), vec![b' '; 64]].concat(), "claims 200000000"),
        (with_header("", 0), "header"),
        (with_header("[]", 0), "header"),
        (with_header("{}", 3), "behind"),
        (with_header(&"[".repeat(100_000), 0), "header"),
        ([2u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat(), "no text"),
    ] {
        let found = message(open(bytes));
        assert!(found.contains(part), "{part:?} is not in {found:?}");
    }
}

/// Rule: whatever bytes a file has, it is read within its bounds or refused; nothing panics.
#[test]
fn mutated_files_never_panic() {
    let whole = file(&[
        ("a.weight", Dtype::F32, &[3, 4], &[1.0; 12]),
        ("a.bias", Dtype::F16, &[4], &[2.0; 4]),
        ("b", Dtype::BF16, &[2, 1, 2], &[3.0; 4]),
        ("c", Dtype::I64, &[1], &[0.0; 2]),
    ]);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let pieces = [
        "0",
        "-1",
        "18446744073709551615",
        "9223372036854775808",
        "1e400",
        "[]",
        "{}",
        "\"",
        "\\u0000",
        "F64",
        "U8",
        ",",
        "null",
    ];
    let (mut accepted, mut refused) = (0, 0);
    for number in 0..4000 {
        let mut rng = seeded("mutated headers", number);
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            match rng.random_range(0..6) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(rng.random_range(0..whole.len())),
                2 => bytes[..8].copy_from_slice(&(rng.random::<u64>() >> rng.random_range(0..64)).to_le_bytes()),
                3 => bytes.extend(vec![0; rng.random_range(0..20)]),
                _ => {
                    // Text of the header, its length kept right.
                    let piece = pick(&mut rng, &pieces);
                    let at = at.clamp(8, bytes.len().max(8));
                    let end = (at + rng.random_range(0..4)).min(bytes.len());
                    if at <= end {
                        bytes.splice(at..end, piece.bytes());
                        let length = (header - 8 + piece.len()).saturating_sub(end - at) as u64;
                        bytes[..8].copy_from_slice(&length.to_le_bytes());
                    }
                }
            }
            bytes.resize(bytes.len().max(header), 0);
        }
        match open(bytes) {
            Ok(checkpoint) => {
                accepted += 1;
                for name in checkpoint.names() {
                    if let Ok(found) = Source::tensor(name).resolve(&checkpoint) {
                        let mut all = vec![0.0; found.len()];
                        found.read(0, &mut all);
                    }
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("model.safetensors: "));
            }
        }
    }
    assert!(accepted > 0 && refused > 1000, "{accepted} accepted, {refused} refused");
    for end in 0..whole.len() {
        assert!(open(whole[..end].to_vec()).is_err(), "cut to {end} bytes");
    }
}

/// Rule: a folder is one file or the files of its index, all of them in the folder; what is missing is named.
#[test]
fn folders_and_shards() {
    let path = folder("shards");
    let write = |name: &str, bytes: &[u8]| std::fs::write(path.join(name), bytes).unwrap();
    let index = |map: &str| write("model.safetensors.index.json", format!(r#"{{"weight_map": {map}}}"#).as_bytes());
    assert!(message(Checkpoint::open(path.join("nowhere"))).contains("nowhere"));
    assert!(message(Checkpoint::open(&path)).contains("neither model.safetensors nor"));
    write("1.safetensors", &file(&[("a", Dtype::F32, &[1], &[1.0]), ("unused", Dtype::F32, &[1], &[9.0])]));
    write("2.safetensors", &file(&[("b", Dtype::F32, &[2], &[2.0, 3.0]), ("unused", Dtype::F32, &[1], &[9.0])]));
    index(r#"{"a": "1.safetensors", "b": "2.safetensors"}"#);
    assert!(message(Checkpoint::open(&path)).contains("config.json"));
    write("config.json", br#"{"model_type": "bert"}"#);
    let c = Checkpoint::open(&path).unwrap();
    assert_eq!((values(&c, &Source::tensor("a")).1, values(&c, &Source::tensor("b")).1), (vec![1.0], vec![2.0, 3.0]));
    assert_eq!((c.has("unused"), c.config().text("model_type").unwrap()), (false, Some("bert")));

    for outside in ["../1.safetensors", "/etc/passwd", "..", ".", "", "x/../1.safetensors", "C:\\\\x", "..\\\\x"] {
        index(&format!(r#"{{"a": "{outside}"}}"#));
        let found = message(Checkpoint::open(&path));
        assert!(found.contains("a: expected the name of a file in this folder"), "{found}");
    }
    for (map, part) in [
        (r#"{"a": "3.safetensors"}"#, "3.safetensors"),
        (r#"{"b": "1.safetensors"}"#, "no tensor b"),
        (r#"{"a": 1}"#, "a: expected the name"),
        ("{}", "weight_map"),
        ("[", "no JSON"),
    ] {
        index(map);
        let found = message(Checkpoint::open(&path));
        assert!(found.contains(part), "{found}");
    }
    let twice = Checkpoint::open_files(path.join("config.json"), &[path.join("1.safetensors"), path.join("2.safetensors")]);
    assert!(message(twice).contains("tensor unused is in"));
    write("model.safetensors", &[]);
    assert!(message(Checkpoint::open(&path)).contains("too few"));
    write("model.safetensors", &file(&[("a", Dtype::F32, &[1], &[5.0])]));
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), &Source::tensor("a")).1, [5.0]);
    assert!(Checkpoint::open(path.join("model.safetensors")).unwrap().has("a"));
    std::fs::remove_dir_all(&path).unwrap();
}

/// A program whose weights are `w` (d_out, d_in) and `bias`, stored as `element`.
fn program(on: &common::On, element: Element, d_out: usize, d_in: usize) -> Program {
    let mut b = Builder::new(&on.kernels, "linear").with_storage(element).unwrap();
    let x = b.input("x", element, Layout::contiguous(&[1, d_in]).unwrap()).unwrap();
    let w = b.weight("w", Layout::contiguous(&[d_out, d_in]).unwrap()).unwrap();
    let bias = b.weight("bias", Layout::contiguous(&[d_out]).unwrap()).unwrap();
    let y = b.output("y", element, Layout::contiguous(&[1, d_out]).unwrap()).unwrap();
    b.linear("linear", &Linear { bias: Some(bias), ..Linear::new(x, w, y) }).unwrap();
    b.finish().unwrap()
}

/// Rule: what a program reads is on the device, converted, whole, and counted; with f16 in either form.
#[test]
fn weights_are_converted_on_their_way_up() {
    let (d_out, d_in) = (6, 34);
    let w = floats(&mut seeded("upload", 0), d_out * d_in);
    let turned: Vec<f32> = (0..d_in * d_out).map(|i| w[i % d_out * d_in + i / d_out]).collect();
    let bias = [0.5, -1.0, 1024.0, 3.0, 0.25, -65504.0];
    let checkpoint = open(file(&[
        ("w", Dtype::F32, &[d_in, d_out], &turned),
        ("first", Dtype::BF16, &[1, 3], &bias[..3]),
        ("last", Dtype::F16, &[1, 3], &bias[3..]),
    ]));
    let checkpoint = checkpoint.unwrap();
    let mut map = WeightMap::new();
    let parts = ["first", "last"].map(|name| Source::tensor(name).reshaped(&[3]));
    map.insert("w", Source::tensor("w").transposed()).insert("bias", Source::rows(parts));
    for (on, element) in [(on(), Element::F32), (on(), Element::F16), (on_core(), Element::F16)] {
        let program = program(on, element, d_out, d_in);
        let mut seen = Vec::new();
        let bound = on.gpu.upload_checkpoint(&[&program, &program], &checkpoint, &map, |p| seen.push(p)).unwrap();
        let read = |name: &str| on.gpu.read_f32(bound.get(name).unwrap()).unwrap();
        assert_eq!(read("bias"), bias);
        assert_eq!(read("w"), common::stored(element, &w));
        let total = (d_out * d_in + d_out) as u64 * element.size();
        assert_eq!(seen, [6 * element.size(), total].map(|bytes| Loaded { bytes, total }));
    }
}

/// Rule: what does not fit is refused by the checkpoint's name, missing and misshapen tensors before anything is uploaded.
#[test]
fn uploads_name_what_is_wrong() {
    let bytes = file(&[
        ("w", Dtype::F32, &[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 70000.0]),
        ("infinite", Dtype::F32, &[2], &[f32::INFINITY, f32::NEG_INFINITY]),
        ("long", Dtype::F32, &[3], &[0.0; 3]),
        ("ids", Dtype::I64, &[1], &[0.0; 2]),
    ]);
    let checkpoint = open(bytes).unwrap();
    let refused = |element: Element, w: &str, bias: &str| {
        let mut map = WeightMap::new();
        map.insert("w", Source::tensor(w)).insert("bias", Source::tensor(bias));
        let (program, mut pieces) = (program(on(), element, 2, 4), 0);
        let result = on().gpu.upload_checkpoint(&[&program], &checkpoint, &map, |_| pieces += 1);
        (result.map(drop).map_err(|e| e.to_string()), pieces)
    };
    assert_eq!(refused(Element::F32, "w", "infinite"), (Ok(()), 2));
    let too_large = "w: element 7, 70000, does not fit f16, which ends at ±65504";
    assert_eq!(refused(Element::F16, "w", "infinite").0, Err(too_large.into()));
    let before = |result: (Result<(), String>, usize), expected: &str| assert_eq!(result, (Err(expected.into()), 0));
    before(refused(Element::F32, "w", "long"), "long (for bias): expected [2], found [3]");
    before(refused(Element::F32, "v", "infinite"), "v: the checkpoint has no tensor of this name");
    before(refused(Element::F32, "w", "ids"), "ids: expected elements of type f32, f16 or bf16, found I64");
    let program = program(on(), Element::F32, 2, 4);
    let unmapped = on().gpu.upload_checkpoint(&[&program], &checkpoint, &WeightMap::new(), |_| {});
    assert!(matches!(unmapped, Err(Error::Missing { tensor, .. }) if tensor == "bias"));
}

/// Rule: a tensor larger than a piece arrives whole, piece after piece.
#[test]
fn large_weights_go_up_in_pieces() {
    let (d_out, d_in) = (4104, 4096);
    assert!(4 * d_out * d_in > UPLOAD_BYTES);
    let value = |i: usize| (i % 251) as f32 - 125.0;
    let w: Vec<f32> = (0..d_out * d_in).map(value).collect();
    let bias = vec![0.0; d_out];
    let checkpoint = open(file(&[("w", Dtype::BF16, &[d_out, d_in], &w), ("bias", Dtype::F32, &[d_out], &bias)])).unwrap();
    let mut map = WeightMap::new();
    map.insert("w", Source::tensor("w")).insert("bias", Source::tensor("bias"));
    let mut seen = Vec::new();
    let program = program(on(), Element::F32, d_out, d_in);
    let bound = on().gpu.upload_checkpoint(&[&program], &checkpoint, &map, |p| seen.push(p.bytes)).unwrap();
    assert_eq!(seen.len(), 3);
    assert!(on().gpu.read_f32(bound.get("w").unwrap()).unwrap() == w);
}
