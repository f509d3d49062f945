//! `activation` against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    Done, Place, Run, activation_floor, assert_all_stored_variants, assert_all_variants, assert_close, on, on_core, pick,
    seeded, storage_floor, stored, uniform, widen,
};
use rand::RngExt;
use tileformer::kernels::ActivationRows;
use tileformer::{Activation, Element, reference};

const ALL: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

fn run(x: &[f32], sizes: [usize; 2], kind: Activation, place: Place) -> Done {
    let mut run = Run::new(on(), "activation", place);
    let (xt, y) = (run.input("x", &sizes, x), run.output("y", &sizes));
    run.builder.activation("activation", &ActivationRows { x: xt, activation: kind, y }).unwrap();
    run.go()
}

fn check(name: &str, x: &[f32], sizes: [usize; 2], kind: Activation, place: Place) -> Done {
    let done = run(x, sizes, kind, place);
    let (found, right) = (reference::activation_rows(x, kind), reference::activation_rows(&widen(x), kind));
    let name = format!("{name} {kind:?} {sizes:?} {place:?}");
    // Identity and ReLU compute nothing.
    let floor = activation_floor(&widen(x), kind) + if floors(kind) { common::sum_floor(&widen(x)) } else { 0.0 };
    assert_close(&name, &done.f32("y"), &found, &right, floor);
    done
}

fn floors(kind: Activation) -> bool {
    !matches!(kind, Activation::Identity | Activation::Relu)
}

/// Rule: every function is right at every shape, in both compiled forms.
#[test]
fn every_function_at_every_edge() {
    let mut reached = BTreeSet::new();
    for (number, kind) in ALL.into_iter().enumerate() {
        for (i, sizes) in [[1, 1], [1, 4], [2, 3], [63, 4], [64, 4], [65, 4], [3, 255], [5, 256], [7, 257], [31, 97]]
            .into_iter()
            .enumerate()
        {
            for (j, place) in Place::ALL.into_iter().enumerate() {
                let mut rng = seeded("activation", (number * 100 + i * 4 + j) as u64);
                let x = uniform(&mut rng, sizes[0] * sizes[1], -6.0, 6.0);
                check("edges", &x, sizes, kind, place).note(&mut reached);
            }
        }
    }
    assert_all_variants("activation", &reached);
}

/// Rule: the same stored as f16, in both of its forms: only the result is rounded.
#[test]
fn f16_in_every_form() {
    let mut reached = BTreeSet::new();
    for on in [on(), on_core()] {
        for (number, kind) in ALL.into_iter().enumerate() {
            for (i, sizes) in [[1, 2], [1, 4], [2, 6], [64, 4], [65, 4], [3, 254], [31, 98]].into_iter().enumerate() {
                let mut rng = seeded("activation f16", (number * 100 + i) as u64);
                let x = stored(Element::F16, &uniform(&mut rng, sizes[0] * sizes[1], -6.0, 6.0));
                for place in [Place::DENSE, Place::STRIDED, Place::EVEN] {
                    let mut run = Run::stored(on, "activation", place, Element::F16);
                    let (xt, y) = (run.input("x", &sizes, &x), run.output("y", &sizes));
                    run.builder.activation("activation", &ActivationRows { x: xt, activation: kind, y }).unwrap();
                    let done = run.go();
                    let (found, right) =
                        (reference::activation_rows(&x, kind), reference::activation_rows(&widen(&x), kind));
                    let floor = activation_floor(&widen(&x), kind) + common::sum_floor(&widen(&x));
                    let floor = floor + storage_floor(Element::F16, &right);
                    assert_close(&format!("f16 {kind:?} {sizes:?} {place:?}"), &done.f32("y"), &found, &right, floor);
                    done.note(&mut reached);
                }
            }
        }
    }
    assert_all_stored_variants("activation", Element::F16, &reached);
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("activation shapes", number);
        let sizes = [rng.random_range(1..200), rng.random_range(1..200)];
        let kind = pick(&mut rng, &ALL);
        let place = pick(&mut rng, &Place::ALL);
        check("random", &uniform(&mut rng, sizes[0] * sizes[1], -10.0, 10.0), sizes, kind, place);
    }
}

/// Rule: each value on its own is right, from the subnormal to the saturated: no large neighbour excuses a small one.
#[test]
fn values_one_by_one() {
    let mut x: Vec<f32> = (-400..=400).map(|i| i as f32 / 20.0).collect();
    x.extend([
        0.0, -0.0, 1e-20, -1e-20, 1e-3, 30.0, -30.0, 87.0, -87.0, 88.5, -88.5, 104.0, -104.0, 1e4, -1e4, 1e20, -1e20, 3e38,
        -3e38,
    ]);
    for kind in ALL {
        let y = run(&x, [1, x.len()], kind, Place::DENSE).f32("y");
        for (i, &value) in x.iter().enumerate() {
            let found = [reference::activation(value, kind)];
            let right = [reference::activation(f64::from(value), kind)];
            // Behind the function's own error: one rounding of x, and of the result; exp(−87) stands for all below.
            let floor = activation_floor(&[f64::from(value)], kind) + common::sum_floor(&[f64::from(value)]) + 1e-30;
            let floor = if floors(kind) { floor } else { 0.0 };
            assert_close(&format!("{kind:?}({value:?})"), &y[i..=i], &found, &right, floor);
        }
    }
}

/// Rule: more groups than one line of workgroups folds into two grid dimensions.
#[test]
fn a_grid_of_two_dimensions() {
    let rows = 65_535 * 64 + 100;
    let x: Vec<f32> = (0..rows).map(|i| i as f32).collect();
    let y = run(&x, [rows, 1], Activation::Identity, Place::DENSE).f32("y");
    assert!(x == y);
}
