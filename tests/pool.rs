//! `pool` against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, assert_close, floats, largest, on, on_core, on_typed, pick,
    seeded, storage_floor, stored, widen,
};
use rand::RngExt;
use tileformer::kernels::Pool;
use tileformer::spec::Pooling;
use tileformer::{Element, Sequence, Sequences, reference};

/// x with NaN in every row that no sequence has; checked against the twin.
fn check(
    on: &On,
    name: &str,
    sequences: &Sequences,
    columns: usize,
    place: Place,
    element: Element,
    kind: (Pooling, bool),
) -> Done {
    let (pooling, normalize) = kind;
    let rows = sequences.shape().to_self().q_rows.max(1);
    let mut rng = seeded(name, (rows * columns) as u64);
    let mut x = stored(element, &floats(&mut rng, rows * columns));
    for row in 0..rows {
        let inside = |s: &Sequence| (s.k_start..s.k_start + s.k_len).contains(&(row as u32));
        if !sequences.as_slice().iter().any(inside) {
            x[row * columns..(row + 1) * columns].fill(f32::NAN);
        }
    }
    let count = sequences.as_slice().len();
    let longest = sequences.shape().longest_k.max(1);
    let mut run = Run::stored(on, "pool", place, element);
    let xt = run.input("x", &[rows, columns], &x);
    // Queries, which are of no meaning here, elsewhere.
    let mut words = sequences.words().to_vec();
    words.chunks_exact_mut(8).for_each(|s| (s[0], s[1]) = (s[2] + 1, s[3] + 1));
    let st = run.words("sequences", &[count, 8], &words);
    let y = run.output("y", &[count, columns]);
    run.builder.pool("pool", &Pool { x: xt, sequences: st, longest, pooling, normalize, y }).unwrap();
    let done = run.go();

    let narrow = reference::pool(&x, sequences.as_slice(), pooling, normalize, rows, columns).unwrap();
    let wide = reference::pool(&widen(&x), sequences.as_slice(), pooling, normalize, rows, columns).unwrap();
    // A division and an inverse square root, of 2.5 and 2 units in the last place.
    let floor = 8.0 * EPS * largest(&wide) + if element == Element::F16 { storage_floor(element, &wide) } else { 0.0 };
    let name = format!("{name}: {rows} rows, {columns} columns, {kind:?}, {place:?} as {:?}", done.variants);
    assert_close(&name, &done.f32("y"), &narrow, &wide, floor);
    done
}

const KINDS: [(Pooling, bool); 4] =
    [(Pooling::First, false), (Pooling::First, true), (Pooling::Mean, false), (Pooling::Mean, true)];

/// Rule: padded and packed batches of any width give their twin's rows in every form; a sequence without rows gives zeros, and padding
/// is never read.
#[test]
fn edges_in_every_form() {
    for element in [Element::F32, Element::F16] {
        let mut reached = BTreeSet::new();
        for (i, columns) in [1, 2, 5, 8, 62, 255, 256, 384, 1030].into_iter().enumerate() {
            for (j, lengths) in [&[1][..], &[5, 0, 3], &[4, 7, 129, 2]].into_iter().enumerate() {
                let batches = [Sequences::padded(lengths, 131).unwrap(), Sequences::packed(lengths).unwrap()];
                for (k, sequences) in batches.iter().enumerate() {
                    let kind = KINDS[(i + j + k) % 4];
                    let mut run =
                        |on, place| check(on, "edges", sequences, columns, place, element, kind).note(&mut reached);
                    let place = pick(&mut seeded("place", (i * 6 + j * 2 + k) as u64), &[Place::DENSE, Place::STRIDED]);
                    if element == Element::F32 {
                        run(on(), place);
                        run(on(), if k == 0 { Place::ODD } else { Place::OFF_BY_ONE });
                        continue;
                    }
                    if let Some(on) = on_typed() {
                        run(on, place);
                        run(on, Place::ODD);
                    }
                    if columns % 2 == 0 {
                        run(on_core(), Place::DENSE);
                        run(on_core(), Place::EVEN);
                    }
                }
            }
        }
        assert_all_stored_variants("pool", element, &reached);
    }
}

/// Rule: every pooling holds for any batch.
#[test]
fn random_batches() {
    for number in 0..12 {
        let mut rng = seeded("pool batches", number);
        let lengths: Vec<usize> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..40)).collect();
        let sequences = match number % 2 {
            0 => Sequences::packed(&lengths).unwrap(),
            _ => Sequences::padded(&lengths, 41).unwrap(),
        };
        let (columns, place) = (rng.random_range(1..300), pick(&mut rng, &Place::ALL));
        for kind in KINDS {
            check(on(), "random", &sequences, columns, place, Element::F32, kind);
        }
    }
}
