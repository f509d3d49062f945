//! Models whose projections are stored in blocks of integers: outputs and texts are those of the numbers that the blocks stand for.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;
#[path = "common/writing.rs"]
mod writing;

use checkpoints::{BART, MT5, Tensors, VOCABULARY, bert_config, gpt2, ids, llama, seq2seq_config};
use common::{assert_close, largest, on, on_core, on_invariant};
use safetensors::tensor::Dtype;
use tileformer::kernels::{Linear, LinearFew};
use tileformer::layers::{GeneratorInputs, Inputs, StepShape};
use tileformer::models::bert::{self, Bert, BertInputs};
use tileformer::models::causal::{self, CausalInputs, CausalModel};
use tileformer::spec::blocks;
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Bindings, Builder, Element, Error, Program, Role, Sequences};

const BLOCKS: [Element; 2] = [Element::Int8, Element::Int4];

fn outputs(program: &Program, mut bindings: Bindings) -> Vec<(String, Vec<f32>)> {
    let gpu = &on().gpu;
    let mut views = Vec::new();
    for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
        let view = gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()]).unwrap();
        bindings.set(name, view.clone());
        views.push((name.to_owned(), view));
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    views.into_iter().map(|(name, view)| (name, gpu.read_f32(&view).unwrap())).collect()
}

/// Rule: forward passes of few and of many rows are those of the numbers that the blocks stand for.
#[test]
fn outputs_are_those_of_the_blocks() {
    let gpu = &on().gpu;
    for (config, element) in [gpt2([24, 4, 40, 2], ""), llama([136, 4, 2, 34, 140, 2], "")].iter().zip(BLOCKS) {
        let tensors = || checkpoints::causal(config);
        let (stored, meant) =
            (tensors().checkpoint(config, Dtype::F32), tensors().in_blocks(element).checkpoint(config, Dtype::F32));
        let model = CausalModel::new(&stored).unwrap();
        let wanted = [causal::Output::Hidden(1), causal::Output::Hidden(2), causal::Output::Logits];
        for lengths in [&[5, 1, 9][..], &[11, 2, 17]] {
            let sequences = Sequences::packed(lengths).unwrap();
            let ids = ids(lengths.iter().sum(), 0, VOCABULARY);
            let inputs = Inputs::new(sequences.shape()).with_weights(element);
            let program = model.program(&on().kernels, &inputs, &wanted).unwrap();
            let unpacks = program.variants().iter().any(|variant| variant.name().starts_with("unpack"));
            assert_eq!(unpacks, ids.len() > 16, "{config}");
            let mut bindings = gpu.upload_causal(&[&program], &stored, &model, |_| {}).unwrap();
            bindings
                .set("ids", gpu.upload_u32(&[ids.len()], &ids).unwrap())
                .set("sequences", gpu.upload_sequences(&sequences).unwrap());
            let inputs = CausalInputs { ids: &ids, sequences: &sequences, key_mask: None };
            let narrow = model.host_weights::<f32>(&meant, &wanted).unwrap();
            let narrow = model.reference(&narrow.weights().unwrap(), &inputs, &wanted).unwrap();
            let wide = model.host_weights::<f64>(&meant, &wanted).unwrap();
            let wide = model.reference(&wide.weights().unwrap(), &inputs, &wanted).unwrap();
            for (name, found) in outputs(&program, bindings) {
                let floor = largest(&wide[&name]) * 4e-6;
                assert_close(&format!("{name} of {config} in {element:?}"), &found, &narrow[&name], &wide[&name], floor);
            }
        }
    }
}

/// Rule: an encoder too, in f16 with its blocks unpacked; its heads stay as they are.
#[test]
fn encoders_are_those_of_the_blocks() {
    let (gpu, sizes) = (&on().gpu, [24, 4, 40, 2, 3]);
    let config = bert_config(sizes, "");
    let stored = checkpoints::bert(sizes, "bert.").checkpoint(&config, Dtype::F32);
    let model = Bert::new(&stored).unwrap();
    let wanted = [bert::Output::Hidden(2), bert::Output::MaskedLanguage];
    let sequences = Sequences::packed(&[9, 14]).unwrap();
    let (ids, segments) = (ids(23, 1, VOCABULARY), vec![0; 23]);
    for element in BLOCKS {
        let inputs = Inputs::new(sequences.shape()).with_storage(Element::F16).with_weights(element);
        let program = model.program(&on().kernels, &inputs, &wanted).unwrap();
        let blocks = program.tensors().filter(|(.., stored, _)| *stored == element).count();
        assert_eq!(blocks, 2 * 4, "two layers of four projections");
        let mut bindings = gpu.upload_checkpoint(&[&program], &stored, &model.weights(), |_| {}).unwrap();
        bindings
            .set("ids", gpu.upload_u32(&[23], &ids).unwrap())
            .set("segment_ids", gpu.upload_u32(&[23], &segments).unwrap())
            .set("sequences", gpu.upload_sequences(&sequences).unwrap());
        let meant = checkpoints::bert(sizes, "bert.");
        let meant = meant.in_blocks(element).checkpoint(&config, Dtype::F32);
        let inputs = BertInputs { ids: &ids, segment_ids: &segments, sequences: &sequences, key_mask: None };
        let host = model.host_weights::<f64>(&meant, &wanted).unwrap();
        let right = model.reference(&host.weights().unwrap(), &inputs, &wanted).unwrap();
        for (name, found) in outputs(&program, bindings) {
            let most = largest(&right[&name]);
            for (at, (found, right)) in found.iter().zip(&right[&name]).enumerate() {
                assert!((f64::from(*found) - right).abs() < 2e-2 * most, "{name}[{at}] in {element:?}: {found}, {right}");
            }
        }
    }
}

/// Rule: what is written through caches is what the numbers that the blocks stand for write, a token at a time.
#[test]
fn texts_are_those_of_the_blocks() {
    const STEPS: usize = 9;
    let prompts: Vec<Vec<u32>> = [5, 2, 11].iter().enumerate().map(|(b, &n)| ids(n, b, VOCABULARY)).collect();
    let close = |what: &str, found: &writing::Written, right: &writing::Written| {
        assert_eq!(found.ids, right.ids, "{what}");
        let pairs = found.log_probs.iter().flatten().zip(right.log_probs.iter().flatten());
        pairs.for_each(|(found, right)| assert!((found - right).abs() < 1e-4, "{what}: {found}, {right}"));
    };
    for config in [gpt2([24, 4, 40, 2], ""), llama([24, 4, 2, 8, 36, 2], "")] {
        for element in BLOCKS {
            let tensors = |t: Tensors| t.checkpoint(&config, Dtype::F32);
            let (stored, meant) =
                (tensors(checkpoints::causal(&config)), tensors(checkpoints::causal(&config).in_blocks(element)));
            for on in [on(), on_core(), on_invariant()] {
                let found = writing::causal_of(on, &stored, [Element::F32, element], &prompts, STEPS);
                close(
                    &format!("{config} in {element:?}"),
                    &found,
                    &writing::causal(on, &meant, Element::F32, &prompts, STEPS),
                );
            }
        }
    }
    let source = Sequences::packed(&[6, 2, 9]).unwrap();
    for made in [BART, MT5] {
        for element in BLOCKS {
            let tensors = |t: Tensors| t.checkpoint(&seq2seq_config(&made), Dtype::F32);
            let (stored, meant) =
                (tensors(checkpoints::seq2seq(&made)), tensors(checkpoints::seq2seq(&made).in_blocks(element)));
            let ids = ids(17, 3, VOCABULARY);
            let found = writing::seq2seq_of(on(), &stored, [Element::F32, element], &source, &ids, STEPS);
            let right = writing::seq2seq(on(), &meant, Element::F32, &source, &ids, STEPS);
            close(&format!("{made:?} in {element:?}"), &found, &right);
        }
    }
}

/// Rule: a text is the same bits in every batch where the options say so.
#[test]
fn a_text_is_written_alike_in_every_batch() {
    let prompts: Vec<Vec<u32>> = [5, 2, 19, 8, 3].iter().enumerate().map(|(b, &n)| ids(n, b, VOCABULARY)).collect();
    let config = llama([24, 4, 2, 8, 36, 2], r#", "max_position_embeddings": 40"#);
    let stored = checkpoints::causal(&config).checkpoint(&config, Dtype::F32);
    let write =
        |prompts: &[Vec<u32>]| writing::causal_of(on_invariant(), &stored, [Element::F32, Element::Int4], prompts, 9);
    let together = write(&prompts);
    for b in 0..prompts.len() {
        let alone = write(&prompts[b..=b]);
        assert_eq!((&alone.ids[0], &alone.log_probs[0]), (&together.ids[b], &together.log_probs[b]), "text {b}");
    }
}

/// Rule: a step's weights take 9 and 5 bits a number, tables and what projects to the vocabulary as before; what cannot be is refused.
#[test]
fn bytes_and_refusals() {
    let config = llama([256, 4, 2, 64, 512, 2], "");
    let model = CausalModel::from_config(&tileformer::models::Config::parse("config.json", &config).unwrap()).unwrap();
    let inputs = GeneratorInputs::new(GeneratorCaches::new(1, 20), Element::F16);
    let step = |inputs: &GeneratorInputs| model.generator().step(&on().kernels, inputs, &StepShape::new(1, 4)).unwrap();
    let projections = 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512) as u64;
    let bytes = |program: &Program| -> u64 {
        program
            .tensors()
            .filter(|(_, role, ..)| *role == Role::Weight)
            .map(|(.., element, layout)| layout.bytes(element))
            .sum()
    };
    let half = bytes(&step(&inputs));
    for (element, bits) in [(Element::Int8, 9), (Element::Int4, 5)] {
        assert_eq!(half - bytes(&step(&inputs.with_weights(element))), projections * 2 - projections * bits / 8);
    }

    let builder = || Builder::new(&on().kernels, "blocks");
    let refused = |element| builder().with_weights(element).map(drop).unwrap_err().to_string();
    assert_eq!(refused(Element::U32), "weights: expected f32, as rows are stored, or blocks, found u32");
    assert!(refused(Element::F16).starts_with("weights: expected f32"));
    assert!(builder().with_storage(Element::Int8).is_err());
    // In either order.
    let both = builder().with_weights(Element::Int8).unwrap().with_storage(Element::F16).unwrap();
    assert_eq!((both.storage(), both.weights()), (Element::F16, Element::Int8));
    let mut b = both;
    let weight = b.projection_weight("w", [8, 100]).unwrap();
    assert!(b.projection_weight("w", [8, 101]).unwrap_err().to_string().contains("rows of 100"), "the words are the same");
    let layout = |sizes: &[usize]| tileformer::Layout::contiguous(sizes).unwrap();
    let x = b.input("x", Element::F16, layout(&[1, 128])).unwrap();
    let own = b.input("own", Element::F16, layout(&[1, 100])).unwrap();
    let y = b.output("y", Element::F16, layout(&[1, 8])).unwrap();
    assert!(b.linear("l", &Linear::new(x, weight, y)).is_err(), "rows of 100");
    let few = b.linear_few("l", &LinearFew::new(Linear::new(own, weight, y)));
    assert!(matches!(few, Err(Error::Element { found: "int8 blocks", .. })), "{few:?}");
    b.linear("l", &Linear::new(own, weight, y)).unwrap();
    let program = b.finish().unwrap();
    assert_eq!(program.sizes("w"), Some(vec![8, 100]));
    let data = vec![0.5; 8 * 128];
    let upload =
        |sizes: &'static [usize]| on().gpu.upload_weights(&program, |_| Some((sizes, &data[..sizes[0] * sizes[1]])));
    let error = upload(&[8, 128]).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("w: expected") && error.contains("100") && error.contains("128"), "{error}");
    assert!(upload(&[8, 100]).is_ok());
    // Blocks begin at multiples of 16 bytes, whatever is asked for.
    let mut b = builder().with_weights(Element::Int4).unwrap();
    for (name, rows) in [("first", 3), ("second", 5)] {
        let bias = b.weight(&format!("{name} bias"), layout(&[rows])).unwrap();
        let weight = b.projection_weight(name, [rows, 130]).unwrap();
        let x = b.input("x", Element::F32, layout(&[2, 130])).unwrap();
        let y = b.output(&format!("{name} y"), Element::F32, layout(&[2, rows])).unwrap();
        b.linear(name, &Linear { bias: Some(bias), ..Linear::new(x, weight, y) }).unwrap();
    }
    let program = b.finish().unwrap();
    for align in [1, 4, 20, 256] {
        let buffer = on().gpu.zeros(Element::U32, &[program.weight_bytes(align) as usize / 4]).unwrap();
        let views = program.weights_in(buffer.buffer(), 0, align).unwrap();
        assert!(["first", "second"].iter().all(|name| views.get(name).unwrap().offset().is_multiple_of(4)));
    }

    let config = gpt2([24, 4, 40, 1], "");
    let broken = checkpoints::causal(&config).with_hole(3, &["mlp.c_fc.weight"]).checkpoint(&config, Dtype::F32);
    let model = CausalModel::new(&broken).unwrap();
    let program = |inputs: &Inputs| model.program(&on().kernels, inputs, &[causal::Output::Logits]).unwrap();
    let inputs = Inputs::new(BatchShape::padded(1, 3));
    let (blocks, floats) = (program(&inputs.clone().with_weights(Element::Int8)), program(&inputs));
    let load = |programs: &[&Program]| on().gpu.upload_causal(programs, &broken, &model, |_| {}).map(drop);
    let error = load(&[&blocks]).unwrap_err().to_string();
    assert_eq!(error, "transformer.h.0.mlp.c_fc.weight: element 3, NaN, does not fit int8 blocks");
    assert!(matches!(load(&[&blocks, &floats]), Err(Error::Option { .. })));
    assert_eq!(blocks::stored_sizes(Element::Int4, &[7, 130]), [7, 40]);
}
