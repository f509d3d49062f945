//! `linear` in all its forms against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    On, Place, Run, assert_all_stored_variants, assert_all_variants, assert_close, floats, on, on_core, on_form,
    on_invariant, on_typed, pick, seeded, storage_floor, stored, sum_floor, widen,
};
use rand::RngExt;
use tileformer::{Activation, Element, Options, Variant, kernels, reference};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    d_in: usize,
    d_out: usize,
    bias: bool,
    activation: Activation,
    residual: bool,
    place: Place,
}

const ACTIVATIONS: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

/// The formula by the twins, and the tolerance's floor.
struct Twin {
    y32: Vec<f32>,
    y64: Vec<f64>,
    floor: f64,
}

fn twin(case: &Case, x: &[f32], weight: &[f32], bias: &[f32], residual: &[f32]) -> Twin {
    let Case { rows, d_in, d_out, activation, .. } = *case;
    let bias = case.bias.then_some(bias);
    let residual = case.residual.then_some(residual);
    let twin32 = reference::Linear { x, weight, bias, residual, activation, rows, d_in, d_out };
    let y32 = reference::linear(&twin32).unwrap();
    let wide = |values: Option<&[f32]>| values.map(widen);
    let (x, weight, bias, residual) = (widen(x), widen(weight), wide(bias), wide(residual));
    let linear64 = |x: &[f64], weight: &[f64], bias: Option<&[f64]>, residual: Option<&[f64]>, activation| {
        reference::linear(&reference::Linear { x, weight, bias, residual, activation, rows, d_in, d_out }).unwrap()
    };
    let y64 = linear64(&x, &weight, bias.as_deref(), residual.as_deref(), activation);
    let before = linear64(&x, &weight, bias.as_deref(), None, Activation::Identity);
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let terms = linear64(
        &abs(&x),
        &abs(&weight),
        bias.as_deref().map(abs).as_deref(),
        residual.as_deref().map(abs).as_deref(),
        Activation::Identity,
    );
    let floor = sum_floor(&terms) + common::activation_floor(&before, activation);
    Twin { y32, y64, floor }
}

/// Runs a case, compares it, and gives the variants that ran.
fn check(on: &On, seed: &str, number: u64, case: Case) -> Vec<Variant> {
    check_stored(on, Element::F32, seed, number, case)
}

fn check_stored(on: &On, element: Element, seed: &str, number: u64, case: Case) -> Vec<Variant> {
    let Case { rows, d_in, d_out, .. } = case;
    let mut rng = seeded(seed, number);
    let (x, weight) = (floats(&mut rng, rows * d_in), floats(&mut rng, d_out * d_in));
    let (bias, residual) = (floats(&mut rng, d_out), floats(&mut rng, rows * d_out));
    let [x, weight, bias, residual] = [x, weight, bias, residual].map(|values| stored(element, &values));
    let mut run = Run::stored(on, "linear", case.place, element);
    let (xt, wt) = (run.input("x", &[rows, d_in], &x), run.weight("weight", &[d_out, d_in], &weight));
    let bt = case.bias.then(|| run.weight("bias", &[d_out], &bias));
    let rt = case.residual.then(|| run.input("residual", &[rows, d_out], &residual));
    let y = run.output("y", &[rows, d_out]);
    let linear = kernels::Linear { x: xt, weight: wt, bias: bt, activation: case.activation, residual: rt, y };
    run.builder.linear("linear", &linear).unwrap();
    let done = run.go();
    let twin = twin(&case, &x, &weight, &bias, &residual);
    let floor = twin.floor + storage_floor(element, &twin.y64);
    assert_close(&format!("{seed} {number}: {case:?}"), &done.f32("y"), &twin.y32, &twin.y64, floor);
    done.variants
}

fn note(reached: &mut BTreeSet<String>, variants: &[Variant]) {
    reached.extend(variants.iter().map(Variant::name));
}

fn random_case(rng: &mut rand::rngs::StdRng) -> Case {
    Case {
        rows: rng.random_range(1..140),
        d_in: rng.random_range(1..140),
        d_out: rng.random_range(1..140),
        bias: rng.random(),
        activation: pick(rng, &ACTIVATIONS),
        residual: rng.random(),
        place: pick(rng, &Place::ALL),
    }
}

/// Rule: whatever form the table takes, every edge of a tile, in every dimension, aligned or not, is right.
#[test]
fn edges_of_tiles() {
    let mut number = 0;
    let rows = [1, 2, 4, 5, 8, 9, 31, 32, 33, 63, 64, 65, 67, 131];
    let columns = [1, 3, 4, 31, 32, 33, 63, 64, 65, 131];
    let depths = [1, 3, 4, 15, 16, 17, 35, 61, 64, 97];
    for (i, &rows) in rows.iter().enumerate() {
        for (j, &d_out) in columns.iter().enumerate() {
            // Depths and places take turns, out of step with each other.
            let d_in = depths[(i + j) % depths.len()];
            let place = Place::ALL[(i + j + j / 4) % 4];
            let case = Case { rows, d_in, d_out, bias: true, activation: Activation::Identity, residual: false, place };
            check(on(), "edges", number, case);
            if j % 3 == i % 3 {
                check(on_invariant(), "edges", number, case);
            }
            number += 1;
        }
    }
    for d_in in depths {
        for place in Place::ALL {
            for rows in [1, 6, 64] {
                let case =
                    Case { rows, d_in, d_out: 64, bias: false, activation: Activation::Identity, residual: true, place };
                check(on(), "depths", number, case);
                number += 1;
            }
        }
    }
}

/// Rows and columns that pass the edges of every tile, and depths that pass those of tiles and of parts of k. All are multiples of
/// four in the last dimension, so that only the place decides whether groups of four are aligned.
const EDGES: [(usize, usize, usize); 7] =
    [(1, 300, 4), (9, 16, 12), (33, 36, 36), (64, 300, 132), (65, 300, 128), (129, 420, 68), (130, 256, 260)];

/// Runs every form of linear over the edges of its tiles by pinning it, and says which variants ran.
fn pinned(gpu: &tileformer::convenience::Gpu, element: Element, edges: &[(usize, usize, usize)]) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for variant in kernels::variants() {
        let name = variant.name();
        let parts: Vec<&str> = name.split('.').collect();
        let tiled = ["linear", "linear_few", "linear_split"].contains(&parts[0]);
        if !tiled
            || !variant.features().difference(gpu.device.features()).is_empty()
            || !seen.insert([parts[0], parts[2]].join("."))
        {
            continue;
        }
        let on = On::new(gpu.clone(), Options::default().with_pinned(variant));
        for (number, &(rows, d_in, d_out)) in (0..).zip(edges) {
            let activation = ACTIVATIONS[number as usize % 2 * 2];
            let places = match element {
                Element::F16 => [Place::DENSE, Place::STRIDED, Place::EVEN],
                _ => [Place::DENSE, Place::STRIDED, Place::OFF_BY_ONE],
            };
            let case =
                Case { rows, d_in, d_out, bias: true, activation, residual: true, place: places[number as usize % 3] };
            note(&mut reached, &check_stored(&on, element, &name, number, case));
        }
    }
    reached
}

/// Rule: every form is right at the edges of its tiles, at the seams of split sums, and where unaligned views have another form
/// stand in for it.
#[test]
fn every_form_at_its_edges() {
    let reached = pinned(common::gpu(), Element::F32, &EDGES);
    for kernel in ["linear", "linear_split", "linear_sum"] {
        assert_all_variants(kernel, &reached);
    }
}

/// Rule: f16, as the type or in pairs, changes nothing but the rounding of what is stored.
#[test]
fn f16_in_both_forms() {
    let mut reached = BTreeSet::new();
    for (number, rows) in (0..).zip([1, 2, 5, 8, 20, 33, 64, 70].repeat(2)) {
        let in_fours = number < 8;
        let multiple = |size: usize, of: usize| size.next_multiple_of(if in_fours { 4 } else { of });
        let case = random_case(&mut seeded("f16 linear", number));
        let case = Case { rows, d_in: multiple(case.d_in, 1), d_out: multiple(case.d_out, 1), ..case };
        let place = if in_fours { [Place::DENSE, Place::STRIDED] } else { [Place::OFF_BY_ONE, Place::ODD] }[rows % 2];
        if let Some(on) = on_typed() {
            note(&mut reached, &check_stored(on, Element::F16, "f16", number, Case { place, ..case }));
        }
        let place = if in_fours { place } else { Place::EVEN };
        let case = Case { d_in: multiple(case.d_in, 2), d_out: multiple(case.d_out, 2), place, ..case };
        note(&mut reached, &check_stored(on_core(), Element::F16, "f16 in pairs", number, case));
    }
    let (few, edges) = ([(1, 300, 4), (9, 16, 132)], [(65, 260, 132), (33, 36, 36)]);
    reached.extend(pinned(common::gpu(), Element::F16, &[few, edges].concat()));
    // No features, so that f16 lies in pairs, but all the workgroup memory that there is.
    reached.extend(pinned(&common::small_bindings_gpu(1 << 27), Element::F16, &[few, edges].concat()));
    for kernel in ["linear", "linear_split", "linear_sum"] {
        assert_all_stored_variants(kernel, Element::F16, &reached);
    }
}

/// Rule: every combination of bias, activation and residual is right on each of the paths.
#[test]
fn every_epilogue_on_every_path() {
    let mut number = 0;
    for (rows, d_out) in [(1, 20), (7, 21), (33, 31), (40, 68)] {
        for activation in ACTIVATIONS {
            for (bias, residual) in [(false, false), (false, true), (true, false), (true, true)] {
                let place = Place::ALL[number as usize % 4];
                let case = Case { rows, d_in: 24, d_out, bias, activation, residual, place };
                check(on(), "epilogues", number, case);
                if rows < 9 {
                    check(on_invariant(), "epilogues", number, case);
                }
                number += 1;
            }
        }
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let case = random_case(&mut seeded("linear shapes", number));
        check(if number % 4 == 0 { on_invariant() } else { on() }, "random", number, case);
    }
    let primes = common::primes();
    for (number, &rows) in primes.iter().enumerate() {
        let case = Case {
            rows,
            d_in: primes[(number + 1) % 5],
            d_out: primes[(number + 3) % 5],
            ..random_case(&mut seeded("linear primes", number as u64))
        };
        check(on(), "primes", number as u64, case);
    }
}

/// Rule: activations stay right where their functions saturate, and give no NaN for large arguments.
#[test]
fn activations_saturate() {
    for (number, activation) in ACTIVATIONS.into_iter().enumerate() {
        for rows in [1, 3, 40] {
            let (d_in, d_out) = (1, 1);
            let x: Vec<f32> = (0..rows).map(|i| [1e4, -1e4, 13.0, -13.0, 88.0, -88.0, 0.5, -1e20][(i + rows) % 8]).collect();
            let case = Case { rows, d_in, d_out, bias: false, activation, residual: false, place: Place::DENSE };
            let twin = twin(&case, &x, &[1.0], &[], &[]);
            let mut run = Run::new(on(), "linear", Place::DENSE);
            let (xt, wt) = (run.input("x", &[rows, 1], &x), run.weight("weight", &[1, 1], &[1.0]));
            let y = run.output("y", &[rows, 1]);
            let linear = kernels::Linear { activation, ..kernels::Linear::new(xt, wt, y) };
            run.builder.linear("linear", &linear).unwrap();
            let found = run.go().f32("y");
            // One by one: the large ones would hide the small ones.
            for i in 0..rows {
                let name = format!("{number} {activation:?}({})", x[i]);
                let floor = common::activation_floor(&[f64::from(x[i])], activation) + sum_floor(&[f64::from(x[i])]);
                assert_close(&name, &found[i..=i], &twin.y32[i..=i], &twin.y64[i..=i], floor);
            }
        }
    }
}

/// Rule: a weight that no binding holds is split, with its bias and residual, and nothing is lost at the seams.
#[test]
fn a_weight_larger_than_a_binding_is_split() {
    let on = common::on_small_bindings();
    for (number, (rows, d_in, d_out)) in
        [(3, 200, 200), (40, 133, 300), (1, 256, 131), (20, 100, 777)].into_iter().enumerate()
    {
        for place in Place::ALL {
            let case = Case { rows, d_in, d_out, bias: true, activation: Activation::Gelu, residual: true, place };
            let variants = check(on, "split", number as u64, case);
            assert!(variants.len() > 1, "{case:?} was not split");
        }
    }
}

/// Rule: quads change no bit.
#[test]
fn quads_change_no_bit() {
    let (rows, d_in, d_out) = (200, 72, 140);
    let (x, weight) = (floats(&mut seeded("quads", 0), rows * d_in), floats(&mut seeded("quads", 1), d_out * d_in));
    let bits = |name: &str| {
        let (variant, on) = on_form(name)?;
        let mut run = Run::new(&on, name, Place::DENSE);
        let (x, weight) = (run.input("x", &[rows, d_in], &x), run.weight("weight", &[d_out, d_in], &weight));
        let y = run.output("y", &[rows, d_out]);
        run.builder.linear("linear", &kernels::Linear::new(x, weight, y)).unwrap();
        let done = run.go();
        assert_eq!(done.variants, [variant]);
        Some(done.tensor("y").bits())
    };
    let plain = bits("linear.f32x4.64x64x16-plain");
    let quads = bits("linear.f32x4.32x64-quads.subgroups");
    assert!(quads.is_none() || quads == plain);
}
