//! Beam search over the caches of Marian and BART: what the Transformers library finds, what a plain search over the reference finds,
//! and what trying everything finds.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;
#[allow(unreachable_pub)]
#[path = "common/beams.rs"]
mod plain;

use common::{on, on_invariant};
use plain::{Case, cases, exhaustive, greedy, plain};
use tileformer::layers::BeamStepShape;
use tileformer::models::Config;
use tileformer::spec::beams::{BeamSearch, Beams, EarlyStopping, Hypothesis};
use tileformer::{Element, Error};

/// Decisions closer than this are for rounding to make.
const CLOSE: f64 = 1e-5;

/// The start token of the models, with which they pad.
const START: u32 = 3;

/// Whether scores agree: those of the GPU are sums of f32.
fn agree(found: f32, right: f64) -> bool {
    (f64::from(found) - right).abs() <= 5e-5 * right.abs().max(1.0)
}

/// Searches for every source at once.
fn search(case: &Case, search: &BeamSearch) -> Vec<Vec<Hypothesis>> {
    case.search(on(), Element::F32, &case.sources, search, case.sources.len() * search.beams).unwrap()
}

/// Rule: ids and scores are the library's, for every setting that checkpoints name, in batches of sources of different length; the ids
/// wherever no decision is as close as 10⁻⁵.
#[test]
fn hypotheses_are_the_librarys() {
    let (mut compared, mut close) = (0, 0);
    for case in cases() {
        for (number, found) in case.found.iter().enumerate() {
            let spec = case.model.beam_search(&found.settings).unwrap();
            let hypotheses = search(&case, &spec);
            for (s, (source, own)) in case.sources.iter().zip(&hypotheses).enumerate() {
                let name = format!(
                    "{} of setting {number}, source {s}",
                    case.checkpoint.config().text("model_type").unwrap().unwrap()
                );
                let (reference, margin) = match spec.beams {
                    1 => {
                        let (ids, margin) = greedy(&case, source, &spec);
                        (vec![(ids, 0.0)], margin)
                    }
                    _ => plain(&case, source, &spec),
                };
                if margin < CLOSE {
                    close += 1;
                    continue;
                }
                compared += 1;
                assert_eq!((own.len(), reference.len()), (spec.returned, spec.returned), "{name}");
                for (i, (own, reference)) in own.iter().zip(&reference).enumerate() {
                    let row = s * spec.returned + i;
                    let padded = |ids: &[u32]| {
                        let padding = found.ids[row].len().saturating_sub(ids.len());
                        ids.iter().copied().chain(std::iter::repeat_n(START, padding)).collect::<Vec<_>>()
                    };
                    assert_eq!(padded(&reference.0), found.ids[row], "{name}: the plain search, {i}");
                    assert_eq!(padded(&own.ids), found.ids[row], "{name}: {i}");
                    if let Some(scores) = &found.scores {
                        let right = f64::from(scores[row]);
                        assert!(agree(own.score, right), "{name}: {i}: score {} for {right}", own.score);
                        assert!(agree(reference.1 as f32, right), "{name}: {i}: plain score {} for {right}", reference.1);
                    }
                }
            }
        }
    }
    assert!(compared > 9 * close, "{close} of {} are too close to compare", compared + close);
}

/// Rule: with room for every beginning, a search finds the very best targets that there are.
#[test]
fn a_wide_search_finds_what_trying_everything_finds() {
    for case in cases() {
        let allowed = [1, 5, 23, 40];
        for (penalty, renormalized) in [(1.0, false), (0.0, true), (2.0, true), (-1.0, false)] {
            let mut spec = BeamSearch::new(16, START, 1);
            spec.banned = (0..case.vocabulary() as u32).filter(|id| !allowed.contains(id)).map(|id| vec![id]).collect();
            (spec.length_penalty, spec.renormalized, spec.max_length) = (penalty, renormalized, 4);
            (spec.returned, spec.early_stopping) = (16, EarlyStopping::Never);
            for (source, own) in case.sources.iter().zip(search(&case, &spec)) {
                let right = exhaustive(&case, source, &spec);
                assert_eq!((right.len(), own.len()), (1 + 3 + 9 * 4, 16));
                for (i, (own, right)) in own.iter().zip(&right).enumerate() {
                    assert!(agree(own.score, right.1), "{penalty}: {i}: {own:?} for {right:?}");
                }
                assert!(own[0].ids == right[0].0 || right[0].1 - right[1].1 < CLOSE, "{penalty}: {own:?} for {right:?}");
            }
        }
    }
}

/// Rule: one beam is greedy: it ends with its first end token, whatever else may be more probable in the end.
#[test]
fn one_beam_is_greedy() {
    for case in cases() {
        for early_stopping in [EarlyStopping::No, EarlyStopping::Never] {
            let mut spec = BeamSearch::new(1, START, 1);
            (spec.length_penalty, spec.early_stopping, spec.max_length) = (3.0, early_stopping, 12);
            for (source, own) in case.sources.iter().zip(search(&case, &spec)) {
                let (ids, margin) = greedy(&case, source, &spec);
                assert!(own[0].ids == ids || margin < CLOSE, "{:?} for {ids:?}", own[0]);
            }
        }
    }
}

/// Rule: a source's hypotheses are the same bits alone and in a batch, in a step that has rows to spare, and by plans that searched
/// before, in other slots and for longer; in f16 they are about the same.
#[test]
fn sources_do_not_meet() {
    for case in cases() {
        let mut spec = BeamSearch::new(4, START, 1);
        (spec.returned, spec.max_length) = (4, 12);
        let together = case.search(on_invariant(), Element::F32, &case.sources, &spec, 18).unwrap();
        for (source, own) in case.sources.iter().zip(&together) {
            let alone = case.search(on_invariant(), Element::F32, std::slice::from_ref(source), &spec, 4).unwrap();
            assert_eq!(alone[0], *own);
        }
        let shape = BeamStepShape { candidates: 20, ..BeamStepShape::of(&spec, 4) };
        let again = case.with_plans(on_invariant(), Element::F32, &case.sources, &shape, |plans, lengths| {
            let mut other = BeamSearch::new(8, START, 1);
            (other.max_length, other.min_length, other.banned) = (11, 11, vec![vec![40]]);
            plans.search(&other, &lengths[..2])?;
            plans.search(&spec, lengths)
        });
        assert_eq!(again.unwrap(), together);
        let narrow = case.search(on(), Element::F16, &case.sources, &spec, 16).unwrap();
        for (narrow, own) in narrow.iter().zip(&together) {
            assert!((narrow[0].score - own[0].score).abs() < 0.05, "{narrow:?} for {own:?}");
        }
    }
}

/// Rule: what does not fit is an error that names it, and nothing panics.
#[test]
fn what_does_not_fit_is_named() {
    let case = cases().next().unwrap();
    let refused = |rows: usize, change: &dyn Fn(&mut BeamSearch)| {
        let mut spec = BeamSearch::new(4, START, 1);
        spec.max_length = 12;
        change(&mut spec);
        case.search(on(), Element::F32, &case.sources, &spec, rows).unwrap_err()
    };
    for (rows, expected, change) in [
        (16, "beams: expected 1 to 16, found 0", (|s| s.beams = 0) as fn(&mut BeamSearch)),
        (80, "beams: expected 1 to 16, found 17", |s| s.beams = 17),
        (15, "sources of the beam search: expected at most 3 of 4 beams, for 15 rows, found 4", |_| {}),
        (16, "hypotheses returned: expected 1 to 4, the beams, found 5", |s| s.returned = 5),
        (16, "max_length: expected at most 12, one more than the caches hold, found 13", |s| s.max_length = 13),
        (16, "max_length: expected 2,", |s| s.max_length = 1),
        (16, "length_penalty: expected a finite number, found NaN", |s| s.length_penalty = f32::NAN),
        (16, "banned tokens", |s| s.banned = vec![vec![]]),
        (16, "end tokens: expected at most 15 with 4 beams, found 16", |s| s.ends = vec![1; 16]),
        (16, "47", |s| s.ends = vec![47]),
    ] {
        let found = refused(rows, &change).to_string();
        assert!(found.contains(expected), "{found}");
    }
    assert!(matches!(refused(16, &|s| s.start = 99), Error::Id { .. }));

    let mut spec = BeamSearch::new(4, START, 1);
    spec.max_length = 12;
    let refused = |shape: BeamStepShape| {
        let found =
            case.with_plans(on(), Element::F32, &case.sources, &shape, |plans, lengths| plans.search(&spec, lengths));
        found.unwrap_err().to_string()
    };
    let shape = BeamStepShape::of(&spec, 4);
    let renormalized = refused(BeamStepShape { renormalized: true, ..shape });
    assert_eq!(renormalized, "renormalized: expected true, as the beam step is made, found false");
    let narrow = refused(BeamStepShape { candidates: 7, ..shape });
    assert_eq!(narrow, "candidates of the beam step: expected at least 8 for 4 beams, found 7");

    let mut beams = Beams::new(&spec, 2, 47).unwrap();
    assert!(Beams::new(&spec, usize::MAX, 47).is_err(), "sources without an end");
    assert!(beams.advance(&[0; 2 * 8 * 7]).is_err() && beams.advance(&[0; 7]).is_err() && beams.ban(&mut [0; 15]).is_err());
    // Words that no kernel writes: NaN, tokens that there are not.
    beams.advance(&[u32::MAX; 2 * 8 * 8]).unwrap();
    assert!(beams.done() && beams.into_hypotheses().iter().all(Vec::is_empty));
}

/// Rule: a setting that would change what is found and that is not supported is refused by its key; one that does nothing is not.
#[test]
fn settings_are_read_or_refused() {
    let case = cases().next().unwrap();
    let read = |text: &str| case.model.beam_search(&Config::parse("generation_config.json", text).unwrap());
    for text in [
        r#"{"do_sample": true}"#,
        r#"{"num_beams": 17}"#,
        r#"{"num_beams": 0}"#,
        r#"{"num_beams": 2, "num_return_sequences": 3}"#,
        r#"{"early_stopping": "soon"}"#,
        r#"{"length_penalty": "long"}"#,
        r#"{"max_length": 0}"#,
        r#"{"min_length": -1}"#,
        r#"{"bad_words_ids": [[]]}"#,
        r#"{"bad_words_ids": [[47]]}"#,
        r#"{"suppress_tokens": 4}"#,
        r#"{"eos_token_id": []}"#,
        r#"{"eos_token_id": [1, "x"]}"#,
        r#"{"forced_eos_token_id": 47}"#,
        r#"{"renormalize_logits": 1}"#,
        r#"{"num_beam_groups": 2}"#,
        r#"{"diversity_penalty": 0.5}"#,
        r#"{"repetition_penalty": 1.2}"#,
        r#"{"encoder_no_repeat_ngram_size": 3}"#,
        r#"{"force_words_ids": [[3]]}"#,
        r#"{"begin_suppress_tokens": [3]}"#,
        r#"{"exponential_decay_length_penalty": [5, 1.1]}"#,
    ] {
        let found = read(text).unwrap_err().to_string();
        // The last key is the one at fault.
        let key = text.rsplit("\": ").nth(1).and_then(|before| before.rsplit('"').next()).unwrap();
        assert!(found.starts_with(&format!("generation_config.json: {key}: expected")), "{text}: {found}");
    }
    let neutral = r#"{"num_beam_groups": 1, "diversity_penalty": 0.0, "repetition_penalty": 1.0, "constraints": null,
        "encoder_no_repeat_ngram_size": 0, "begin_suppress_tokens": [], "num_beams": 4, "min_length": 0, "early_stopping": "never",
        "eos_token_id": [1, 3], "max_length": 30, "max_new_tokens": 7, "top_k": 50}"#;
    let spec = read(neutral).unwrap();
    assert_eq!((spec.beams, spec.max_length, spec.start, &spec.ends[..]), (4, 8, START, &[1, 3][..]));
    assert_eq!((spec.early_stopping, spec.candidates()), (EarlyStopping::Never, 12));
    // Twenty new tokens where nothing is said of a length, and what is said of new ones comes first.
    let mut default = BeamSearch::new(1, START, 1);
    default.max_length = 21;
    assert_eq!(read("{}").unwrap(), default);
    let lengths = |text: &str| read(text).map(|spec| (spec.min_length, spec.max_length)).unwrap();
    assert_eq!(lengths(r#"{"max_length": 20, "min_length": 12}"#), (12, 20));
    assert_eq!(lengths(r#"{"max_length": 20, "min_length": 12, "min_new_tokens": 4}"#), (5, 20));
}
