//! `beam_candidates` against its twin: the same tokens in the same order, their log-probabilities within 1e-5.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::choosing::{bias, logits};
use common::{Done, On, POISON, Place, Run, assert_all_variants, on, pick, seeded, some, stored_forms};
use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::kernels::BeamCandidates;
use tileformer::spec::beams::MAX_CANDIDATES;
use tileformer::spec::sampling::seen_words;
use tileformer::{Element, reference};

const TOLERANCE: f64 = 1e-5;

/// One dispatch.
struct Case {
    columns: usize,
    logits: Vec<f32>,
    bias: Option<Vec<f32>>,
    banned: Option<Vec<u32>>,
    renormalized: bool,
    /// Whether each row is live.
    live: Option<Vec<bool>>,
    count: usize,
}

impl Case {
    fn new(logits: Vec<f32>, columns: usize, count: usize) -> Self {
        Self { columns, logits, bias: None, banned: None, renormalized: false, live: None, count }
    }

    fn any(rng: &mut StdRng, columns: usize, batch: usize) -> Self {
        let count = pick(rng, &[1, 2, 4, 10, 32, MAX_CANDIDATES]);
        let mut case = Self::new(logits(rng, batch * columns), columns, count);
        let rows = |rng: &mut StdRng| pick(rng, &[1, batch]);
        if rng.random() {
            let rows = rows(rng);
            case.bias = Some(bias(rng, rows * columns));
        }
        if rng.random() {
            let words = rows(rng) * seen_words(columns);
            case.banned = Some((0..words).map(|_| rng.random::<u32>() & rng.random::<u32>()).collect());
        }
        if rng.random() {
            case.live = Some((0..batch).map(|_| rng.random()).collect());
        }
        case.renormalized = rng.random();
        case
    }

    fn batch(&self) -> usize {
        self.logits.len() / self.columns
    }

    fn go(&self, on: &On, place: Place) -> (Vec<u32>, Done) {
        let (batch, columns) = (self.batch(), self.columns);
        let mut run = Run::new(on, "beam candidates", place);
        let logits = run.input("logits", &[batch, columns], &self.logits);
        let bias = self.bias.as_ref().map(|bias| {
            let sizes = [batch, columns];
            run.input("bias", &sizes[usize::from(bias.len() == columns)..], bias)
        });
        let words = seen_words(columns);
        let banned = self.banned.as_ref().map(|banned| {
            let sizes = [batch, words];
            run.words("banned", &sizes[usize::from(banned.len() == words)..], banned)
        });
        let sequences = self.live.as_ref().map(|live| {
            let all: Vec<u32> = live.iter().flat_map(|&live| [7, u32::from(live), 7, 7, 7, 0, 0, 0]).collect();
            run.words("sequences", &[batch, 8], &all)
        });
        let candidates = run.output_as("candidates", Element::U32, place.layout(&[batch, self.count, 2]));
        let args = BeamCandidates { logits, bias, banned, renormalized: self.renormalized, sequences, candidates };
        run.builder.beam_candidates("beam candidates", &args).unwrap();
        let done = run.go();
        (done.tensor("candidates").bits(), done)
    }

    /// Runs it and compares everything with the twin.
    fn check(&self, on: &On, name: &str, place: Place) -> Done {
        let (found, done) = self.go(on, place);
        let wide = |x: &[f32]| x.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        for b in 0..self.batch() {
            let own = |all: usize, len: usize| if all == len { 0..len } else { b * len..(b + 1) * len };
            let logits = wide(&self.logits[b * self.columns..(b + 1) * self.columns]);
            let bias = self.bias.as_ref().map(|bias| wide(&bias[own(bias.len(), self.columns)]));
            let banned = self.banned.as_ref().map(|banned| &banned[own(banned.len(), seen_words(self.columns))]);
            let twin = reference::beam_candidates(&logits, bias.as_deref(), banned, self.renormalized, self.count).unwrap();
            let found = &found[b * 2 * self.count..(b + 1) * 2 * self.count];
            let name = format!("{name}: row {b} of {}×{}, {place:?}, {:?}", self.batch(), self.columns, done.variants);
            if self.live.as_ref().is_some_and(|live| !live[b]) {
                assert!(found.iter().all(|&word| word == POISON), "{name}: written though it rests");
                continue;
            }
            for (i, (pair, &(token, log_prob))) in found.chunks_exact(2).zip(&twin).enumerate() {
                let found = f64::from(f32::from_bits(pair[1]));
                assert_eq!(pair[0], token, "{name}: candidate {i}");
                let close = found == log_prob || (found - log_prob).abs() <= TOLERANCE * log_prob.abs().max(1.0);
                assert!(close, "{name}: candidate {i}: log-probability {found} for {log_prob}");
            }
        }
        done
    }
}

/// Rule: every option, alone and with others, gives the twin's tokens in their order, at every size, in every compiled form.
#[test]
fn options_combine_at_every_size_in_every_form() {
    let (forms, mut reached) = (stored_forms("beam_candidates", Element::F32), BTreeSet::new());
    let sizes = [(1, 4), (2, 8), (5, 8), (31, 12), (257, 12), (2047, 8), (2048, 8), (2051, 8), (58_101, 4)];
    for (i, (columns, cases)) in sizes.into_iter().enumerate() {
        for number in 0..cases {
            let mut rng = seeded("beam candidates", (i * 100 + number) as u64);
            let batch = if columns > 3000 { 2 } else { [1, 3, 8][number % 3] };
            let place = Place::ALL[number % 4];
            let case = Case::any(&mut rng, columns, batch);
            for on in some(&forms, number % 4 == 0, i + number) {
                case.check(on, &format!("case {number}"), place).note(&mut reached);
            }
        }
    }
    assert_all_variants("beam_candidates", &reached);
}

/// Rule: equal tokens come lowest first, wherever they stand, and all of one part of the row may be taken.
#[test]
fn ties_come_lowest_first() {
    let forms = stored_forms("beam_candidates", Element::F32);
    for columns in [70, 2048, 9001] {
        let level = vec![0.5; columns];
        let mut steps: Vec<f32> = (0..columns).map(|c| (c / 5 % 7) as f32).collect();
        steps[columns - 1] = 6.0;
        // Every fourth group of four lies in one segment: its columns are the best ones.
        let one: Vec<f32> = (0..columns).map(|c| if c / 4 % 512 == 3 { 2.0 + (c % 3) as f32 } else { -0.0 }).collect();
        for on in &forms {
            let all = [level.clone(), steps.clone(), one.clone()].concat();
            Case::new(all, columns, MAX_CANDIDATES).check(on, "ties", Place::DENSE);
        }
    }
}

/// Rule: NaN and −∞ are no candidates, a row that has too few ends with none, and nothing becomes NaN.
#[test]
fn hostile_logits() {
    let values =
        [f32::NAN, f32::from_bits(0xffc0_0001), f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40];
    let forms = stored_forms("beam_candidates", Element::F32);
    for number in 0..24 {
        let mut rng = seeded("hostile candidates", number);
        let columns = pick(&mut rng, &[1, 3, 70, 600]);
        let mut case = Case::any(&mut rng, columns, 3);
        case.live = None;
        case.logits.iter_mut().for_each(|x| *x = pick(&mut rng, &values));
        case.logits[..columns].fill(pick(&mut rng, &[f32::NAN, f32::NEG_INFINITY, f32::MAX]));
        if let Some(bias) = &mut case.bias {
            bias.iter_mut().for_each(|x| *x = pick(&mut rng, &values));
        }
        for on in some(&forms, number % 4 == 0, number as usize) {
            let (found, _) = case.go(on, Place::DENSE);
            for (b, row) in found.chunks_exact(2 * case.count).enumerate() {
                let mut seen = BTreeSet::new();
                for (i, pair) in row.chunks_exact(2).enumerate() {
                    let log_prob = f32::from_bits(pair[1]);
                    assert!(!log_prob.is_nan(), "{number}: row {b}, candidate {i}");
                    assert_eq!(pair[0] == u32::MAX, log_prob == f32::NEG_INFINITY, "{number}: row {b}, candidate {i}");
                    if pair[0] != u32::MAX {
                        let logit = case.logits[b * columns + pair[0] as usize];
                        assert!(!logit.is_nan() && logit != f32::NEG_INFINITY && seen.insert(pair[0]), "{number}: {pair:?}");
                    }
                }
            }
        }
    }
}

/// Rule: a token as far below the largest logit as f32 reaches has its log-probability all the same.
#[test]
fn log_probabilities_as_far_as_f32_reaches() {
    for on in &stored_forms("beam_candidates", Element::F32) {
        for far in [0.0, -1e38, -1.6e38, f32::MIN] {
            Case::new(vec![f32::MAX, far, f32::NEG_INFINITY], 3, 3).check(on, &format!("{far:e} below"), Place::DENSE);
        }
    }
}

/// Rule: a row's bits are its own: alone, and in a batch.
#[test]
fn a_row_does_not_depend_on_the_batch() {
    for on in &stored_forms("beam_candidates", Element::F32) {
        let columns = 1003;
        let mut rng = seeded("batches of candidates", 0);
        let case = Case::new(logits(&mut rng, 4 * columns), columns, 32);
        let (all, _) = case.go(on, Place::DENSE);
        for b in 0..4 {
            let alone = Case::new(case.logits[b * columns..(b + 1) * columns].to_vec(), columns, 32);
            assert_eq!(alone.go(on, Place::DENSE).0, all[b * 64..(b + 1) * 64]);
        }
    }
}

/// Rule: what does not fit is refused by name.
#[test]
fn what_does_not_fit_is_named() {
    let refused = |count: usize, pairs: usize, words: usize| {
        let mut run = Run::new(on(), "refused", Place::DENSE);
        let logits = run.input("logits", &[2, 40], &[0.0; 80]);
        let banned = Some(run.words("banned", &[words], &vec![0; words]));
        let candidates = run.output_as("candidates", Element::U32, Place::DENSE.layout(&[2, count, pairs]));
        let args = BeamCandidates { banned, ..BeamCandidates::new(logits, candidates) };
        run.builder.beam_candidates("beams", &args).unwrap_err().to_string()
    };
    assert_eq!(refused(65, 2, 2), "candidates: expected at most 64 a row, found 65");
    assert!(refused(4, 3, 2).contains("candidates"), "{}", refused(4, 3, 2));
    assert!(refused(4, 2, 3).contains("banned"), "{}", refused(4, 2, 3));
}
