//! Options of cases: each is obeyed, or leaves the case out by its name.

use super::*;

use runner::{judge::Results, pytorch};

fn floats(tensor: &Stored) -> Vec<f32> {
    tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn set_floats(tensor: &mut Stored, values: impl IntoIterator<Item = f32>) {
    tensor.bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
}

/// The verdict on a file with these attributes.
fn with_attributes(file: &str, attributes: &str) -> Verdict {
    verdict(file, |(_, metadata)| drop(metadata.insert("attrs".into(), attributes.into())))
}

fn assert_passes(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Passed(_)), "{verdict:?}");
}

fn assert_unsupported(verdict: &Verdict, part: &str) {
    assert!(
        matches!(verdict, Verdict::Unsupported(reason) if reason.contains(part)),
        "expected {part:?}, found {verdict:?}"
    );
}

/// Rule: SwiGLU is a · sigmoid(alpha · a) · b.
#[test]
fn swi_glu_has_its_alpha() {
    for alpha in [0.5, 1.0, -2.0, 0.0, 1e-6] {
        let given = |factor: f32| {
            verdict("onnx/swiglu.0.safetensors", |(tensors, metadata)| {
                let expected = |(&a, &b): (&f32, &f32)| factor * a * b / (1.0 + (-alpha * a).exp());
                let (a, b) = (floats(&tensors["in.a"]), floats(&tensors["in.b"]));
                set_floats(tensors.get_mut("out.y").unwrap(), std::iter::zip(&a, &b).map(expected));
                metadata.insert("attrs".into(), format!("{{\"alpha\": {alpha}}}"));
            })
        };
        assert_passes(&given(1.0));
        assert_fails(&given(1.01), "out.y[");
    }
}

/// Rule: an attribute that is not read leaves the case out.
#[test]
fn unknown_attributes_are_not_dropped() {
    let files = ["attention_4d", "layer_normalization_default_axis", "rms_normalization_default_axis", "softmax_axis_1"];
    let more = ["gelu_tanh_1", "relu", "matmul_2d", "gemm_beta", "rotary_embedding_interleaved", "gather_0", "swiglu"];
    for file in files.into_iter().chain(more) {
        let file = format!("onnx/{file}.0.safetensors");
        assert_eq!(with_attributes(&file, "{\"mood\": 1}"), Verdict::Unsupported("attribute mood".into()), "{file}");
    }
    assert_passes(&with_attributes("onnx/relu.0.safetensors", "{\"mood\": null}"));
}

/// Rule: a precision is refused where it would change the result.
#[test]
fn precisions_below_f32_are_refused() {
    let softmax = |file: &str, precision: u32| with_attributes(file, &format!("{{\"softmax_precision\": {precision}}}"));
    let (plain, half) = ("onnx/attention_4d.0.safetensors", "onnx/attention_4d_fp16.0.safetensors");
    [softmax(plain, 1), softmax(plain, 11), softmax(half, 1), softmax(half, 10)].iter().for_each(assert_passes);
    assert_unsupported(&softmax(plain, 10), "softmax_precision 10");
    [plain, half].iter().for_each(|file| assert_unsupported(&softmax(file, 16), "softmax_precision 16"));
    assert_fails(&softmax(plain, 7), "softmax_precision: expected");
    for file in ["onnx/layer_normalization_default_axis.0.safetensors", "onnx/rms_normalization_default_axis.0.safetensors"]
    {
        assert_passes(&with_attributes(file, "{\"stash_type\": 1}"));
        assert_unsupported(&with_attributes(file, "{\"stash_type\": 16}"), "stash_type 16");
    }
}

/// Rule: scale and bias repeat to the sizes of X, with as many dimensions as they like, and may differ from row to row.
#[test]
fn scale_and_bias_of_a_norm_broadcast() {
    let (layer, rms) = ("layer_normalization_default_axis", "rms_normalization_default_axis");
    for (name, vectors) in [(layer, &["in.W", "in.B"][..]), (rms, &["in.W"])] {
        let given = |rows: usize, factor: fn(usize) -> f32, expected: fn(usize) -> f32| {
            verdict(&format!("onnx/{name}.0.safetensors"), |(tensors, _)| {
                for name in vectors {
                    let vector = tensors.get_mut(*name).unwrap();
                    let values = floats(vector);
                    vector.sizes = vec![1, rows, 5];
                    set_floats(vector, (0..rows).flat_map(|row| values.iter().map(move |v| v * factor(row))));
                }
                let y = tensors.get_mut("out.Y").unwrap();
                let values = floats(y);
                // X is (2, 3, 4, 5).
                set_floats(y, values.iter().enumerate().map(|(i, v)| v * expected(i / 5 % 4)));
            })
        };
        assert_passes(&given(1, |_| 1.0, |_| 1.0));
        assert_passes(&given(4, |_| 1.0, |_| 1.0));
        assert_passes(&given(4, |row| (row / 2 + 1) as f32, |row| (row / 2 + 1) as f32));
        assert_fails(&given(4, |row| (row / 2 + 1) as f32, |_| 1.0), "out.Y[0, 0, 2");
        assert_fails(&given(3, |_| 1.0, |_| 1.0), "does not repeat to [2, 3, 4, 5]");
    }
}

/// Rule: positions, and rotary caches without positions, of one sequence serve all.
#[test]
fn rotary_positions_of_one_sequence_serve_all() {
    for (file, name) in [("interleaved", "in.position_ids"), ("no_position_ids_interleaved", "in.cos_cache")] {
        let given = |shared: bool| {
            verdict(&format!("onnx/rotary_embedding_{file}.0.safetensors"), |(tensors, _)| {
                // The second sequence becomes the first one.
                for name in ["in.input", "out.output", name, "in.sin_cache"] {
                    let tensor = tensors.get_mut(name).unwrap();
                    if tensor.sizes[0] != 2 {
                        continue;
                    }
                    let half = tensor.bytes.len() / 2;
                    tensor.bytes.copy_within(..half, half);
                    if shared && !["in.input", "out.output"].contains(&name) {
                        tensor.bytes.truncate(half);
                        tensor.sizes[0] = 1;
                    }
                }
            })
        };
        assert_passes(&given(false));
        assert_passes(&given(true));
    }
}

/// Rule: operators that have integers too are left out with those.
#[test]
fn integer_operands_are_unsupported() {
    for (op, file, operands) in [
        ("Relu", "relu", &["in.x", "out.y"][..]),
        ("Gather", "gather_negative_indices", &["in.data", "out.y"]),
        ("MatMul", "matmul_2d", &["in.a", "in.b", "out.c"]),
        ("Gemm", "gemm_beta", &["in.a", "in.b", "in.c", "out.y"]),
    ] {
        let changed = verdict(&format!("onnx/{file}.0.safetensors"), |(tensors, _)| {
            operands.iter().for_each(|name| tensors.get_mut(*name).unwrap().dtype = Dtype::I32);
        });
        assert_unsupported(&changed, &format!("{op} of integers"));
    }
}

/// Rule: without an eps an RMS norm has that of f64, in which outputs are computed: rows that are small stay as large as others.
#[test]
fn an_rms_norm_without_eps_has_that_of_f64() {
    let given = |scale: f32| {
        verdict("pytorch/RMSNorm_002.safetensors", |(tensors, metadata)| {
            let x: Vec<f32> = floats(&tensors["in.x"]).iter().map(|v| scale * v).collect();
            let normed = |row: &[f32]| {
                let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / row.len() as f64;
                row.iter().map(|&v| (f64::from(v) / mean.sqrt()) as f32).collect::<Vec<_>>()
            };
            set_floats(tensors.get_mut("out.0").unwrap(), x.chunks_exact(5).flat_map(normed));
            set_floats(tensors.get_mut("in.x").unwrap(), x);
            metadata.insert("attrs".into(), "{\"normalized_shape\": [5], \"eps\": null}".into());
        })
    };
    [1.0, 1e-3, 1e-5].map(given).iter().for_each(assert_passes);
}

/// Rule: a feed-forward network may have nothing between its projections.
#[test]
fn an_identity_is_an_activation() {
    let run = |activation: &str, bias: f32| -> Results {
        let bytes = edited(LAYER, |(tensors, metadata)| {
            let attributes = metadata["attrs"].replace("\"relu\"", &format!("\"{activation}\""));
            metadata.insert("attrs".into(), attributes);
            set_floats(tensors.get_mut("w.linear1.weight").unwrap(), [0.0; 64]);
            set_floats(tensors.get_mut("w.linear1.bias").unwrap(), [bias; 16]);
        });
        pollster::block_on(pytorch::run(session(), &Case::parse(&bytes).unwrap())).unwrap()
    };
    assert_eq!(run("Identity()", 2.0), run("relu", 2.0));
    assert_eq!(run("ReLU(inplace=True)", -2.0), run("relu", -2.0));
    assert_ne!(run("Identity()", -2.0), run("relu", -2.0));
}

/// Rule: rows that see no key are zeros; a case that expects something else of them is left out, and no other is.
#[test]
fn rows_that_see_no_key_are_unsupported_where_zeros_are_not_expected() {
    let module = |hidden: bool| {
        verdict("pytorch/MultiheadAttention_028.safetensors", |(tensors, _)| {
            tensors.get_mut("in.key_padding_mask").unwrap().bytes.fill(u8::from(hidden));
            tensors.iter_mut().filter(|(name, _)| name.starts_with("out.")).for_each(|(_, tensor)| {
                change_f32(tensor, 0, |_| f32::NAN);
            });
        })
    };
    assert_unsupported(&module(true), "rows that see no key");
    assert_fails(&module(false), "expected NaN");
    let model = |file: &str, hidden: std::ops::Range<usize>| {
        verdict(&format!("huggingface/{file}.safetensors"), |(tensors, _)| {
            // Masks are (3, 11).
            tensors.get_mut("in.attention_mask").unwrap().bytes[4 * hidden.start..4 * hidden.end].fill(0);
        })
    };
    assert_unsupported(&model("bert_0", 11..22), "rows that see no key");
    assert_unsupported(&model("marian_0", 22..33), "rows that see no key");
    assert_unsupported(&model("gpt2_0", 11..12), "rows that see no key");
    assert_fails(&model("bert_0", 11..12), "out.attention_0[1");
}

/// Rule: classes differ in their outputs' names alone.
#[test]
fn classes_of_a_model_share_its_outputs() {
    let renamed = |file: &str, class: &str, old: &str, new: &str| {
        verdict(&format!("huggingface/{file}.safetensors"), |(tensors, metadata)| {
            let kept = tensors.remove(&format!("out.{old}")).unwrap();
            tensors.retain(|name, _| !name.starts_with("out."));
            tensors.insert(format!("out.{new}"), kept);
            metadata.insert("op".into(), class.into());
        })
    };
    for (file, class, old, new) in [
        ("bert_0", "BertModel", "hidden_2", "last_hidden"),
        ("bert_0", "BertForMaskedLM", "mlm_logits", "logits"),
        ("bert_0", "BertForNextSentencePrediction", "nsp_logits", "logits"),
        ("gpt2_0", "GPT2Model", "hidden_2", "last_hidden"),
        ("llama_2", "LlamaModel", "hidden_1", "last_hidden"),
        ("marian_0", "MarianModel", "decoder_hidden_2", "last_hidden"),
        ("bart_2", "BartModel", "decoder_hidden_1", "last_hidden"),
    ] {
        assert_passes(&renamed(file, class, old, new));
    }
    assert_fails(&renamed("bert_0", "BertModel", "hidden_1", "last_hidden"), "out.last_hidden[");
    assert_fails(&renamed("bert_0", "BertModel", "mlm_logits", "logits"), "out.logits: not computed");
    assert_unsupported(&renamed("bert_0", "BertForMultipleChoice", "nsp_logits", "logits"), "BertForMultipleChoice");
}

/// Rule: a configuration that the crate refuses leaves the case out.
#[test]
fn what_a_configuration_asks_beyond_the_crate_is_unsupported() {
    let changed = with_config("huggingface/bert_0.safetensors", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"");
    assert_unsupported(&changed, "hidden_act: expected relu");
}

/// The verdict on a file whose configuration has `new` in the place of `old`.
fn with_config(file: &str, old: &str, new: &str) -> Verdict {
    verdict(file, |(_, metadata)| {
        let config = &metadata["config"];
        assert!(config.contains(old), "{file}: {old}");
        let config = config.replace(old, new);
        metadata.insert("config".into(), config);
    })
}

const MARIAN: &str = "../texts/marian.safetensors";
const GPT2: &str = "../texts/gpt2.safetensors";

/// Rule: greedy texts obey what a configuration bans and forces, and padding in front of a prompt counts for nothing.
#[test]
fn texts_obey_their_settings() {
    assert_eq!(run_folder("../texts", &[]), Tally { passed: 2, failed: 0, unsupported: 0 });
    for (file, setting) in [
        (MARIAN, "\"forced_bos_token_id\": 5"),
        (MARIAN, "\"bad_words_ids\": [[0], [1], [24]]"),
        (MARIAN, "\"suppress_tokens\": [9]"),
        (GPT2, "\"bad_words_ids\": [[28]]"),
        (GPT2, "\"suppress_tokens\": [15]"),
    ] {
        assert_fails(&with_config(file, setting, "\"mood\": 1"), "out.greedy_ids[");
    }
    let wrong = verdict(GPT2, |(tensors, _)| tensors.get_mut("out.greedy_ids").unwrap().bytes[4 * (19 + 18)] ^= 1);
    assert_fails(&wrong, "out.greedy_ids[1, 18]");
    let padding = verdict(GPT2, |(tensors, _)| tensors.get_mut("in.attention_mask").unwrap().bytes[4 * 9] = 1);
    assert_fails(&padding, "out.greedy_ids[1");
}

/// Rule: settings that ask for more than the largest logit of what is not banned leave texts out, and those that do nothing do not.
#[test]
fn texts_that_are_not_plain_are_unsupported() {
    let set =
        |file: &str, setting: &str| with_config(file, "\"suppress_tokens\"", &format!("{setting}, \"suppress_tokens\""));
    for (setting, reason) in [
        ("\"repetition_penalty\": 1.2", "repetition_penalty"),
        ("\"begin_suppress_tokens\": [3]", "begin_suppress_tokens"),
        ("\"forced_eos_token_id\": 1", "forced_eos_token_id"),
    ] {
        assert_unsupported(&set(GPT2, setting), reason);
    }
    assert_passes(&set(GPT2, "\"repetition_penalty\": 1.0, \"begin_suppress_tokens\": [], \"forced_bos_token_id\": 4"));
    assert_unsupported(&with_config(MARIAN, "[24]", "[24, 3]"), "bad words of several tokens");
    let behind = verdict(GPT2, |(tensors, _)| tensors.get_mut("in.attention_mask").unwrap().bytes[4 * 6] = 0);
    assert_unsupported(&behind, "padding at their ends");
}

/// Rule: rotary positions that are stretched beyond the model's positions alone are plain.
#[test]
fn dynamic_rotary_positions_are_plain_within_the_models() {
    let file = "huggingface/llama_2.safetensors";
    let kind = "\"rope_type\": \"default\"";
    assert_passes(&with_config(file, kind, "\"rope_type\": \"dynamic\", \"factor\": 2.0"));
    assert_unsupported(&with_config(file, kind, "\"rope_type\": \"dynamic\""), "factor");
    assert_unsupported(&with_config(file, kind, "\"rope_type\": \"yarn\", \"factor\": 2.0"), "rope_type: expected default");
}
