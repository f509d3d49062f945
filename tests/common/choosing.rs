//! What the tests of `choose` share: cases, and the comparison of all that a run leaves with the twin.

use std::sync::OnceLock;

use super::{Done, On, POISON, Place, Run, pick, stored_forms, uniform};
use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::kernels::Choose;
use tileformer::reference;
use tileformer::spec::sampling::seen_words;
use tileformer::{Element, Sampling};

/// Where decisions of f32 and f64 may differ.
pub const TOLERANCE: f64 = 1e-5;
pub const PADDING: u32 = 77_777;

/// The kernel in every form, compiled once.
pub fn forms() -> &'static [On] {
    static FORMS: OnceLock<Vec<On>> = OnceLock::new();
    FORMS.get_or_init(|| stored_forms("choose", Element::F32))
}

/// One dispatch and what it starts from.
#[derive(Clone)]
pub struct Case {
    pub columns: usize,
    pub logits: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub seen: Option<Vec<u32>>,
    pub options: Vec<Sampling>,
    pub state: Vec<u32>,
    pub cross: bool,
    pub capacity: u32,
    pub steps: usize,
    pub maxima: bool,
    pub log_probs: bool,
}

/// A row's sequence of `keys` keys at `offset`, live or at rest.
pub fn sequence(b: usize, live: bool, keys: u32, offset: u32) -> [u32; 8] {
    [b as u32, u32::from(live), 40 * b as u32, keys, offset, 0, 0, 0]
}

impl Case {
    /// Live rows that are greedy, at their first step.
    pub fn new(logits: Vec<f32>, columns: usize, options: &[Sampling]) -> Self {
        let batch = logits.len() / columns;
        assert_eq!(batch, options.len());
        let mut state: Vec<u32> = (0..batch).flat_map(|b| sequence(b, true, 5 + b as u32, 4 + b as u32)).collect();
        state.extend((0..batch).flat_map(|_| [POISON / 2, 0, 0, 0, 0, 0, 0, 0]));
        Self {
            columns,
            logits,
            bias: None,
            seen: None,
            options: options.to_vec(),
            state,
            cross: false,
            capacity: 1000,
            steps: 1,
            maxima: false,
            log_probs: true,
        }
    }

    pub fn batch(&self) -> usize {
        self.options.len()
    }

    /// The words of row b of part `part` of the state.
    pub fn words(&mut self, part: usize, b: usize) -> &mut [u32] {
        let at = (part * self.batch() + b) * 8;
        &mut self.state[at..at + 8]
    }

    /// The row alone.
    pub fn row(&self, b: usize) -> Self {
        let parts = if self.cross { 3 } else { 2 };
        let part = |all: &[u32], n: usize| all[b * n..(b + 1) * n].to_vec();
        let words = seen_words(self.columns);
        let bias = self.bias.as_ref().map(|bias| {
            if bias.len() == self.columns { bias.clone() } else { bias[b * self.columns..][..self.columns].to_vec() }
        });
        Self {
            logits: self.logits[b * self.columns..][..self.columns].to_vec(),
            bias,
            seen: self.seen.as_ref().map(|s| part(s, words)),
            options: vec![self.options[b]],
            state: (0..parts).flat_map(|p| part(&self.state[p * self.batch() * 8..], 8)).collect(),
            ..self.clone()
        }
    }

    /// As the kernel that makes logits leaves them: of every 37 columns the largest.
    pub fn maxima(&self) -> Vec<u32> {
        let key = |x: f32| match x.to_bits() {
            _ if x.is_nan() => 0,
            bits if bits >> 31 == 0 => 0x8000_0000 + bits,
            bits => 0x8000_0000 - (bits & 0x7fff_ffff),
        };
        let group = |(n, group): (usize, &[f32])| {
            let column = reference::argmax(group, 1, group.len()).unwrap()[0] as usize;
            [key(group[column]), (37 * n + column) as u32]
        };
        self.logits.chunks(self.columns).flat_map(|row| row.chunks(37).enumerate().flat_map(group)).collect()
    }

    pub fn go(&self, on: &On, place: Place) -> Found {
        let (batch, columns) = (self.batch(), self.columns);
        let mut run = Run::new(on, "choose", place);
        let logits = if self.maxima && !self.log_probs {
            // must not be read
            run.input("logits", &[batch, columns], &vec![f32::MAX; batch * columns])
        } else {
            run.input("logits", &[batch, columns], &self.logits)
        };
        let maxima = self.maxima.then(|| run.words("maxima", &[batch, columns.div_ceil(37), 2], &self.maxima()));
        let bias = self.bias.as_ref().map(|bias| {
            let sizes = [batch, columns];
            run.input("bias", if bias.len() == columns { &sizes[1..] } else { &sizes }, bias)
        });
        let sampling = run.words("sampling", &[batch, 16], Sampling::words(&self.options));
        let state = run.state("state", &[self.state.len() / 8, 8], &self.state);
        let seen = self.seen.as_ref().map(|seen| run.state("seen", &[batch, seen_words(columns)], seen));
        let tokens = run.output_as("tokens", Element::U32, place.layout(&[self.steps, batch]));
        let log_probs = self.log_probs.then(|| run.output("log_probs", &[self.steps, batch]));
        let (cross, capacity) = (self.cross, self.capacity as usize);
        let args = Choose { maxima, bias, seen, cross, log_probs, ..Choose::new(logits, sampling, state, capacity, tokens) };
        run.builder.choose("choose", &Choose { padding: PADDING, ..args }).unwrap();
        let done = run.go();
        Found {
            tokens: done.tensor("tokens").bits(),
            log_probs: self.log_probs.then(|| done.tensor("log_probs").bits()),
            state: done.tensor("state").bits(),
            seen: self.seen.as_ref().map(|_| done.tensor("seen").bits()),
            done,
        }
    }

    /// Runs it and compares everything with the twin.
    pub fn check(&self, on: &On, name: &str, place: Place) -> Found {
        let found = self.go(on, place);
        let (batch, own) = (self.batch(), (if self.cross { 2 } else { 1 }) * self.batch() * 8);
        let (mut state, mut seen) = (self.state.clone(), self.seen.clone());
        let mut tokens = vec![POISON; self.steps * batch];
        let mut written = vec![false; self.steps * batch];
        for b in 0..batch {
            let row = self.row(b);
            let options = row.options[0];
            let (live, position, step) = (row.state[1] != 0, row.state[4], self.state[own + b * 8 + 1] as usize);
            let wide: Vec<f64> = row.logits.iter().map(|&x| x.into()).collect();
            let bias: Option<Vec<f64>> = row.bias.as_ref().map(|bias| bias.iter().map(|&x| x.into()).collect());
            let twin = reference::choose(&wide, bias.as_deref(), row.seen.as_deref(), &options, position).unwrap();
            let name = format!("{name}: row {b} of {batch}×{}, {options:?}, {place:?}", self.columns);
            let mut token = twin.token;
            if live && step < self.steps && twin.token.is_some() {
                let chosen = found.tokens[step * batch + b];
                assert!(twin.allows(chosen, TOLERANCE), "{name}: {chosen} for {token:?}, margin {}", twin.margin);
                token = Some(chosen);
            }
            let out = reference::advance(&mut state, self.cross, b, token, &options, self.capacity, PADDING).unwrap();
            if let (true, Some(token), Some(seen)) = (live, token, &mut seen) {
                seen[b * seen_words(self.columns) + token as usize / 32] |= 1 << (token % 32);
            }
            if step >= self.steps {
                continue;
            }
            (tokens[step * batch + b], written[step * batch + b]) = (out, true);
            if let Some(log_probs) = &found.log_probs {
                let log_prob = f64::from(f32::from_bits(log_probs[step * batch + b]));
                let expected = match token {
                    Some(t) if live && Some(t) != twin.token => {
                        let only = |c: usize| if c == t as usize { 0.0 } else { f64::NEG_INFINITY };
                        let only: Vec<f64> = (0..self.columns).map(only).collect();
                        reference::choose(&wide, Some(&only), None, &Sampling::greedy(), 0).unwrap().log_prob
                    }
                    _ if live => twin.log_prob,
                    _ => 0.0,
                };
                let tolerance = TOLERANCE * expected.abs().max(1.0);
                assert!((log_prob - expected).abs() <= tolerance, "{name}: log-probability {log_prob} for {expected}");
            }
        }
        assert_eq!(found.tokens, tokens, "{name}: tokens");
        assert_eq!(found.state, state, "{name}: state");
        assert_eq!(found.seen, seen, "{name}: seen");
        if let Some(log_probs) = &found.log_probs {
            let untouched = |i: usize| written[i] || log_probs[i] == POISON;
            assert!((0..written.len()).all(untouched), "{name}: log-probabilities of other steps");
        }
        found
    }
}

/// What a run leaves, by its bits.
pub struct Found {
    pub tokens: Vec<u32>,
    pub log_probs: Option<Vec<u32>>,
    pub state: Vec<u32>,
    pub seen: Option<Vec<u32>>,
    pub done: Done,
}

/// Logits of a language model's kind: most of them low, some high, rounded so that some are equal.
pub fn logits(rng: &mut StdRng, len: usize) -> Vec<f32> {
    let spread = pick(rng, &[0.5, 3.0, 8.0]);
    let one = |x: f32| ((x / (1.02 - x.abs())) * spread * 64.0).round() / 64.0;
    uniform(rng, len, -1.0, 1.0).into_iter().map(one).collect()
}

/// Any options.
pub fn options(rng: &mut StdRng) -> Sampling {
    let mut options = if rng.random_range(0..4) == 0 { Sampling::greedy() } else { Sampling::sampled(rng.random()) };
    if options.temperature() != 0.0 {
        options = options.with_temperature(pick(rng, &[0.3, 0.7, 1.0, 2.0, 5.0])).unwrap();
    }
    options
        .with_top_k(pick(rng, &[0, 0, 1, 2, 7, 40, 300]))
        .with_top_p(pick(rng, &[1.0, 1.0, 0.95, 0.5, 0.1, 0.0, 0.999]))
        .unwrap()
        .with_repetition_penalty(pick(rng, &[1.0, 1.0, 1.2, 4.0, 0.5]))
        .unwrap()
}

pub fn bias(rng: &mut StdRng, len: usize) -> Vec<f32> {
    let one = |x: f32| if x > 0.8 { f32::NEG_INFINITY } else { (x * 8.0).round() / 4.0 };
    uniform(rng, len, -1.0, 1.0).into_iter().map(one).collect()
}

pub fn case(rng: &mut StdRng, columns: usize, batch: usize) -> Case {
    let options: Vec<Sampling> = (0..batch).map(|_| options(rng)).collect();
    let mut case = Case::new(logits(rng, batch * columns), columns, &options);
    if rng.random() {
        let rows = pick(rng, &[1, batch]);
        case.bias = Some(bias(rng, rows * columns));
    }
    if rng.random() {
        case.seen = Some((0..batch * seen_words(columns)).map(|_| rng.random::<u32>() & rng.random::<u32>()).collect());
    }
    case.log_probs = rng.random();
    case
}
