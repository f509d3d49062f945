//! Decode steps: ids, lengths and ends advance on the GPU as the twin says, alone and in a batch.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Twin, invariant_kernels, kernels};
use common::generating::{Session, Text, generators, seeded_session, session_of, texts, twin_rows};
use common::{gpu, seeded};
use tileformer::layers::StepShape;
use tileformer::spec::cache::{CachedRows, DecodeProgress, DecodeRow, DecodeState, STATE_WORDS};
use tileformer::spec::generator::Generator;
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{Element, Kernels, Options, Plan};

const STEPS: usize = 10;

/// What a run of steps gave: for each row its ids and the bits of their log-probabilities.
#[derive(Clone, Debug, PartialEq)]
struct Decoded {
    ids: Vec<Vec<u32>>,
    log_probs: Vec<Vec<u32>>,
    progress: Vec<DecodeProgress>,
}

/// Prompts into their slots, the last token of each left out, in pieces of `piece`.
fn prefill(session: &Session, rows: &[Option<&Text>], piece: usize) {
    let width = session.generator.cross_attention().map_or(1, |a| a.k_width);
    for (slot, text) in rows.iter().enumerate() {
        let Some(text) = text else { continue };
        let memory = text.memory.as_ref().map_or(0, |m| m.f32.len() / width);
        let prompt = &text.ids[..text.ids.len() - 1];
        for (i, ids) in prompt.chunks(piece).enumerate() {
            session.extend(&[(CachedRows { slot, past: i * piece, new: ids.len() }, ids, memory)]);
        }
    }
}

/// A plan of steps over the prompts, with its state uploaded.
fn plan(session: &Session, rows: &[Option<&Text>], sampling: &[Sampling]) -> Plan {
    let Session { kernels, generator, inputs, .. } = session;
    let width = generator.cross_attention().map_or(1, |a| a.k_width);
    let shape = StepShape { log_probs: true, padding: 7, ..StepShape::new(rows.len(), STEPS) };
    let program = generator.step(kernels, inputs, &shape).unwrap();
    let row = |(slot, text): (usize, &Option<&Text>)| {
        text.map(|text| DecodeRow {
            slot,
            past: text.ids.len() - 1,
            id: *text.ids.last().unwrap(),
            memory: text.memory.as_ref().map(|m| (slot, m.f32.len() / width)),
        })
    };
    let rows: Vec<_> = rows.iter().enumerate().map(row).collect();
    let state = inputs.caches.decode(generator, &rows).unwrap();
    let words = gpu().upload_u32(&[sampling.len(), SAMPLING_WORDS], Sampling::words(sampling)).unwrap();
    let state = gpu().upload_u32(&[state.words().len() / STATE_WORDS, STATE_WORDS], state.words()).unwrap();
    let mut bindings = session.bindings(&program, &[("sampling", &words), ("state", &state)]);
    gpu().allocate(&program, &mut bindings).unwrap();
    program.bind(&bindings).unwrap()
}

fn decode(session: &Session, rows: &[Option<&Text>], sampling: &[Sampling], chunk: usize) -> Decoded {
    let plan = plan(session, rows, sampling);
    let batch = rows.len();
    let mut found = Decoded { ids: vec![Vec::new(); batch], log_probs: vec![Vec::new(); batch], progress: Vec::new() };
    let mut ended = vec![false; batch];
    for part in gpu().decode(&plan, STEPS, chunk).unwrap() {
        let part = part.unwrap();
        for (ids, log_probs) in part.tokens.chunks(batch).zip(part.log_probs().chunks(batch)) {
            for b in 0..batch {
                found.ids[b].push(ids[b]);
                found.log_probs[b].push(log_probs[b].to_bits());
            }
        }
        ended = part.ended;
    }
    let words = gpu().read_u32(plan.view("state").unwrap()).unwrap();
    let cross = session.generator.cross_attention().is_some();
    found.progress = DecodeState::read(batch, cross, words).unwrap().progress();
    assert_eq!(ended, found.progress.iter().map(|p| p.ended).collect::<Vec<_>>());
    found
}

/// The twin's logits behind every row of a text: (rows, V).
fn twin_logits(session: &Session, text: &Text) -> Vec<f64> {
    let generator: &Generator = &session.generator;
    let hidden = twin_rows::<f64>(generator, &session.made, text);
    let weight: &Data = &session.made.all[&generator.head_weight];
    let d_model = generator.embedding.d_model;
    let weight = f64::of_data(weight);
    let row =
        |x: &[f64]| weight.chunks(d_model).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum::<f64>()).collect::<Vec<_>>();
    hidden.chunks(d_model).flat_map(row).collect()
}

/// Every id of a row is the twin's best behind the ids before it, or as good, and its log-probability the twin's.
fn follow(session: &Session, name: &str, text: &Text, ids: &[u32], log_probs: &[u32]) {
    let whole = Text { ids: [&text.ids, ids].concat(), memory: text.memory.clone() };
    let logits = twin_logits(session, &whole);
    let vocabulary = session.generator.embedding.vocabulary;
    for (i, (&id, &log_prob)) in ids.iter().zip(log_probs).enumerate() {
        let row = &logits[(text.ids.len() - 1 + i) * vocabulary..][..vocabulary];
        let best = row.iter().copied().fold(f64::MIN, f64::max);
        let chosen = row[id as usize];
        assert!(chosen > best - 1e-4, "{name}, step {i}: {id} has {chosen}, the best {best}");
        let right = chosen - best - row.iter().map(|l| (l - best).exp()).sum::<f64>().ln();
        let found = f64::from(f32::from_bits(log_prob));
        assert!((found - right).abs() < 1e-4, "{name}, step {i}: log-probability {found}, not {right}");
    }
}

fn case(kernels: &Kernels, name: &str, generator: &Generator, storage: Element) -> (Session, Vec<Text>) {
    let mut rng = seeded(name, 1);
    let session = seeded_session(kernels, generator, storage, &mut rng);
    let texts = texts(generator, &[1, 17, 6, 30], &[3, 19, 1, 8], &mut rng);
    if generator.cross_attention().is_some() {
        session.remember(&texts.iter().map(|t| t.memory.as_ref().unwrap()).collect::<Vec<_>>());
    }
    (session, texts)
}

/// Rule: texts of different length decode together, each as the twin would; rows that rest write padding.
#[test]
fn steps_follow_the_twin() {
    for (name, generator) in generators() {
        let (session, texts) = case(kernels(), name, &generator, Element::F32);
        let rows = [Some(&texts[0]), Some(&texts[1]), None, Some(&texts[3])];
        prefill(&session, &rows, 64);
        let found = decode(&session, &rows, &[Sampling::greedy(); 4], 4);
        for (b, row) in rows.iter().enumerate() {
            match row {
                Some(text) => {
                    follow(&session, name, text, &found.ids[b], &found.log_probs[b]);
                    let right = DecodeProgress {
                        past: text.ids.len() - 1 + STEPS,
                        id: *found.ids[b].last().unwrap(),
                        steps: STEPS,
                        ended: false,
                        full: false,
                    };
                    assert_eq!(found.progress[b], right, "{name}, row {b}");
                }
                None => {
                    assert_eq!(found.ids[b], [7; STEPS], "{name}");
                    assert!(found.progress[b].ended);
                }
            }
        }
    }
}

/// Rule: a stop token ends its row and no other, a full cache too; once all have ended nothing is computed any more.
#[test]
fn rows_end_on_the_gpu() {
    let (name, generator) = generators().swap_remove(2);
    let (session, texts) = case(kernels(), name, &generator, Element::F32);
    let rows = [Some(&texts[0]), Some(&texts[1]), Some(&texts[2])];
    prefill(&session, &rows, 64);
    let free = decode(&session, &rows, &[Sampling::greedy(); 3], usize::MAX);

    prefill(&session, &rows, 64);
    let stop = free.ids[1][3];
    let at = free.ids[1].iter().position(|id| *id == stop).unwrap();
    let stops = [Sampling::greedy(), Sampling::greedy().with_stops(&[stop]).unwrap(), Sampling::greedy().with_limit(9)];
    let found = decode(&session, &rows, &stops, 3);
    assert_eq!(found.ids[0], free.ids[0]);
    assert_eq!(found.ids[1], [&free.ids[1][..=at], &vec![7; STEPS - at - 1]].concat());
    // 6 tokens of the prompt, and the longest has 9 keys: the fourth choice finds it full.
    assert_eq!(found.ids[2], [&free.ids[2][..4], &[7; STEPS - 4]].concat());
    assert_eq!(found.progress.iter().map(|p| p.ended).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!((found.progress[1].past, found.progress[2].past), (texts[1].ids.len() + at, 9));

    // The whole cache: as many tokens as it holds, and one more that was chosen last.
    let capacity = session.inputs.caches.capacity;
    let mut rng = seeded("full", 0);
    let long = common::generating::texts(&generator, &[capacity - 3], &[], &mut rng).remove(0);
    prefill(&session, &[Some(&long)], 64);
    let found = decode(&session, &[Some(&long)], &[Sampling::greedy()], 8);
    assert!(found.ids[0][4..].iter().all(|id| *id == 7), "{:?}", found.ids[0]);
    assert!(found.progress[0].full && found.progress[0].past == capacity, "{:?}", found.progress);
    follow(&session, "full", &long, &found.ids[0][..4], &found.log_probs[0][..4]);
}

/// Rule: batch invariant, a row's ids and log-probabilities are the same bits alone and in a batch, prefilled whole or in pieces, in
/// chunks of any size; drawn ids too.
#[test]
fn decoding_is_batch_invariant() {
    for (number, (name, generator)) in generators().into_iter().enumerate() {
        if number % 2 == 1 {
            continue;
        }
        let (session, texts) = case(invariant_kernels(), name, &generator, Element::F32);
        let sampling = |b: u64| Sampling::sampled(b).with_temperature(0.8).unwrap().with_top_k(20);
        let all: Vec<_> = texts.iter().map(Some).collect();
        let seeds: Vec<_> = (0..4).map(sampling).collect();
        prefill(&session, &all, 64);
        let together = decode(&session, &all, &seeds, 8);
        for piece in [1, 5] {
            prefill(&session, &all, piece);
            assert_eq!(decode(&session, &all, &seeds, 3), together, "{name}, prompts in pieces of {piece}");
        }
        for b in 0..4 {
            let mut alone = [None; 4];
            alone[b] = Some(&texts[b]);
            prefill(&session, &alone, 64);
            let found = decode(&session, &alone, &seeds, 8);
            assert_eq!((&found.ids[b], &found.log_probs[b]), (&together.ids[b], &together.log_probs[b]), "{name}, row {b}");
        }
    }
}

/// Rule: rows of a prompt are the same bits whole and in pieces.
#[test]
fn prefill_is_batch_invariant() {
    for (name, generator) in generators() {
        let (session, texts) = case(invariant_kernels(), name, &generator, Element::F32);
        let width = generator.cross_attention().map_or(1, |a| a.k_width);
        let bits = |piece: usize, slot: usize| {
            let text = &texts[slot];
            let memory = text.memory.as_ref().map_or(0, |m| m.f32.len() / width);
            let extend = |(i, ids): (usize, &[u32])| {
                let rows = CachedRows { slot, past: i * piece, new: ids.len() };
                session.extend(&[(rows, ids, memory)]).remove(0)
            };
            text.ids.chunks(piece).enumerate().flat_map(extend).map(f32::to_bits).collect::<Vec<_>>()
        };
        for slot in [1, 3] {
            let whole = bits(64, slot);
            assert!([1, 7, 16].into_iter().all(|p| bits(p, slot) == whole), "{name}, slot {slot}");
        }
    }
}

/// Rule: batch invariant, a row of 32 is itself in a program for one row, and where half of the others have left.
#[test]
fn a_row_of_many_is_itself_alone() {
    const ROWS: usize = 32;
    let (name, generator) = generators().swap_remove(0);
    let mut rng = seeded(name, 2);
    let session = session_of(invariant_kernels(), &generator, Element::F32, ROWS, &mut rng);
    let lengths: Vec<usize> = (0..ROWS).map(|i| 1 + (i * 7 + 4) % 33).collect();
    let texts = texts(&generator, &lengths, &[], &mut rng);
    let all: Vec<_> = texts.iter().map(Some).collect();
    let seeds: Vec<_> = (0..ROWS as u64).map(Sampling::sampled).collect();
    prefill(&session, &all, 64);
    let together = decode(&session, &all, &seeds, 8);

    prefill(&session, &all, 9);
    let half: Vec<_> = all.iter().enumerate().map(|(b, text)| text.filter(|_| b % 2 == 0)).collect();
    let without = decode(&session, &half, &seeds, 8);
    for b in (0..ROWS).step_by(2) {
        assert_eq!((&without.ids[b], &without.log_probs[b]), (&together.ids[b], &together.log_probs[b]), "row {b}");
    }
    prefill(&session, &all[..1], 3);
    let alone = decode(&session, &all[..1], &seeds[..1], 5);
    assert_eq!((&alone.ids[0], &alone.log_probs[0]), (&together.ids[0], &together.log_probs[0]));
}

/// Rule: where f16 logits of many rows are made on matrix units, they are those of the form for few rows, and no less wide; a
/// vocabulary that is no multiple of four has no more tokens for it.
#[test]
fn logits_of_many_rows_on_matrix_units() {
    if !common::has_f16() {
        return; // operands are f16, emulated or not
    }
    // In tiles of 32 rows, and of 64.
    logits_on_matrix_units::<12>(None);
    logits_on_matrix_units::<12>(Some("head_bias"));
    logits_on_matrix_units::<45>(None);
}

fn logits_on_matrix_units<const ROWS: usize>(bias: Option<&str>) {
    let (name, mut generator) = generators().swap_remove(0);
    generator.head_bias = bias.map(str::to_owned);
    assert!(!generator.embedding.vocabulary.is_multiple_of(4));
    let decoded = |kernels: &Kernels| {
        let mut rng = seeded(name, 3);
        let session = session_of(kernels, &generator, Element::F16, ROWS, &mut rng);
        let lengths: Vec<usize> = (0..ROWS).map(|i| 1 + i % 9).collect();
        let texts = texts(&generator, &lengths, &[], &mut rng);
        let all: Vec<_> = texts.iter().map(Some).collect();
        prefill(&session, &all, 64);
        let greedy = [Sampling::greedy(); ROWS];
        let plan = plan(&session, &all, &greedy);
        let wide = plan.program().variants().iter().any(|variant| variant.name().starts_with("linear_wide"));
        (wide, decode(&session, &all, &greedy, 8))
    };
    let (wide, few) = decoded(&Kernels::new(&gpu().device, Options::default()).unwrap());
    assert!(!wide, "there are no matrix units");
    let (wide, matrices) = decoded(&Kernels::new(&gpu().device, common::matrices::emulating()).unwrap());
    assert!(wide, "{name} has another form");
    for (b, (few, matrices)) in few.log_probs.iter().zip(&matrices.log_probs).enumerate() {
        let [few, matrices] = [few[0], matrices[0]].map(f32::from_bits);
        assert!((few - matrices).abs() < 5e-3, "row {b}: {few} and {matrices}");
    }
    let alike = few.ids.iter().zip(&matrices.ids).filter(|(few, matrices)| few[0] == matrices[0]).count();
    assert!(alike >= ROWS - 2, "{alike} of {ROWS} first tokens are the same");
}

/// Rule: the logits of a step are the twin's, and the host may go on with any other id than the step chose.
#[test]
fn the_host_chooses_from_logits() {
    for (number, (name, generator)) in generators().into_iter().enumerate() {
        let mut rng = seeded("logits", number as u64);
        let session = seeded_session(kernels(), &generator, Element::F32, &mut rng);
        let mut text = texts(&generator, &[5], &[4], &mut rng).remove(0);
        if let Some(memory) = &text.memory {
            session.remember(&[memory]);
        }
        prefill(&session, &[Some(&text)], 8);
        let shape = StepShape { logits: true, ..StepShape::new(1, STEPS) };
        let program = generator.step(&session.kernels, &session.inputs, &shape).unwrap();
        let sampling = gpu().upload_u32(&[1, SAMPLING_WORDS], Sampling::words(&[Sampling::greedy()])).unwrap();
        let mut bindings = session.bindings(&program, &[("sampling", &sampling)]);
        gpu().allocate(&program, &mut bindings).unwrap();
        let plan = program.bind(&bindings).unwrap();
        let vocabulary = generator.embedding.vocabulary;
        for _ in 0..3 {
            let width = generator.cross_attention().map_or(1, |a| a.k_width);
            let memory = text.memory.as_ref().map(|m| (0, m.f32.len() / width));
            let row = DecodeRow { slot: 0, past: text.ids.len() - 1, id: *text.ids.last().unwrap(), memory };
            let state = session.inputs.caches.decode(&generator, &[Some(row)]).unwrap();
            gpu().write(plan.view("state").unwrap(), bytemuck::cast_slice(state.words())).unwrap();
            gpu().run(&plan).unwrap();
            let found = gpu().read_f32(plan.view("logits").unwrap()).unwrap();
            let right = twin_logits(&session, &text).split_off((text.ids.len() - 1) * vocabulary);
            let worst = found.iter().zip(&right).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == vocabulary && worst < 1e-4, "{name}: {worst}");
            // The least likely, which no step would choose.
            let least = (0..vocabulary).min_by(|&a, &b| found[a].total_cmp(&found[b])).unwrap();
            text.ids.push(least as u32);
        }
    }
}
