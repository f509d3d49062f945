//! Sequences are read from the GPU, where anything may stand: whatever it is, kernels end and stay inside their bindings.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Done, POISON, Place, Run, floats, on, seeded};
use rand::RngExt;
use tileformer::AttentionOptions;
use tileformer::kernels::{
    AdditiveScores, AttentionScores, AttentionValues, AttentionWeights, CacheAppend, EmbeddingRows, FewOutput,
    FusedAttention, Linear, LinearFew, MarkSeen, MaskedSoftmax, Pool, Rotary, RotaryPositions, Visibility,
};
use tileformer::spec::{Pooling, RotaryOrder};

const BATCH: usize = 3;
const HEADS: usize = 2;
const ROWS: usize = 30;
const LONGEST: usize = 70;
const SIZE: usize = 20;

/// What may stand in a `sequences` buffer.
fn garbage() -> Vec<Vec<u32>> {
    let words = BATCH * 8;
    let mut all = vec![vec![u32::MAX; words], vec![i32::MAX as u32; words], vec![1 << 31; words], vec![POISON; words]];
    // One field of all bits, the others as they should be.
    for field in 0..5 {
        let right = [0, 5, 0, 7, 0, 0, 0, 0];
        all.push((0..words).map(|i| if i % 8 == field { u32::MAX } else { right[i % 8] }).collect());
    }
    for number in 0..20 {
        let mut rng = seeded("garbage", number);
        all.push((0..words).map(|_| rng.random::<u32>() >> rng.random_range(0..32)).collect());
    }
    all
}

/// What runs over caches, and whole attention, in tiles and in parts, with sequences of `longest` rows and keys at most.
fn over_caches(words: &[u32], number: usize, place: Place, longest: usize) -> Done {
    const WIDTH: usize = HEADS * SIZE;
    let mut rng = seeded("hostile caches", number as u64);
    let mut run = Run::new(on(), "hostile", place);
    let data = floats(&mut rng, 3 * WIDTH * WIDTH);
    let rows = &data[..ROWS * WIDTH];
    let [q, k, v] = ["q", "k", "v"].map(|name| run.input(name, &[ROWS, HEADS, SIZE], rows));
    let x = run.input("x", &[ROWS, WIDTH], rows);
    let weight = run.weight("weight", &[3 * WIDTH, WIDTH], &data);
    let table = run.weight("table", &[9, SIZE], &data[..9 * SIZE]);
    let sequences = run.words("sequences", &[BATCH, 8], words);
    let ids = run.words("ids", &[ROWS], &words[..1].repeat(ROWS));
    let options = AttentionOptions { causal: number.is_multiple_of(3), window_left: Some(9), ..AttentionOptions::default() };
    let visibility = Visibility { sequences: Some(sequences), ..Visibility::new(options) };
    let rows_of = |run: &mut Run, name: &str| run.output(name, &[ROWS, HEADS, SIZE]);
    let [tiles, parts, turned] = ["tiles", "parts", "turned"].map(|name| rows_of(&mut run, name));
    let weights = run.output("weights", &[BATCH, HEADS, longest, longest]);
    let statistics = run.output("statistics", &[2, BATCH, HEADS, longest]);
    let [few, pooled] = [("few", ROWS), ("pooled", BATCH)].map(|(name, rows)| run.output(name, &[rows, WIDTH]));
    let queries = run.output("queries", &[ROWS, WIDTH]);
    run.place = Place::DENSE;
    let [cache, appended] = ["cache", "appended"].map(|name| run.output(name, &[2, 4, HEADS, 9, SIZE]));
    run.place = place;
    let seen = run.state("seen", &[BATCH, 5], &[0; BATCH * 5]);

    let b = &mut run.builder;
    let attention = FusedAttention {
        q,
        k,
        v,
        sizes: [BATCH, longest, longest],
        visibility: visibility.clone(),
        out: tiles,
        log_sum_exp: None,
        statistics: Some(statistics),
        cached: false,
    };
    b.attention("tiles", &attention).unwrap();
    let few_queries = FusedAttention { sizes: [BATCH, 5, longest], out: parts, statistics: None, ..attention };
    b.attention("parts", &few_queries).unwrap();
    b.attention_weights("weights", &AttentionWeights { q, k, visibility, statistics, weights }).unwrap();
    let positions = RotaryPositions::Sequences(sequences, longest);
    b.rotary("rotary", &Rotary { x: q, table, order: RotaryOrder::Halves, positions, y: turned }).unwrap();
    let pooling = Pooling::Mean;
    b.pool("pool", &Pool { x, sequences, longest, pooling, normalize: true, y: pooled }).unwrap();
    let square = weight.narrow(0, 0, WIDTH).unwrap();
    let sequences_of = Some(sequences);
    let linear = LinearFew { sequences: sequences_of, ..LinearFew::new(Linear::new(x, square, few)) };
    b.linear_few("few", &linear).unwrap();
    let out = FewOutput::Append { cache: appended, head_size: SIZE, value_head_size: SIZE };
    let linear = LinearFew { sequences: sequences_of, out, ..LinearFew::new(Linear::new(x, weight, queries)) };
    b.linear_few("append", &linear).unwrap();
    b.cache_append("cache", &CacheAppend { k, v, sequences, longest, cache }).unwrap();
    b.mark_seen("seen", &MarkSeen { ids, sequences, longest: longest.min(ROWS), seen }).unwrap();
    run.go()
}

/// Attention by separate kernels, and embeddings, with sequences of `longest` rows and keys at most.
fn by_separate_kernels(words: &[u32], number: usize, place: Place, longest: usize) -> Done {
    let mut rng = seeded("hostile", number as u64);
    let mut run = Run::new(on(), "hostile", place);
    let scores = [BATCH, HEADS, longest, longest];
    let data = floats(&mut rng, ROWS * HEADS * SIZE);
    let [q, k, v] = ["q", "k", "v"].map(|name| run.input(name, &[ROWS, HEADS, SIZE], &data));
    let vector = run.weight("vector", &[HEADS, SIZE], &floats(&mut rng, HEADS * SIZE));
    let given = run.input("given", &scores, &floats(&mut rng, BATCH * HEADS * longest * longest));
    let options = AttentionOptions {
        causal: number.is_multiple_of(2),
        window_left: number.is_multiple_of(3).then_some(4),
        window_right: number.is_multiple_of(5).then_some(1 << 30),
        alibi: vec![0.5; HEADS],
        key_mask: true,
        mask: Some(tileformer::Mask::Boolean),
        ..AttentionOptions::default()
    };
    let visibility = Visibility {
        options,
        sequences: Some(run.words("sequences", &[BATCH, 8], words)),
        key_mask: Some(run.words("key_mask", &[BATCH, longest], &vec![1; BATCH * longest])),
        mask: Some(run.words("mask", &[1, 1, longest, longest], &vec![1; longest * longest])),
    };
    let [dot, additive, probs] = ["scores", "additive", "probs"].map(|name| run.output(name, &scores));
    let (out, y) = (run.output("out", &[ROWS, HEADS, SIZE]), run.output("y", &[ROWS, SIZE]));
    let (ids, token) =
        (run.words("ids", &[ROWS], &words[..1].repeat(ROWS)), run.weight("token", &[9, SIZE], &data[..9 * SIZE]));
    let position = run.weight("position", &[9, SIZE], &data[..9 * SIZE]);
    let b = &mut run.builder;
    let visible = || visibility.clone();
    b.attention_scores("scores", &AttentionScores { q, k, visibility: visible(), scores: dot }).unwrap();
    b.additive_scores("additive", &AdditiveScores { q, k, vector, visibility: visible(), scores: additive }).unwrap();
    b.masked_softmax("softmax", &MaskedSoftmax { x: given, visibility: visible(), y: probs }).unwrap();
    b.attention_values("values", &AttentionValues { probs: given, v, visibility: visible(), out }).unwrap();
    let sequences = visibility.sequences.map(|s| (s, longest));
    let args = EmbeddingRows { positions: Some(position), sequences, ..EmbeddingRows::new(ids, token, y) };
    b.embedding("embedding", &args).unwrap();
    run.go()
}

/// Fails where anything was written outside of a binding: a start that lies outside is clamped into it, from the aligned element before
/// the view to its last.
fn assert_inside(done: &Done, name: &str, case: &str) {
    let align = on().gpu.device.limits().min_storage_buffer_offset_alignment as usize / 4;
    let tensor = done.tensor(name);
    let (first, extent) = (tensor.view.offset() as usize, tensor.view.layout().extent() as usize);
    let words = tensor.words();
    let outside = words[..first / align * align].iter().chain(&words[first + extent..]);
    assert!(outside.clone().all(|&w| w == POISON), "{name} wrote outside its binding: case {case}");
}

/// Rule: the same of what runs over caches, and of whole attention, in tiles and in parts.
#[test]
fn hostile_sequences_end_over_caches() {
    for (number, words) in garbage().into_iter().enumerate() {
        let done = over_caches(&words, number, [Place::DENSE, Place::ODD][number % 2], LONGEST);
        for name in ["tiles", "parts", "turned", "weights", "statistics", "few", "pooled", "queries", "cache", "appended"] {
            assert_inside(&done, name, &number.to_string());
        }
        // Slots that begin past the last one's first head are no slots, wherever a key of theirs would wrap to.
        if words.chunks_exact(8).all(|sequence| sequence[2] as usize >= (3 * HEADS + 1) * 9) {
            for name in ["cache", "appended"] {
                let words = done.tensor(name).words();
                assert!(words.iter().all(|&w| w == POISON), "{name} has keys of no slot: case {number}");
            }
        }
    }
}

/// Rule: lengths, starts and offsets of any bits end every loop and write nothing outside the output's binding. Loop bounding is
/// off in all modules: this is what it rests on.
#[test]
fn hostile_sequences_end() {
    for (number, words) in garbage().into_iter().enumerate() {
        for place in [Place::DENSE, Place::ODD] {
            let done = by_separate_kernels(&words, number, place, LONGEST);
            for name in ["scores", "additive", "probs", "out", "y"] {
                assert_inside(&done, name, &format!("{number}, {place:?}"));
            }
            // Scores and weights are indexed by the shape alone, and so stay inside even their rows.
            for name in ["scores", "additive", "probs"] {
                done.tensor(name).bits();
            }
        }
    }
}

/// Rule: rows and keys past what the program was made for do not count, whatever the sequences say.
#[test]
fn lengths_are_clamped_to_the_program() {
    const MOST: u32 = 12;
    for (number, [rows, keys]) in [[15, 7], [9, 15], [14, 13]].into_iter().enumerate() {
        let words = |rows: u32, keys: u32| -> Vec<u32> {
            [[0, rows, 0, keys, 2, 0, 0, 0], [15, rows, 15, keys, 0, 0, 0, 0], [0; 8]].concat()
        };
        let [found, right] = [words(rows, keys), words(rows.min(MOST), keys.min(MOST))].map(|words| {
            let caches = over_caches(&words, number, Place::ODD, MOST as usize);
            let separate = by_separate_kernels(&words, number, Place::DENSE, MOST as usize);
            let of = |done: &Done, names: &[&str]| names.iter().map(|n| done.tensor(n).bits()).collect::<Vec<_>>();
            let all = of(&caches, &["tiles", "parts", "turned", "weights", "statistics", "pooled"]);
            [all, of(&separate, &["scores", "additive", "probs", "out", "y"])].concat()
        });
        for (tensor, (found, right)) in found.iter().zip(&right).enumerate() {
            assert_eq!(found, right, "tensor {tensor} of {rows} rows and {keys} keys, of which {MOST} count");
        }
    }
}
