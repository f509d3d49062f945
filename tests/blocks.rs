//! Weights in blocks of integers: projections of few and of many rows, layers and texts, against the twins over what the blocks stand for.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    On, Place, Run, assert_all_stored_variants, assert_close, floats, on, on_core, on_invariant, on_typed, seeded, some,
    storage_floor, stored, stored_forms, sum_floor, widen,
};
use tileformer::kernels::Linear;
use tileformer::spec::blocks;
use tileformer::{Activation, Element, Options, reference, wgpu};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    d_in: usize,
    d_out: usize,
    weights: Element,
    element: Element,
    whole: bool,
    place: Place,
}

/// y of a case against its twins, whose weight is what the blocks stand for.
fn check(on: &On, number: u64, case: Case, reached: &mut BTreeSet<String>) {
    let Case { rows, d_in, d_out, weights, element, whole, place } = case;
    let mut rng = seeded("blocks", number);
    let words = blocks::pack(weights, d_in, &floats(&mut rng, d_out * d_in)).unwrap();
    let weight = blocks::unpack(weights, d_in, &words).unwrap();
    let [x, bias, residual] = [rows * d_in, d_out, rows * d_out].map(|n| stored(element, &floats(&mut rng, n)));
    let mut run = Run::stored(on, "linear", place, element);
    let xt = run.input("x", &[rows, d_in], &x);
    let wt = run.blocks("weight", weights, [d_out, d_in], &words);
    let bt = whole.then(|| run.weight("bias", &[d_out], &bias));
    let rt = whole.then(|| run.input("residual", &[rows, d_out], &residual));
    let y = run.output("y", &[rows, d_out]);
    let activation = if whole { Activation::Silu } else { Activation::Identity };
    run.builder.linear("linear", &Linear { x: xt, weight: wt, bias: bt, activation, residual: rt, y }).unwrap();
    let done = run.go();
    done.note(reached);

    let twin = |activation| reference::Linear {
        x: &x,
        weight: &weight,
        bias: whole.then_some(&bias[..]),
        residual: whole.then_some(&residual[..]),
        activation,
        rows,
        d_in,
        d_out,
    };
    let narrow = reference::linear(&twin(activation)).unwrap();
    let [x64, weight64, bias64, residual64] = [&x, &weight, &bias, &residual].map(|values| widen(values));
    let wide = |x: &[f64], weight: &[f64], bias: &[f64], residual: Option<&[f64]>, activation| {
        let bias = whole.then_some(bias);
        reference::linear(&reference::Linear { x, weight, bias, residual, activation, rows, d_in, d_out }).unwrap()
    };
    let right = wide(&x64, &weight64, &bias64, whole.then_some(&residual64), activation);
    let before = wide(&x64, &weight64, &bias64, None, Activation::Identity);
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let residuals = abs(&residual64);
    let terms = wide(&abs(&x64), &abs(&weight64), &abs(&bias64), whole.then_some(&residuals), Activation::Identity);
    // A weight that is unpacked into f16 is rounded once more.
    let rounded =
        if element == Element::F16 { terms.iter().fold(0.0f64, |most, v| most.max(*v)) * 2f64.powi(-11) } else { 0.0 };
    let floor = sum_floor(&terms) + common::activation_floor(&before, activation) + storage_floor(element, &right) + rounded;
    assert_close(&format!("{number}: {case:?}"), &done.f32("y"), &narrow, &right, floor);
}

/// Rule: every edge of a block, of four columns and of a tile is right, for few rows and for many, aligned or not, in every storage.
#[test]
fn edges_of_blocks() {
    let [wide_forms, narrow_forms] = [Element::F32, Element::F16].map(|element| stored_forms("linear_blocks", element));
    let (mut wide, mut narrow) = (BTreeSet::new(), BTreeSet::new());
    let mut number = 0;
    for (i, &rows) in [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70].iter().enumerate() {
        for (j, &d_in) in [1, 4, 7, 31, 32, 33, 127, 128, 129, 260, 513].iter().enumerate() {
            for weights in [Element::Int8, Element::Int4] {
                let d_out = [1, 3, 4, 5, 33, 66][(i + j + number as usize) % 6];
                let (place, whole) = (Place::ALL[(i + j) % 4], (i + j) % 3 > 0);
                let case = Case { rows, d_in, d_out, weights, element: Element::F32, whole, place };
                for on in some(&wide_forms, rows < 5, number as usize) {
                    check(on, number, case, &mut wide);
                }
                // Pairs want even offsets and sizes.
                let even = |n: usize| n.next_multiple_of(2);
                let place = [Place::DENSE, Place::STRIDED, Place::EVEN][(i + j) % 3];
                let halves = Case { element: Element::F16, d_in: even(d_in), d_out: even(d_out), place, ..case };
                for on in some(&narrow_forms, rows < 5, number as usize / 2) {
                    check(on, number, halves, &mut narrow);
                }
                if number % 5 == 0 {
                    check(on_core(), number, case, &mut wide);
                    if let Some(on) = on_typed() {
                        check(on, number, Case { place: Place::ODD, ..halves }, &mut narrow);
                    }
                }
                number += 1;
            }
        }
    }
    for kernel in ["linear_blocks", "unpack_blocks"] {
        assert_all_stored_variants(kernel, Element::F32, &wide);
        assert_all_stored_variants(kernel, Element::F16, &narrow);
    }
}

/// Rule: a weight that exceeds a binding is read in parts, and what it is unpacked into too.
#[test]
fn parts_of_a_large_weight() {
    let gpu = common::open(|device| {
        device.required_limits.max_storage_buffer_binding_size = 1 << 14;
        device.required_limits.max_buffer_size = 1 << 20;
    });
    let on = On::new(gpu, Options::default());
    let mut reached = BTreeSet::new();
    for (number, rows) in [(0, 1), (1, 5), (2, 30)] {
        for weights in [Element::Int8, Element::Int4] {
            let case =
                Case { rows, d_in: 130, d_out: 120, weights, element: Element::F32, whole: true, place: Place::DENSE };
            check(&on, number, case, &mut reached);
        }
    }
    // The words fit a binding, the halves that they stand for do not: they are cut where pairs and groups of four stay whole.
    let narrow = common::open(|device| {
        device.required_features.remove(wgpu::Features::SHADER_F16);
        device.required_limits.max_storage_buffer_binding_size = 1 << 16;
        device.required_limits.max_buffer_size = 1 << 20;
    });
    let case = Case {
        rows: 20,
        d_in: 256,
        d_out: 200,
        weights: Element::Int8,
        element: Element::F16,
        whole: true,
        place: Place::DENSE,
    };
    check(&On::new(narrow, Options::default()), 3, case, &mut reached);
    assert!(reached.iter().all(|name| !name.contains(".packed.")), "{reached:?}");
    assert!(
        reached.iter().any(|name| name.starts_with("unpack"))
            && reached.iter().any(|name| name.starts_with("linear_blocks"))
    );
}

/// Rule: batch invariant, a row's bits are the same alone and among others.
#[test]
fn rows_do_not_depend_on_each_other() {
    let mut rng = seeded("rows of blocks", 0);
    let (d_in, d_out) = (200, 37);
    for weights in [Element::Int8, Element::Int4] {
        let words = blocks::pack(weights, d_in, &floats(&mut rng, d_out * d_in)).unwrap();
        let x = floats(&mut rng, 19 * d_in);
        let run = |on: &On, rows: std::ops::Range<usize>| {
            let mut run = Run::new(on, "linear", Place::DENSE);
            let xt = run.input("x", &[rows.len(), d_in], &x[rows.start * d_in..rows.end * d_in]);
            let wt = run.blocks("weight", weights, [d_out, d_in], &words);
            let y = run.output("y", &[rows.len(), d_out]);
            run.builder.linear("linear", &Linear::new(xt, wt, y)).unwrap();
            run.go().tensor("y").bits()
        };
        for (on, all) in [(on_invariant(), 19), (on(), 6)] {
            let together = run(on, 0..all);
            for row in [0, 1, 3, 4, all - 1] {
                assert!(
                    run(on, row..row + 1) == together[row * d_out..(row + 1) * d_out],
                    "{weights:?}, row {row} of {all}"
                );
            }
        }
    }
}
