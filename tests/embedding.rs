//! `embedding` against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    Done, On, Place, Run, assert_all_stored_variants, assert_all_variants, assert_close, floats, on, on_core, pick, seeded,
    storage_floor, stored, sum_floor,
};
use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::kernels::EmbeddingRows;
use tileformer::reference::{self, EmbeddingInputs, Real};
use tileformer::spec::layers::Embedding;
use tileformer::{Element, Sequence, Sequences};

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    columns: usize,
    vocabulary: usize,
    positions: Option<usize>,
    segments: Option<usize>,
    add: bool,
    sequences: Option<Vec<Sequence>>,
    scale: f32,
    first_position: usize,
    /// Whether ids, segment ids and positions may lie outside their tables.
    outside: bool,
    place: Place,
    /// What tables, `add` and y are stored as.
    element: Element,
}

const PLAIN: Case = Case {
    rows: 1,
    columns: 1,
    vocabulary: 50,
    positions: None,
    segments: None,
    add: false,
    sequences: None,
    scale: 1.0,
    first_position: 0,
    outside: false,
    place: Place::DENSE,
    element: Element::F32,
};

struct Data {
    token: Vec<f32>,
    position: Vec<f32>,
    segment: Vec<f32>,
    add: Vec<f32>,
    ids: Vec<u32>,
    segment_ids: Vec<u32>,
}

fn ids(rng: &mut StdRng, rows: usize, table: usize, outside: bool) -> Vec<u32> {
    let strange = [table as u32, table as u32 + 1, u32::MAX, i32::MAX as u32, 1 << 31];
    (0..rows)
        .map(|_| if outside && rng.random_bool(0.3) { pick(rng, &strange) } else { rng.random_range(0..table as u32) })
        .collect()
}

fn data(case: &Case, rng: &mut StdRng) -> Data {
    let (positions, segments) = (case.positions.unwrap_or(1), case.segments.unwrap_or(1));
    let mut table = |rows: usize| stored(case.element, &floats(rng, rows * case.columns));
    Data {
        token: table(case.vocabulary),
        position: table(positions),
        segment: table(segments),
        add: table(case.rows),
        ids: ids(rng, case.rows, case.vocabulary, case.outside),
        segment_ids: ids(rng, case.rows, segments, case.outside),
    }
}

/// The twin, with `add` on the rows that are not zeros, and the sums of the terms' absolute values.
fn twin<T: Real>(case: &Case, data: &Data, map: impl Fn(f32) -> f64) -> Vec<T> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(map(v))).collect::<Vec<_>>();
    let [token, position, segment, add] = [&data.token, &data.position, &data.segment, &data.add].map(|v| real(v));
    let spec = Embedding {
        positions: case.positions,
        segments: case.segments,
        scale: map(case.scale) as f32,
        first_position: case.first_position,
        ..Embedding::new(case.vocabulary, case.columns)
    };
    let inputs = EmbeddingInputs {
        token_table: &token,
        position_table: case.positions.map(|_| &position[..]),
        segment_table: case.segments.map(|_| &segment[..]),
        ids: &data.ids,
        segment_ids: case.segments.map(|_| &data.segment_ids[..]),
        sequences: case.sequences.as_deref(),
    };
    let mut y = reference::embedding(&spec, &inputs).unwrap();
    if case.add {
        for (y, add) in y.chunks_exact_mut(case.columns).zip(add.chunks_exact(case.columns)) {
            if y.iter().any(|v| *v != T::zero()) {
                y.iter_mut().zip(add).for_each(|(y, add)| *y += *add);
            }
        }
    }
    y
}

fn run(on: &On, case: &Case, data: &Data) -> Done {
    let Case { rows, columns, vocabulary, .. } = *case;
    let mut run = Run::stored(on, "embedding", case.place, case.element);
    let token = run.weight("token", &[vocabulary, columns], &data.token);
    let ids = run.ids("ids", &data.ids);
    let y = run.output("y", &[rows, columns]);
    let longest = case.sequences.as_ref().map_or(0, |s| s.iter().map(|s| s.q_len).max().unwrap().max(1) as usize);
    let args = EmbeddingRows {
        positions: case.positions.map(|n| run.weight("position", &[n, columns], &data.position)),
        segments: case.segments.map(|n| {
            let ids = run.ids("segment_ids", &data.segment_ids);
            (ids, run.weight("segment", &[n, columns], &data.segment))
        }),
        add: case.add.then(|| run.input("add", &[rows, columns], &data.add)),
        sequences: case.sequences.as_ref().map(|s| {
            let words: Vec<u32> = Sequences::new(s.clone()).unwrap().words().to_vec();
            (run.words("sequences", &[s.len(), 8], &words), longest)
        }),
        scale: case.scale,
        first_position: case.first_position,
        ..EmbeddingRows::new(ids, token, y)
    };
    run.builder.embedding("embedding", &args).unwrap();
    run.go()
}

fn check(on: &On, seed: &str, number: u64, case: &Case) -> Done {
    let data = data(case, &mut seeded(seed, number));
    let done = run(on, case, &data);
    let owned = |row: usize| {
        case.sequences.as_ref().is_none_or(|s| s.iter().any(|s| (s.q_start..s.q_start + s.q_len).contains(&(row as u32))))
    };
    let found = done.tensor("y").f32_where(|i| owned(i / case.columns));
    let mut twins = (twin::<f32>(case, &data, f64::from), twin::<f64>(case, &data, f64::from));
    // Without positions the twin has no use for sequences; the kernel leaves the rows of none alone.
    for row in (0..case.rows).filter(|&row| !owned(row)) {
        twins.0[row * case.columns..][..case.columns].fill(0.0);
        twins.1[row * case.columns..][..case.columns].fill(0.0);
    }
    let terms = twin::<f64>(case, &data, |v| f64::from(v.abs()));
    let floor = sum_floor(&terms) + storage_floor(case.element, &twins.1);
    assert_close(&format!("{seed} {number}: {case:?}"), &found, &twins.0, &twins.1, floor);
    done
}

fn random_sequences(rng: &mut StdRng, rows: usize, offsets: &[i32]) -> Vec<Sequence> {
    // Packed, with gaps that no sequence has, and sequences without rows.
    let (mut sequences, mut at) = (Vec::new(), 0);
    while at < rows && sequences.len() < 9 {
        at += rng.random_range(0..3);
        let len = rng.random_range(0..20).min(rows.saturating_sub(at));
        let offset = pick(rng, offsets);
        let k_len = rng.random_range(0..5); // of no meaning here
        sequences.push(Sequence { q_start: at as u32, q_len: len as u32, k_len, offset, ..Sequence::default() });
        at += len;
    }
    sequences
}

/// Rule: every combination of options is right, in every compiled form, with and without rows that are outside a table.
#[test]
fn every_option_in_every_form() {
    let mut reached = BTreeSet::new();
    for bits in 0..64u64 {
        for (i, place) in Place::ALL.into_iter().enumerate() {
            let has = |bit: u64| bits >> bit & 1 == 1;
            let mut rng = seeded("sequences", bits * 4 + i as u64);
            let rows = 41;
            let case = Case {
                rows,
                columns: [12, 20, 7, 33][(bits as usize + i) % 4],
                positions: has(0).then_some(if has(4) { 15 } else { 60 }),
                segments: has(1).then_some(3),
                add: has(2),
                sequences: has(3).then(|| random_sequences(&mut rng, rows, &[0, 0, 3, -2, -30, 100])),
                outside: has(4),
                scale: if has(5) { 1.0 } else { -2.5 },
                first_position: if has(5) { 0 } else { 2 },
                place,
                ..PLAIN
            };
            check(on(), "options", bits * 4 + i as u64, &case).note(&mut reached);
        }
    }
    assert_all_variants("embedding", &reached);
}

/// Rule: the same stored as f16, in both of its forms: only the sum is rounded.
#[test]
fn f16_in_every_form() {
    let mut reached = BTreeSet::new();
    for on in [on(), on_core()] {
        for bits in 0..16u64 {
            for (i, place) in [Place::DENSE, Place::STRIDED, Place::EVEN].into_iter().enumerate() {
                let has = |bit: u64| bits >> bit & 1 == 1;
                let case = Case {
                    rows: 41,
                    columns: [12, 20, 6, 34][(bits as usize + i) % 4],
                    positions: has(0).then_some(60),
                    segments: has(1).then_some(3),
                    add: has(2),
                    outside: has(3),
                    scale: if has(0) { 1.0 } else { -2.5 },
                    place,
                    element: Element::F16,
                    ..PLAIN
                };
                check(on, "f16", bits * 3 + i as u64, &case).note(&mut reached);
            }
        }
    }
    assert_all_stored_variants("embedding", Element::F16, &reached);
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("embedding shapes", number);
        let rows = rng.random_range(1..150);
        let case = Case {
            rows,
            columns: rng.random_range(1..130),
            vocabulary: rng.random_range(1..200),
            positions: rng.random_bool(0.5).then(|| rng.random_range(1..80)),
            segments: rng.random_bool(0.5).then(|| rng.random_range(1..4)),
            add: rng.random(),
            sequences: rng.random_bool(0.5).then(|| random_sequences(&mut rng, rows, &[0, 1, -1, 7])),
            outside: rng.random(),
            scale: pick(&mut rng, &[1.0, 8.0, 22.627417]),
            first_position: pick(&mut rng, &[0, 2]),
            place: pick(&mut rng, &Place::ALL),
            element: Element::F32,
        };
        check(on(), "random", number, &case);
    }
}

/// Rule: a row that no part of the sum knows is zeros, exactly; one beside it is not touched by that.
#[test]
fn ids_outside_their_tables_give_zeros() {
    for (number, columns) in [8, 5].into_iter().enumerate() {
        let case = Case { rows: 6, columns, vocabulary: 4, positions: Some(5), segments: Some(2), ..PLAIN };
        let mut data = data(&case, &mut seeded("outside", number as u64));
        data.ids = vec![0, 4, 3, u32::MAX, 2, 1];
        data.segment_ids = vec![1, 0, 2, 1, 0, 0];
        // rows 1 and 3: no such token; row 2: no such segment; row 5: no such position
        let y = run(on(), &case, &data).f32("y");
        for (row, values) in y.chunks_exact(columns).enumerate() {
            let zeros = values.iter().all(|v| v.to_bits() == 0);
            assert_eq!(zeros, [1, 2, 3, 5].contains(&row), "row {row}: {values:?}");
        }
    }
}

/// Rule: a position of −1 is outside its table, however large the sum of offset and first position wraps.
#[test]
fn far_offsets_are_outside() {
    let far = (1 << 30) - 1;
    for offset in [-1, -far, far] {
        let sequence = Sequence { q_len: 3, offset, ..Sequence::default() };
        let case = Case { rows: 3, columns: 4, positions: Some(3), sequences: Some(vec![sequence]), ..PLAIN };
        check(on(), "far", 0, &case);
        check(on(), "far", 1, &Case { first_position: 1, ..case.clone() });
        let case = Case { first_position: 1 << 30, ..case };
        check(on(), "far", 2, &case);
    }
}

/// Rule: a token table that no binding holds is split, and every row finds its token in its part, the last one too.
#[test]
fn a_table_larger_than_a_binding_is_split() {
    let on = common::on_small_bindings();
    for (number, (vocabulary, columns)) in [(1000, 32), (700, 60), (5000, 13), (300, 129)].into_iter().enumerate() {
        for place in Place::ALL {
            for outside in [false, true] {
                let case = Case {
                    rows: 97,
                    columns,
                    vocabulary,
                    positions: Some(98),
                    add: true,
                    outside,
                    first_position: 1,
                    scale: 3.0,
                    place,
                    ..PLAIN
                };
                let mut data = data(&case, &mut seeded("split", number as u64));
                // The seams, first and last row of the table and of each part of 64 rows.
                for (i, id) in data.ids.iter_mut().take(60).enumerate() {
                    *id = ((i / 2 * 64 + i % 2 * 63) % vocabulary) as u32;
                }
                data.ids[60] = vocabulary as u32 - 1;
                let done = run(on, &case, &data);
                assert!(done.variants.len() > 1, "{case:?} was not split");
                let twins = (twin::<f32>(&case, &data, f64::from), twin::<f64>(&case, &data, f64::from));
                let terms = twin::<f64>(&case, &data, |v| f64::from(v.abs()));
                assert_close(&format!("{case:?}"), &done.f32("y"), &twins.0, &twins.1, sum_floor(&terms));
            }
        }
    }
}

/// Rule: positions alone can be added to rows, as before every layer.
#[test]
fn positions_alone() {
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let (rows, columns, positions) = (23, 24 + number % 2, 30);
        let mut rng = seeded("positions", number as u64);
        let (x, table) = (floats(&mut rng, rows * columns), floats(&mut rng, positions * columns));
        let sequences = Sequences::packed(&[9, 0, 14]).unwrap().with_offset(2);
        let mut run = Run::new(on(), "positions", place);
        let (add, position) = (run.input("x", &[rows, columns], &x), run.weight("position", &[positions, columns], &table));
        let (s, y) = (run.words("sequences", &[3, 8], sequences.words()), run.output("y", &[rows, columns]));
        let args = EmbeddingRows {
            add: Some(add),
            positions: Some(position),
            sequences: Some((s, 14)),
            ..EmbeddingRows::adding(y)
        };
        run.builder.embedding("positions", &args).unwrap();
        let found = run.go().f32("y");
        let sequences = Some(sequences.as_slice());
        let right32 = reference::embedding::add_positions(&x, &table, sequences, rows, positions, columns).unwrap();
        let (x, table) = (common::widen(&x), common::widen(&table));
        let right64 = reference::embedding::add_positions(&x, &table, sequences, rows, positions, columns).unwrap();
        assert_close(&format!("{place:?}"), &found, &right32, &right64, sum_floor(&[2.0]));
    }
}
