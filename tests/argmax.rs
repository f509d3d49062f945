//! `argmax` against its twin: always the same column.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{Done, On, Place, Run, assert_all_variants, floats, on, pick, seeded, some, stored_forms};
use rand::RngExt;
use tileformer::kernels::Argmax;
use tileformer::{Element, Layout, reference};

fn check(on: &On, name: &str, x: &[f32], sizes: [usize; 2], place: Place, id_stride: usize) -> Done {
    let mut run = Run::new(on, "argmax", place);
    let xt = run.input("x", &sizes, x);
    let ids = run.output_as("ids", Element::U32, Layout::strided(&[sizes[0]], &[id_stride]).unwrap());
    run.builder.argmax("argmax", &Argmax { x: xt, ids }).unwrap();
    let done = run.go();
    let found = done.tensor("ids").u32();
    let name = format!("{name}: {sizes:?} {place:?}, stride {id_stride} as {:?}", done.variants);
    assert_eq!(found, reference::argmax(x, sizes[0], sizes[1]).unwrap(), "{name}");
    done
}

/// Rule: every edge of rows and columns gives the twin's column, in every compiled form, ids dense or strided.
#[test]
fn edges_of_rows_and_columns_in_every_form() {
    let (forms, mut reached) = (stored_forms("argmax", Element::F32), BTreeSet::new());
    for rows in [1, 3, 4, 5, 17] {
        for (i, columns) in [1, 2, 3, 4, 5, 31, 32, 33, 97, 128, 1024, 1025, 1028, 4097, 8200].into_iter().enumerate() {
            for (j, place) in Place::ALL.into_iter().enumerate() {
                let x = floats(&mut seeded("argmax", (i * 4 + j) as u64), rows * columns);
                for on in some(&forms, rows == 3, rows + i + j) {
                    check(on, "edges", &x, [rows, columns], place, [1, 3, 7][(i + j) % 3]).note(&mut reached);
                }
            }
        }
    }
    assert_all_variants("argmax", &reached);
}

/// Rule: the largest wins wherever it stands: first, last, at each thread's and each group's edge.
#[test]
fn every_column_can_win() {
    let forms = stored_forms("argmax", Element::F32);
    for columns in [37, 64, 1030] {
        let rows = columns;
        let mut x = vec![-1.0f32; rows * columns];
        (0..rows).for_each(|r| x[r * columns + r] = -0.5);
        for on in &forms {
            check(on, "winner", &x, [rows, columns], Place::DENSE, 1);
        }
    }
}

/// Rule: ties go to the lowest column, NaN is never chosen, −0 equals +0, infinities order, a row of NaN alone gives 0.
#[test]
fn ties_nan_zeros_and_infinities() {
    let forms = stored_forms("argmax", Element::F32);
    let negative_nan = f32::from_bits(0xffc0_0001);
    let values =
        [f32::NAN, negative_nan, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, f32::MAX, f32::MIN, 1e-40, -1e-40];
    for number in 0..40 {
        let mut rng = seeded("specials", number);
        // Few different values in a row, so that ties are common.
        let columns = pick(&mut rng, &[3, 8, 40, 77, 1100]);
        let rows = rng.random_range(1..20);
        let mut x = Vec::new();
        for _ in 0..rows {
            let some: Vec<f32> = (0..rng.random_range(1..4)).map(|_| pick(&mut rng, &values)).collect();
            x.extend((0..columns).map(|_| pick(&mut rng, &some)));
        }
        let place = pick(&mut rng, &Place::ALL);
        for on in &forms {
            check(on, "specials", &x, [rows, columns], place, 2);
        }
    }
    for columns in [1, 5, 1500] {
        check(on(), "all NaN", &vec![f32::NAN; 3 * columns], [3, columns], Place::ODD, 1);
        check(on(), "all −∞", &vec![f32::NEG_INFINITY; 3 * columns], [3, columns], Place::DENSE, 1);
        check(on(), "all equal", &vec![-7.5; 3 * columns], [3, columns], Place::DENSE, 1);
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("argmax shapes", number);
        let sizes = [rng.random_range(1..60), rng.random_range(1..1500)];
        // Rounded, so that ties happen.
        let x: Vec<f32> = floats(&mut rng, sizes[0] * sizes[1]).iter().map(|v| (v * 20.0).round()).collect();
        let (place, stride) = (pick(&mut rng, &Place::ALL), rng.random_range(1..5));
        check(on(), "random", &x, sizes, place, stride);
    }
}
