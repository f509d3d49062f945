//! Key/value caches: what fits, keys that are appended, slots that move.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::cases::below;
use common::{Done, On, Place, Run, assert_all_stored_variants, on, on_core, seeded};
use rand::rngs::StdRng;
use tileformer::kernels::{CacheAppend, CacheGather};
use tileformer::spec::cache::{CacheShape, CachedRows};
use tileformer::{Element, Sequence, reference};

/// Rule: more keys than a slot holds, slots that there are not and two texts in one slot are refused by the host.
#[test]
fn the_host_refuses_what_does_not_fit() {
    let shape = CacheShape { slots: 2, n_kv_heads: 4, capacity: 10, width: 8 };
    let rows = |slot, past, new| CachedRows { slot, past, new };
    for (what, batch, parts) in [
        ("too long", vec![rows(0, 8, 3)], ["keys of slot 0", "at most 10", "11"]),
        ("overflow", vec![rows(0, usize::MAX, 3)], ["keys of slot 0", "at most 10", "18446744073709551615"]),
        ("no slot", vec![rows(2, 0, 1)], ["slot", "below 2", "2"]),
        ("two in one", vec![rows(1, 0, 1), rows(1, 4, 1)], ["slot", "one text a slot", "two in slot 1"]),
    ] {
        let text = shape.sequences(&batch).unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{what}: {text}");
    }
    let endless = CacheShape { slots: usize::MAX, ..shape };
    assert!(endless.sequences(&[rows(0, 0, 1)]).is_ok() && endless.sequences(&[rows(1 << 60, 0, 1)]).is_err());
    let sequence = Sequence { q_len: 6, k_start: 40, k_len: 10, offset: 4, ..Sequence::default() };
    assert_eq!(shape.sequences(&[rows(1, 4, 6)]).unwrap().as_slice(), [sequence]);
    assert_eq!(shape.bytes(Element::F16), 2 * 2 * 2 * 4 * 10 * 8);
}

/// The forms that floats of a width come in: where they lie, on which device, as what.
fn forms(width: usize) -> Vec<(&'static On, Element, Place)> {
    let mut all = vec![(on(), Element::F32, Place::DENSE), (on(), Element::F32, Place::ODD)];
    if width.is_multiple_of(2) {
        for on in [on(), on_core()] {
            all.extend([(on, Element::F16, Place::DENSE), (on, Element::F16, Place::EVEN)]);
        }
    }
    all
}

/// Whole numbers, which every storage holds, each another.
fn numbers(count: usize, from: i32) -> Vec<f32> {
    (0..count as i32).map(|i| ((from + i) % 2048) as f32).collect()
}

/// What is there is right bit by bit, and nothing else was written.
fn compare(done: &Done, name: &str, right: &[Option<f32>], what: &str) {
    let found = done.tensor(name).f32_where(|i| right[i].is_some());
    let wrong = found.iter().zip(right).position(|(f, r)| *f != r.unwrap_or(0.0));
    assert!(wrong.is_none(), "{what}: element {wrong:?} of {name}");
}

/// A cache (2, slots, NH, S, W) that lies as `place` says, but for its slots and heads, which have no gaps.
fn cache_place(place: Place) -> Place {
    Place { gap: 0, ..place }
}

/// Rule: keys and values go where their sequence says, overflow nowhere, and not a bit else changes.
#[test]
fn new_keys_are_appended_bit_by_bit() {
    let mut reached = BTreeSet::new();
    for (number, [heads, head_size, value_size]) in
        [[1, 1, 1], [2, 4, 8], [3, 8, 4], [2, 5, 3], [1, 64, 64], [2, 6, 6], [3, 2, 10]].into_iter().enumerate()
    {
        for (on, element, place) in forms(head_size | value_size) {
            let rng: &mut StdRng = &mut seeded("append", number as u64);
            let shape = CacheShape { slots: 4, n_kv_heads: heads, capacity: 9, width: head_size.max(value_size) };
            // Texts in odd slots, one that rests, one that overflows, one with more rows than keys.
            let word = |slot: usize| (slot * heads * shape.capacity) as u32;
            let sequences = [
                Sequence { q_start: 2, q_len: 3, k_start: word(3), k_len: 7, ..Sequence::default() },
                Sequence { q_start: 0, q_len: 0, k_start: word(1), k_len: 5, ..Sequence::default() },
                Sequence { q_start: 5, q_len: 4, k_start: word(0), k_len: 11, ..Sequence::default() },
                Sequence { q_start: 9, q_len: 2, k_start: word(2), k_len: 1, ..Sequence::default() },
            ];
            let rows = 11 + below(rng, 3);
            let (k, v) = (numbers(rows * heads * head_size, 1), numbers(rows * heads * value_size, 900));
            let sizes = [2, shape.slots, heads, shape.capacity, shape.width];
            let mut right = vec![None; sizes.iter().product()];
            let some = |x: &[f32]| x.iter().copied().map(Some).collect::<Vec<_>>();
            let twin = ((&some(&k)[..], head_size), (&some(&v)[..], value_size));
            reference::cache_append(&shape, twin.0, twin.1, &sequences, &mut right).unwrap();

            let mut run = Run::stored(on, "append", place, element);
            let k = run.input("k", &[rows, heads, head_size], &k);
            let v = run.input("v", &[rows, heads, value_size], &v);
            let sequences = run.words("sequences", &[4, 8], bytemuck::cast_slice(&sequences));
            run.place = cache_place(place);
            let cache = run.output("cache", &sizes);
            run.builder.cache_append("append", &CacheAppend { k, v, sequences, longest: 4, cache }).unwrap();
            let done = run.go();
            done.note(&mut reached);
            compare(&done, "cache", &right, &format!("{element:?} {heads} {head_size} {value_size} {place:?}"));
        }
    }
    assert_all_stored_variants("cache_append", Element::F32, &reached);
    assert_all_stored_variants("cache_append", Element::F16, &reached);
}

/// Rule: slots of a single key are slots: each text's key goes into its own.
#[test]
fn slots_of_one_key_are_apart() {
    for heads in [1, 2] {
        let shape = CacheShape { slots: 3, n_kv_heads: heads, capacity: 1, width: 4 };
        let rows = [2, 0].map(|slot| CachedRows { slot, past: 0, new: 1 });
        let sequences = shape.sequences(&rows).unwrap();
        let (k, v) = (numbers(2 * heads * 4, 1), numbers(2 * heads * 4, 900));
        let sizes = [2, shape.slots, heads, shape.capacity, shape.width];
        let mut right = vec![None; sizes.iter().product()];
        let some = |x: &[f32]| x.iter().copied().map(Some).collect::<Vec<_>>();
        let twin = ((&some(&k)[..], 4), (&some(&v)[..], 4));
        reference::cache_append(&shape, twin.0, twin.1, sequences.as_slice(), &mut right).unwrap();

        let mut run = Run::new(on(), "one key", Place::DENSE);
        let (k, v) = (run.input("k", &[2, heads, 4], &k), run.input("v", &[2, heads, 4], &v));
        let sequences = run.words("sequences", &[2, 8], sequences.words());
        let cache = run.output("cache", &sizes);
        run.builder.cache_append("append", &CacheAppend { k, v, sequences, longest: 1, cache }).unwrap();
        compare(&run.go(), "cache", &right, &format!("{heads} heads"));
    }
}

/// Rule: the twins refuse what leaves a cache or its rows, and panic at nothing.
#[test]
fn twins_refuse_what_leaves_a_cache() {
    let shape = CacheShape { slots: 2, n_kv_heads: 1, capacity: 3, width: 2 };
    let sequence = Sequence { q_len: 1, k_len: 1, ..Sequence::default() };
    for (what, shape, size, sequence) in [
        ("rows", shape, 2, Sequence { q_start: u32::MAX, ..sequence }),
        ("slots", shape, 2, Sequence { k_start: 6, ..sequence }),
        ("a wide head", shape, 3, sequence),
        ("no heads", CacheShape { n_kv_heads: 0, ..shape }, 2, sequence),
    ] {
        let elements = [2, shape.slots, shape.n_kv_heads, shape.capacity, shape.width].iter().product();
        let (rows, mut cache) = (vec![0.0; size], vec![0.0; elements]);
        let found = reference::cache_append(&shape, (&rows, size), (&rows, size), &[sequence], &mut cache);
        assert!(found.is_err(), "{what}");
    }
    let (from, mut to) = (vec![0.0; 12], vec![0.0; 12]);
    assert!(reference::cache_gather((&shape, &from), &[0, 1, 0], None, (&shape, &mut to)).is_err());
}

/// Rule: gathered slots hold what their parents held, up to the lengths, and nothing else is touched.
#[test]
fn slots_are_gathered_into_another_cache() {
    let mut reached = BTreeSet::new();
    for (number, width) in [1, 3, 4, 6, 8, 64].into_iter().enumerate() {
        for (on, element, place) in forms(width) {
            let rng: &mut StdRng = &mut seeded("gather", number as u64);
            let from_shape = CacheShape { slots: 3, n_kv_heads: 2, capacity: 7, width };
            let to_shape = CacheShape { slots: 5, capacity: 6, ..from_shape };
            let sizes = |s: &CacheShape| [2, s.slots, s.n_kv_heads, s.capacity, s.width];
            let from = numbers(sizes(&from_shape).iter().product(), 1);
            let parents = [2, 0, 2, 3];
            let some: Vec<u32> = (0..4).map(|_| below(rng, 9) as u32).collect();
            for lengths in [Some(some.as_slice()), None] {
                let mut right = vec![None; sizes(&to_shape).iter().product()];
                let known: Vec<Option<f32>> = from.iter().copied().map(Some).collect();
                reference::cache_gather((&from_shape, &known), &parents, lengths, (&to_shape, &mut right)).unwrap();

                let mut run = Run::stored(on, "gather", place, element);
                let from = run.input("from", &sizes(&from_shape), &from);
                let parents = run.ids("parents", &parents);
                let lengths = lengths.map(|l| run.ids("lengths", l));
                let to = run.output("to", &sizes(&to_shape));
                run.builder.cache_gather("gather", &CacheGather { from, parents, lengths, to }).unwrap();
                let done = run.go();
                done.note(&mut reached);
                compare(&done, "to", &right, &format!("{element:?} {width} {place:?}"));
            }
        }
    }
    assert_all_stored_variants("cache_gather", Element::F32, &reached);
    assert_all_stored_variants("cache_gather", Element::F16, &reached);
}
