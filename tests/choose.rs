//! `choose` and `mark_seen` against their twins: the same token, unless a threshold is within 1e-5; the same state, word by word.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::choosing::{Case, case, forms, logits, sequence};
use common::{Place, Run, assert_all_variants, on, pick, seeded, some, uniform};
use rand::RngExt;
use tileformer::Sampling;
use tileformer::kernels::MarkSeen;
use tileformer::reference;
use tileformer::spec::sampling::seen_words;

/// Rule: every option, alone and with others, chooses as the twin does, at every size, in every compiled form.
#[test]
fn options_combine_at_every_size_in_every_form() {
    let (forms, mut reached) = (forms(), BTreeSet::new());
    for (i, (columns, cases)) in [(1, 4), (2, 8), (31, 24), (257, 24), (1000, 24), (50257, 6)].into_iter().enumerate() {
        for number in 0..cases {
            let mut rng = seeded("choose", (i * 100 + number) as u64);
            let batch = if columns > 1000 { 1 + number % 3 } else { [1, 3, 8][number % 3] };
            let place = pick(&mut rng, &Place::ALL);
            let case = case(&mut rng, columns, batch);
            for on in some(forms, number % 4 == 0, i + number) {
                case.check(on, &format!("case {number}"), place).done.note(&mut reached);
            }
        }
    }
    assert_all_variants("choose", &reached);
}

/// Rule: a greedy row that nothing edits is chosen from the maxima of its groups, and the logits are not read.
#[test]
fn maxima_stand_for_logits() {
    let forms = forms();
    for (number, columns) in [1, 36, 37, 38, 1000, 20_000].into_iter().enumerate() {
        let mut rng = seeded("maxima", number as u64);
        let mut case = Case::new(logits(&mut rng, 5 * columns), columns, &[Sampling::greedy(); 5]);
        (case.maxima, case.log_probs) = (true, false);
        case.logits[..columns].fill(-3.0);
        case.logits[2 * columns..3 * columns].fill(f32::NAN);
        case.logits[3 * columns..4 * columns].fill(f32::NEG_INFINITY);
        case.logits[5 * columns - 1] = 1e3; // of the last group
        for on in forms {
            case.check(on, "maxima", Place::ALL[number % 4]);
        }
        // Where they do not serve, the logits are read.
        case.log_probs = true;
        case.check(on(), "maxima and log-probabilities", Place::DENSE);
    }
}

/// Rule: stop tokens, the limit and a full cache end a row, in this order of blame; rows that rest give padding; a step behind the
/// last one writes nothing and counts.
#[test]
fn rows_go_on_and_end() {
    let columns = 40;
    for (number, cross) in [false, true, false, true].into_iter().enumerate() {
        let stop = Sampling::greedy().with_stops(&[3, 11]).unwrap();
        let options = [
            stop,                                              // goes on
            stop,                                              // stops
            Sampling::sampled(5).with_top_k(1).with_limit(20), // reaches its limit
            stop.with_limit(90),                               // full
            stop,                                              // full, and stops
            stop,                                              // rests
            stop,                                              // nothing to choose
            stop,                                              // past the last step
            stop.with_stops(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap(),
        ];
        let batch = options.len();
        let mut case = Case::new(logits(&mut seeded("ends", number as u64), batch * columns), columns, &options);
        case.steps = 3;
        case.capacity = 30;
        if cross {
            let at = batch * 8;
            let crossed: Vec<u32> = (0..batch).flat_map(|b| sequence(b, true, 9, 0)).collect();
            case.state.splice(at..at, crossed);
            case.cross = true;
        }
        case.seen = (number > 1).then(|| vec![0; batch * seen_words(columns)]);
        let winners = [5, 11, 6, 8, 3, 2, 0, 9, 7];
        for (b, winner) in winners.into_iter().enumerate() {
            case.logits[b * columns + winner] = 1e3;
            let last = if cross { 2 } else { 1 };
            case.words(last, b)[1] = (b % 3) as u32;
            case.words(0, b)[3] = 12;
        }
        case.logits[6 * columns..7 * columns].fill(f32::NEG_INFINITY);
        case.words(0, 2)[3] = 20;
        case.words(0, 3)[3] = 30;
        case.words(0, 4)[3] = 30;
        case.words(0, 5)[1] = 0;
        case.words(if cross { 2 } else { 1 }, 7)[1] = 3;
        for on in forms() {
            let found = case.check(on, "ends", Place::ALL[number]);
            let own = if cross { 2 } else { 1 } * batch * 8;
            let flags: Vec<u32> = (0..batch).map(|b| found.state[own + b * 8 + 2]).collect();
            assert_eq!(flags, [0, 1, 1, 3, 1, 0, 5, 0, 1]);
        }
    }
}

/// Rule: the random words are Philox4x32-10's, bit for bit: of 2¹⁷ equal tokens a row draws the one that the upper bits name.
#[test]
fn draws_are_philox_bit_by_bit() {
    const BITS: u32 = 17;
    assert_eq!(reference::philox([0; 4], [0; 2])[0], 0x6627_e8d5);
    let mut rng = seeded("philox", 0);
    let seeds: Vec<u64> = (0..8).map(|b| if b == 0 { 0 } else { rng.random() }).collect();
    let options: Vec<Sampling> = seeds.iter().map(|&seed| Sampling::sampled(seed)).collect();
    let mut case = Case::new(vec![0.25; 8 << BITS], 1 << BITS, &options);
    let positions: Vec<u32> = (0..8).map(|b| if b == 0 { 0 } else { rng.random() }).collect();
    positions.iter().enumerate().for_each(|(b, &p)| case.words(0, b)[4] = p);
    case.log_probs = false;
    for on in forms() {
        let found = case.go(on, Place::DENSE);
        for b in 0..8 {
            let [word, ..] = reference::philox([positions[b], 0, 0, 0], [seeds[b] as u32, (seeds[b] >> 32) as u32]);
            assert_eq!(found.tokens[b], word >> (32 - BITS), "seed {:#x}, position {}", seeds[b], positions[b]);
        }
    }
}

/// Rule: tokens come as often as the twin's probabilities say (chi-square).
#[test]
fn draws_have_the_probabilities_of_the_twin() {
    const ROWS: usize = 4096;
    let columns = 67;
    let plain = Sampling::sampled(0).with_temperature(1.3).unwrap();
    let cut = plain.with_top_k(30).with_top_p(0.9).unwrap();
    for (number, options) in [plain, cut].into_iter().enumerate() {
        let mut rng = seeded("chi-square", number as u64);
        let one = uniform(&mut rng, columns, -2.0, 2.0);
        let twin = reference::choose(&one.iter().map(|&x| x.into()).collect::<Vec<f64>>(), None, None, &options, 0).unwrap();
        let seeded = |b: usize| Sampling::sampled(b as u64).with_temperature(options.temperature()).unwrap();
        let all: Vec<Sampling> =
            (0..ROWS).map(|b| seeded(b).with_top_k(options.top_k()).with_top_p(options.top_p()).unwrap()).collect();
        let mut case = Case::new(one.repeat(ROWS), columns, &all);
        case.log_probs = false;
        let tokens = case.go(on(), Place::DENSE).tokens;
        let mut counts = vec![0.0f64; columns];
        tokens.iter().for_each(|&t| counts[t as usize] += 1.0);
        // Cells of few are joined.
        let (mut square, mut cells, mut rest) = (0.0, 0, [0.0; 2]);
        for (count, p) in counts.iter().zip(&twin.probabilities) {
            assert!(*p > 0.0 || *count == 0.0, "a token that is not kept was drawn");
            let expected = p * ROWS as f64;
            if expected >= 5.0 {
                square += (count - expected).powi(2) / expected;
                cells += 1;
            } else {
                rest = [rest[0] + count, rest[1] + expected];
            }
        }
        if rest[1] >= 1.0 {
            square += (rest[0] - rest[1]).powi(2) / rest[1];
            cells += 1;
        }
        // Wilson and Hilferty: the cube root is all but normal; 3.72 is what 1e-4 of a normal exceeds.
        let freedom = f64::from(cells - 1);
        let spread = 2.0 / (9.0 * freedom);
        let deviation = ((square / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
        assert!(cells > 10 && deviation.abs() < 3.72, "chi-square {square} of {freedom}: {deviation} deviations");
    }
}

/// Rule: a row's bits are its own: alone, in a batch, at another place in it.
#[test]
fn a_row_does_not_depend_on_the_batch() {
    for (number, columns) in [257, 5003].into_iter().enumerate() {
        let mut rng = seeded("batches", number as u64);
        let mut case = case(&mut rng, columns, 8);
        case.log_probs = true;
        case.seen.get_or_insert_with(|| vec![0x0101_0101; 8 * seen_words(columns)]);
        for on in forms() {
            let all = case.go(on, Place::DENSE);
            for b in 0..8 {
                let alone = case.row(b).go(on, Place::DENSE);
                assert_eq!(alone.tokens[0], all.tokens[b]);
                assert_eq!(alone.log_probs.unwrap()[0], all.log_probs.as_ref().unwrap()[b]);
                assert_eq!(alone.state[..8], all.state[b * 8..][..8]);
                assert_eq!(
                    alone.seen.unwrap()[..],
                    all.seen.as_ref().unwrap()[b * seen_words(columns)..][..seen_words(columns)]
                );
            }
        }
    }
}

/// Rule: NaN, infinities and huge values give defined tokens.
#[test]
fn hostile_logits() {
    let values =
        [f32::NAN, f32::from_bits(0xffc0_0001), f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40];
    let forms = forms();
    for number in 0..48 {
        let mut rng = seeded("hostile", number);
        let columns = pick(&mut rng, &[1, 3, 70, 600]);
        let mut case = case(&mut rng, columns, 3);
        let some_values: Vec<f32> = (0..3).map(|_| pick(&mut rng, &values)).collect();
        case.logits.iter_mut().for_each(|x| {
            if rng.random() {
                *x = pick(&mut rng, &some_values);
            }
        });
        if number % 3 == 0 {
            case.logits[..columns].fill(pick(&mut rng, &values));
        }
        if let Some(bias) = &mut case.bias {
            bias.iter_mut().for_each(|x| {
                if rng.random_range(0..4) == 0 {
                    *x = pick(&mut rng, &values);
                }
            });
        }
        case.check(&forms[number as usize % forms.len()], &format!("hostile {number}"), pick(&mut rng, &Place::ALL));
    }
}

/// Rule: options that no [`Sampling`] has, as a GPU may write them, are taken to the ends of their ranges; NaN and what is negative is
/// above them.
#[test]
fn options_out_of_range_are_taken_to_its_ends() {
    const TEMPERATURE: usize = 0;
    const TOP_P: usize = 2;
    const PENALTY: usize = 3;
    let columns = 300;
    let (ends, sampled) =
        (Sampling::sampled(9).with_top_k(40), |p| Sampling::sampled(9).with_repetition_penalty(p).unwrap());
    let heat = |t| ends.with_temperature(t).unwrap();
    // Field, value, what it is taken for, and a scale of logits at which draws tell that from others.
    let cases = [
        (TEMPERATURE, -0.0, Sampling::greedy(), 1.0),
        (TEMPERATURE, 1e-9, heat(1e-6), 1e-8),
        (TEMPERATURE, 1e9, heat(1e6), 1e6),
        (TEMPERATURE, -1.0, heat(1e6), 1e6),
        (TEMPERATURE, f32::NAN, heat(1e6), 1e6),
        (PENALTY, 1e-9, sampled(1.0 / 1024.0), 1e-5),
        (PENALTY, 0.0, sampled(1.0 / 1024.0), 1e-5),
        (PENALTY, 1e9, sampled(1024.0), 1e-5),
        (PENALTY, -1.0, sampled(1024.0), 1e-5),
        (PENALTY, f32::NAN, sampled(1024.0), 1e-5),
        (TOP_P, 1.5, Sampling::sampled(9), 1e-2),
        (TOP_P, -1.0, Sampling::sampled(9), 1e-2),
        (TOP_P, f32::NAN, Sampling::sampled(9), 1e-2),
    ];
    for on in forms() {
        for (number, &(field, value, right, scale)) in cases.iter().enumerate() {
            let mut rng = seeded("out of range", number as u64);
            let mut case = Case::new(logits(&mut rng, 4 * columns), columns, &[right; 4]);
            case.logits.iter_mut().for_each(|x| *x *= scale);
            case.seen = Some((0..4 * seen_words(columns)).map(|_| rng.random()).collect());
            let expected = case.check(on, "in range", Place::DENSE);
            let mut words: Vec<u32> = Sampling::words(&case.options).to_vec();
            words.chunks_exact_mut(16).for_each(|row| row[field] = value.to_bits());
            case.options = bytemuck::cast_slice(&words).to_vec();
            let found = case.go(on, Place::DENSE);
            assert_eq!(found.tokens, expected.tokens, "{value} in word {field}");
            assert_eq!(found.log_probs, expected.log_probs, "{value} in word {field}");
        }
    }
}

/// Rule: a token as far below the largest logit as f32 reaches has its log-probability all the same.
#[test]
fn log_probabilities_as_far_as_f32_reaches() {
    for (number, far) in [0.0, -1e38, -1.6e38, f32::MIN].into_iter().enumerate() {
        let mut case = Case::new(vec![f32::MAX, far, f32::NEG_INFINITY], 3, &[Sampling::greedy()]);
        case.bias = Some(vec![f32::NEG_INFINITY, 0.0, 0.0]);
        case.check(&forms()[number % forms().len()], &format!("{far:e} below"), Place::DENSE);
    }
}

/// Rule: probabilities are right to 1e-5 in a vocabulary of 131072: the draw's share lands on the right one of many equal tokens, and
/// top-p counts them right, although no sum is exact.
#[test]
fn sums_of_a_large_vocabulary() {
    let columns = 131_072;
    let mut case =
        Case::new(vec![-0.7; 2 * columns], columns, &[Sampling::sampled(3), Sampling::sampled(4).with_top_p(0.7).unwrap()]);
    for b in 0..2 {
        // one large token makes the weights of the others inexact
        case.logits[b * columns + 9] = 0.0;
        (0..columns).for_each(|c| case.logits[b * columns + c] -= (c % 1021) as f32 * 1e-3);
    }
    for on in forms() {
        case.check(on, "large", Place::DENSE);
    }
}

/// Rule: a prompt's tokens become bits of its text; the first rows of a text clear those of the one before; rows that rest stay.
#[test]
fn prompts_are_marked() {
    const LONGEST: u32 = 300;
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let vocabulary = [1000, 40_000][number % 2];
        let words = seen_words(vocabulary);
        let outside = [32 * words as u32, 32 * words as u32 + 33, u32::MAX];
        let mut rng = seeded("seen", number as u64);
        // begins a text, goes on with one, rests, begins with one row, has more rows than are served
        let sequences = [
            [0u32, LONGEST, 0, LONGEST, 0, 0, 0, 0],
            [300, 33, 0, 60, 27, 0, 0, 0],
            [0, 0, 0, 5, 0, 0, 0, 0],
            [333, 1, 0, 1, 0, 0, 0, 0],
            [334, LONGEST + 10, 0, LONGEST + 10, 0, 0, 0, 0],
        ];
        let id = |i| if i % 9 == 7 { pick(&mut rng, &outside) } else { rng.random_range(0..vocabulary as u32) };
        let ids: Vec<u32> = (0..644).map(id).collect();
        let mut expected: Vec<u32> = (0..5 * words).map(|_| rng.random()).collect();
        let mut run = Run::new(on(), "mark_seen", place);
        let args = MarkSeen {
            ids: run.ids("ids", &ids),
            sequences: run.words("sequences", &[5, 8], sequences.as_flattened()),
            longest: LONGEST as usize,
            seen: run.state("seen", &[5, words], &expected),
        };
        run.builder.mark_seen("mark_seen", &args).unwrap();
        let found = run.go().tensor("seen").bits();
        for (row, s) in expected.chunks_mut(words).zip(&sequences) {
            if s[4] == 0 && s[1] != 0 {
                row.fill(0);
            }
            for &id in &ids[s[0] as usize..(s[0] + s[1].min(LONGEST)) as usize] {
                if let Some(word) = row.get_mut(id as usize / 32) {
                    *word |= 1 << (id % 32);
                }
            }
        }
        assert_eq!(found, expected, "{place:?}");
    }
}
