//! `rotary` and `gate` against their twins.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::cases::below;
use common::{
    On, Place, Run, activation_floor, assert_all_stored_variants, assert_close, largest, on, on_core, seeded, storage_floor,
    stored, uniform, widen,
};
use tileformer::kernels::{Gate, Rotary, RotaryPositions};
use tileformer::spec::{RotaryOrder, RotaryScaling, rotary_table};
use tileformer::{Activation, Element, Sequence, reference};

/// The forms in which tensors of an inner size lie: f16 in pairs needs even ones.
fn forms(size: usize) -> Vec<(&'static On, Element, Place)> {
    let mut all: Vec<_> = Place::ALL.into_iter().map(|place| (on(), Element::F32, place)).collect();
    if size.is_multiple_of(2) {
        for on in [on(), on_core()] {
            all.extend([Place::DENSE, Place::STRIDED, Place::EVEN].map(|place| (on, Element::F16, place)));
        }
    }
    all
}

/// Rule: every pair is turned by its position's angle, in both orders; what is behind the turned columns, and rows without a position,
/// are copied.
#[test]
fn heads_are_turned() {
    let mut reached = BTreeSet::new();
    for (number, (rows, heads, size, turned)) in [
        (1, 1, 2, 2),
        (5, 3, 8, 8),
        (7, 2, 8, 4),
        (3, 2, 7, 6),
        (4, 1, 64, 64),
        (9, 5, 6, 2),
        (2, 4, 128, 96),
        (6, 1, 10, 6),
        (300, 3, 2, 2),
    ]
    .into_iter()
    .enumerate()
    {
        for order in [RotaryOrder::Halves, RotaryOrder::Interleaved] {
            for (i, (on, element, place)) in forms(size).into_iter().enumerate() {
                let mut rng = seeded("rotary", (number * 100 + i) as u64);
                let x = stored(element, &uniform(&mut rng, rows * heads * size, -3.0, 3.0));
                let table = rotary_table(20, turned, 10_000.0, RotaryScaling::None).unwrap();
                let in_sequences = i % 2 == 0;
                // Two sequences, the second behind a gap; positions before the table, in it, and past it.
                let split = rows / 2;
                let sequences = [
                    Sequence { q_start: 0, q_len: split as u32, offset: 17, ..Sequence::default() },
                    Sequence {
                        q_start: split as u32 + 1,
                        q_len: (rows - split - 1) as u32,
                        offset: -1,
                        ..Sequence::default()
                    },
                ];
                let ids: Vec<u32> = (0..rows).map(|_| below(&mut rng, 24) as u32).collect();
                let mut written = vec![!in_sequences; rows];
                let mut positions: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                for s in sequences.iter().filter(|_| in_sequences) {
                    for t in 0..s.q_len {
                        written[(s.q_start + t) as usize] = true;
                        positions[(s.q_start + t) as usize] = i64::from(s.offset) + i64::from(t);
                    }
                }
                let sizes = [rows, heads, size];
                let twin = reference::rotary(&x, sizes, (&table, turned), order, &positions).unwrap();
                let right = reference::rotary(&widen(&x), sizes, (&widen(&table), turned), order, &positions).unwrap();

                let mut run = Run::stored(on, "rotary", place, element);
                let (x, y) = (run.input("x", &sizes, &x), run.output("y", &sizes));
                let places = match in_sequences {
                    true => {
                        RotaryPositions::Sequences(run.words("sequences", &[2, 8], bytemuck::cast_slice(&sequences)), rows)
                    }
                    false => RotaryPositions::Ids(run.ids("ids", &ids)),
                };
                let table = run.input_as("table", Element::F32, &[20, turned], &table);
                run.builder.rotary("rotary", &Rotary { x, table, order, positions: places, y }).unwrap();
                let done = run.go();
                done.note(&mut reached);
                let found = done.tensor("y").f32_where(|i| written[i / (heads * size)]);
                let kept = |i: &usize| written[i / (heads * size)];
                let pick = |v: &[f32]| (0..v.len()).filter(kept).map(|i| v[i]).collect::<Vec<_>>();
                let right: Vec<f64> = (0..right.len()).filter(kept).map(|i| right[i]).collect();
                if right.is_empty() {
                    continue;
                }
                let name = format!("{sizes:?} of {turned} {order:?} {element:?} {place:?}");
                let floor = 4.0 * common::EPS * largest(&right) + storage_floor(element, &right);
                assert_close(&name, &pick(&found), &pick(&twin), &right, floor);
            }
        }
    }
    assert_all_stored_variants("rotary", Element::F32, &reached);
    assert_all_stored_variants("rotary", Element::F16, &reached);
}

/// Rule: scores of turned queries and keys depend on the distance of their positions alone.
#[test]
fn turned_products_know_distances_alone() {
    let mut rng = seeded("rotary distance", 0);
    let (q, k) = (uniform(&mut rng, 16, -1.0, 1.0), uniform(&mut rng, 16, -1.0, 1.0));
    let table = widen(&rotary_table(64, 16, 10_000.0, RotaryScaling::Linear { factor: 2.0 }).unwrap());
    for order in [RotaryOrder::Halves, RotaryOrder::Interleaved] {
        let turn = |x: &[f32], p| reference::rotary(&widen(x), [1, 1, 16], (&table, 16), order, &[p]).unwrap();
        let score = |i, j| turn(&q, i).iter().zip(turn(&k, j)).map(|(a, b)| a * b).sum::<f64>();
        assert!((score(9, 4) - score(47, 42)).abs() < 1e-6);
        assert!((score(9, 4) - score(9, 5)).abs() > 1e-3);
    }
}

/// Rule: Llama 3.1's stretching keeps short waves, divides long ones and blends between.
#[test]
fn stretched_frequencies() {
    let scaling = RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 };
    let [plain, stretched] =
        [RotaryScaling::None, scaling].map(|s| rotary_table(2, 128, 500_000.0, s).unwrap().split_off(128 + 64));
    // The sines at position 1: equal for the fastest, an eighth for the slowest.
    assert_eq!(plain[0], stretched[0]);
    assert!((plain[63] / stretched[63] - 8.0).abs() < 1e-5);
    assert!((1..64).all(|i| stretched[i] <= plain[i] && stretched[i] <= stretched[i - 1]));
    for (turned, base) in [(3, 10_000.0), (4, 0.0), (4, f64::NAN)] {
        assert!(rotary_table(2, turned, base, RotaryScaling::None).is_err());
    }
}

/// Rule: the gate is right for every activation, at every shape.
#[test]
fn gates_open_and_close() {
    let mut reached = BTreeSet::new();
    for (number, sizes) in [[1, 1], [2, 4], [3, 255], [5, 256], [7, 30], [31, 97], [4, 128]].into_iter().enumerate() {
        for (i, (on, element, place)) in forms(sizes[1]).into_iter().enumerate() {
            let kind = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu][(number + i) % 4];
            let mut rng = seeded("gate", (number * 100 + i) as u64);
            let [gate, up] = [0, 1].map(|_| stored(element, &uniform(&mut rng, sizes[0] * sizes[1], -4.0, 4.0)));
            let twin = reference::gate(&gate, &up, kind).unwrap();
            let right = reference::gate(&widen(&gate), &widen(&up), kind).unwrap();
            let floor =
                4.0 * activation_floor(&widen(&gate), kind) + storage_floor(element, &right) + common::EPS * largest(&right);

            let mut run = Run::stored(on, "gate", place, element);
            let (gate, up) = (run.input("gate", &sizes, &gate), run.input("up", &sizes, &up));
            let y = run.output("y", &sizes);
            run.builder.gate("gate", &Gate { gate, up, activation: kind, y }).unwrap();
            let done = run.go();
            done.note(&mut reached);
            assert_close(&format!("{sizes:?} {kind:?} {element:?} {place:?}"), &done.f32("y"), &twin, &right, floor);
        }
    }
    assert_all_stored_variants("gate", Element::F32, &reached);
    assert_all_stored_variants("gate", Element::F16, &reached);
}
