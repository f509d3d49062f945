//! `layer_norm` against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, assert_all_variants, assert_close, floats, largest, on, on_core,
    pick, seeded, some, storage_floor, stored, stored_forms, uniform, widen,
};
use rand::RngExt;
use tileformer::Element;
use tileformer::kernels::LayerNorm;
use tileformer::reference::{self, LayerNormOutput, Real};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    columns: usize,
    residual: bool,
    weight: bool,
    bias: bool,
    sum: bool,
    statistics: bool,
    eps: f32,
    mean: f32,
    place: Place,
    /// What everything but the statistics is stored as.
    element: Element,
    /// RMS norm instead of layer norm.
    rms: bool,
}

const PLAIN: Case = Case {
    rows: 1,
    columns: 1,
    residual: false,
    weight: false,
    bias: false,
    sum: false,
    statistics: false,
    eps: 1e-5,
    mean: 0.0,
    place: Place::DENSE,
    element: Element::F32,
    rms: false,
};

struct Data {
    x: Vec<f32>,
    residual: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn data(case: &Case, seed: &str, number: u64) -> Data {
    let mut rng = seeded(seed, number);
    let len = case.rows * case.columns;
    let x = uniform(&mut rng, len, case.mean - 1.0, case.mean + 1.0);
    let [residual, weight, bias] = [len, case.columns, case.columns].map(|len| floats(&mut rng, len));
    let [x, residual, weight, bias] = [x, residual, weight, bias].map(|values| stored(case.element, &values));
    Data { x, residual, weight, bias }
}

fn twin<T: Real>(case: &Case, data: &Data) -> LayerNormOutput<T> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(v)).collect::<Vec<_>>();
    let [x, residual, weight, bias] = [&data.x, &data.residual, &data.weight, &data.bias].map(|v| real(v));
    let normalise = if case.rms { reference::rms_norm } else { reference::layer_norm };
    normalise(&reference::LayerNorm {
        x: &x,
        residual: case.residual.then_some(&residual[..]),
        weight: case.weight.then_some(&weight[..]),
        bias: case.bias.then_some(&bias[..]),
        eps: case.eps,
        rows: case.rows,
        d: case.columns,
    })
    .unwrap()
}

fn run(on: &On, case: &Case, data: &Data) -> Done {
    let Case { rows, columns, .. } = *case;
    let mut run = Run::stored(on, "layer_norm", case.place, case.element);
    let x = run.input("x", &[rows, columns], &data.x);
    let y = run.output("y", &[rows, columns]);
    let norm = LayerNorm {
        residual: case.residual.then(|| run.input("residual", &[rows, columns], &data.residual)),
        weight: case.weight.then(|| run.weight("weight", &[columns], &data.weight)),
        bias: case.bias.then(|| run.weight("bias", &[columns], &data.bias)),
        eps: case.eps,
        sum: case.sum.then(|| run.output("sum", &[rows, columns])),
        statistics: case.statistics.then(|| {
            let layout = case.place.layout(&[rows, 2]);
            run.output_as("statistics", Element::F32, layout)
        }),
        ..LayerNorm::new(x, y)
    };
    if case.rms {
        run.builder.rms_norm("norm", &norm).unwrap();
    } else {
        run.builder.layer_norm("norm", &norm).unwrap();
    }
    run.go()
}

/// Floors for y, mean and inverse deviation. Each row's sums run over s − s[0]; a residual rounds s itself first.
fn floors(case: &Case, data: &Data, right: &LayerNormOutput<f64>) -> (f64, f64, f64) {
    let columns = case.columns;
    let weight = if case.weight { largest(&widen(&data.weight)) } else { 1.0 };
    let bias = if case.bias { largest(&widen(&data.bias)) } else { 0.0 };
    let (mut y, mut mean, mut inverse) = (0.0f64, 0.0f64, 0.0f64);
    for (r, s) in right.sum.chunks_exact(columns).enumerate() {
        let deviation = right.inverse_deviation[r];
        let first = if case.rms { 0.0 } else { s[0] };
        let shifted: Vec<f64> = s.iter().map(|v| (v - first).abs()).collect();
        let average = shifted.iter().sum::<f64>() / columns as f64;
        let rounded = if case.residual { largest(s) } else { 0.0 };
        // 2⁻²² of the terms; inverseSqrt 2 ULP, and 2⁻²² of the variance's terms, half of which arrive
        let normed = (largest(&shifted) + average) * deviation;
        y = y.max(2.0 * EPS * ((normed + rounded * deviation) * weight + bias) + 3.0 * EPS * normed * weight);
        mean = mean.max(2.0 * EPS * (s[0].abs() + average + rounded));
        inverse = inverse.max(deviation * (3.0 * EPS + 2.0 * EPS * rounded * deviation));
    }
    (y, mean, inverse)
}

/// Runs a case on each of `on` against one twin, and notes the variants that ran.
fn check<'a>(on: impl IntoIterator<Item = &'a On>, seed: &str, number: u64, case: Case, reached: &mut BTreeSet<String>) {
    let data = data(&case, seed, number);
    let (found, right) = (twin::<f32>(&case, &data), twin::<f64>(&case, &data));
    let (y, mean, inverse) = floors(&case, &data, &right);
    for on in on {
        let done = run(on, &case, &data);
        let name = format!("{seed} {number}: {case:?} as {:?}", done.variants);
        let floor = y + storage_floor(case.element, &right.y);
        assert_close(&name, &done.f32("y"), &found.y, &right.y, floor);
        if case.sum {
            let terms: Vec<f64> =
                data.x.iter().zip(&data.residual).map(|(x, r)| f64::from(x.abs()) + f64::from(r.abs())).collect();
            let floor = common::sum_floor(&terms) + storage_floor(case.element, &right.sum);
            assert_close(&format!("sum of {name}"), &done.f32("sum"), &found.sum, &right.sum, floor);
        }
        if case.statistics {
            let of = |column: usize| done.f32("statistics").chunks_exact(2).map(|s| s[column]).collect::<Vec<_>>();
            assert_close(&format!("mean of {name}"), &of(0), &found.mean, &right.mean, mean);
            let name = format!("inverse deviation of {name}");
            assert_close(&name, &of(1), &found.inverse_deviation, &right.inverse_deviation, inverse);
        }
        done.note(reached);
    }
}

/// Rule: every combination of operands and outputs is right, in rows that fit the registers and in longer ones, in every
/// compiled form.
#[test]
fn every_operand_and_output_in_every_form() {
    let (forms, mut reached) = (stored_forms("layer_norm", Element::F32), BTreeSet::new());
    for bits in 0..32u64 {
        for (i, columns) in [36, 23, 1028, 1029, 4100].into_iter().enumerate() {
            let has = |bit: u64| bits >> bit & 1 == 1;
            let place = [Place::DENSE, Place::ODD, Place::STRIDED, Place::OFF_BY_ONE, Place::DENSE][i];
            let rows = if columns > 1000 { 3 } else { 11 };
            let case = Case { residual: has(0), weight: has(1), bias: has(2), sum: has(3), statistics: has(4), ..PLAIN };
            let on = some(&forms, false, bits as usize + i);
            check(on, "operands", bits, Case { rows, columns, place, ..case }, &mut reached);
        }
    }
    assert_all_variants("layer_norm", &reached);
}

/// Rule: the same stored as f16, in both of its forms: sums and statistics are f32, and only results are rounded.
#[test]
fn f16_in_every_form() {
    let (forms, mut reached) = (stored_forms("layer_norm", Element::F16), BTreeSet::new());
    for bits in 0..32u64 {
        for (i, columns) in [36, 22, 1028, 4098, 4100].into_iter().enumerate() {
            let has = |bit: u64| bits >> bit & 1 == 1;
            let place = [Place::DENSE, Place::EVEN, Place::STRIDED, Place::EVEN, Place::DENSE][i];
            let rows = if columns > 1000 { 2 } else { 9 };
            let case = Case { residual: has(0), weight: has(1), bias: has(2), sum: has(3), statistics: has(4), ..PLAIN };
            let case = Case { rows, columns, place, mean: [0.0, 30.0][i % 2], element: Element::F16, ..case };
            check(some(&forms, false, bits as usize + i), "f16", bits, case, &mut reached);
        }
    }
    assert_all_stored_variants("layer_norm", Element::F16, &reached);
}

/// Rule: the edges of rows, groups of rows and columns are right, and those of what a form keeps in registers: 128, 1024 and
/// 4096 columns.
#[test]
fn edges_of_rows_and_columns() {
    let (forms, mut reached) = (stored_forms("layer_norm", Element::F32), BTreeSet::new());
    let columns =
        [1, 2, 3, 4, 5, 31, 32, 33, 67, 97, 124, 127, 128, 129, 132, 1020, 1023, 1024, 1025, 1028, 1151, 4092, 4096, 4100];
    for rows in [1, 3, 4, 5, 17, 61] {
        for (i, columns) in columns.into_iter().enumerate().filter(|(_, columns)| rows <= 5 || *columns < 200) {
            let place = if rows == 4 { Place::DENSE } else { Place::ALL[(rows + i) % 4] };
            let case = Case { rows, columns, place, weight: true, bias: true, ..PLAIN };
            check(some(&forms, rows == 3, rows + i), "edges", i as u64, case, &mut reached);
        }
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    let forms = stored_forms("layer_norm", Element::F32);
    for number in 0..40 {
        let mut rng = seeded("norm shapes", number);
        let long = number % 5 == 0;
        let case = Case {
            rows: if long { rng.random_range(1..6) } else { rng.random_range(1..100) },
            columns: if long { rng.random_range(1025..3000) } else { rng.random_range(2..400) },
            residual: rng.random(),
            weight: rng.random(),
            bias: rng.random(),
            sum: rng.random(),
            statistics: rng.random(),
            eps: pick(&mut rng, &[1e-5, 1e-6, 1e-12, 0.1]),
            mean: pick(&mut rng, &[0.0, -3.0, 100.0]),
            place: pick(&mut rng, &Place::ALL),
            element: Element::F32,
            rms: rng.random(),
        };
        check([on(), &forms[number as usize % forms.len()]], "random", number, case, &mut BTreeSet::new());
    }
}

/// Rule: a large mean costs no digits: the sums run over s − s[0], in two passes.
#[test]
fn a_large_mean_costs_nothing() {
    for (number, mean) in [1e3, -1e3, 1e4, 1e5].into_iter().enumerate() {
        for columns in [64, 61, 768, 1536] {
            for eps in [1e-5, 1e-12] {
                let case = Case { rows: 5, columns, mean, eps, statistics: true, sum: true, ..PLAIN };
                check([on()], "mean", number as u64, case, &mut BTreeSet::new());
                // The exact value, apart from what a twin of the same order of operations would share.
                let data = data(&case, "mean", number as u64);
                let x = widen(&data.x);
                for (row, found) in x.chunks_exact(columns).zip(run(on(), &case, &data).f32("y").chunks_exact(columns)) {
                    let mean = row.iter().sum::<f64>() / columns as f64;
                    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / columns as f64;
                    for (x, y) in row.iter().zip(found) {
                        let right = (x - mean) / (variance + f64::from(eps)).sqrt();
                        assert!((f64::from(*y) - right).abs() <= 2e-6, "mean {mean}: {y} where {right} is right");
                    }
                }
            }
        }
    }
}

/// Rule: a first element far from the others costs no digits, near the mean either: an element of y is off by a few roundings, to
/// nearest, of its own.
#[test]
fn a_far_first_element_costs_nothing() {
    for (number, on) in stored_forms("layer_norm", Element::F32).iter().enumerate() {
        for columns in [64, 200, 768, 1027, 5000] {
            let case = Case { rows: 6, columns, mean: number as f32 % 3.0, ..PLAIN };
            let mut data = data(&case, "far", number as u64);
            data.x.iter_mut().step_by(columns).for_each(|first| *first = 8.0);
            let right = twin::<f64>(&case, &data);
            for (i, (y, right_y)) in run(on, &case, &data).f32("y").iter().zip(&right.y).enumerate() {
                let error = (f64::from(*y) - right_y).abs();
                let allowed = EPS * (3.0 * right_y.abs() + 0.5 * right.inverse_deviation[i / columns]);
                assert!(error <= allowed, "{case:?}, {i}: {y} where {right_y} is right");
            }
        }
    }
}

/// Rule: roots are right to about a unit in the last place, on adapters too that are two units off, as WGSL allows; those are this one
/// with other shaders, in processes of their own.
#[test]
fn roots_are_right_to_the_last_place() {
    // Rows of ±a, whose variance a² is exact.
    let case = Case { rows: 320, columns: 4, eps: 0.0, statistics: true, ..PLAIN };
    let mut data = data(&case, "roots", 0);
    let a = |row: usize| (257 + 12 * row) as f32 / 64.0;
    data.x.chunks_exact_mut(4).enumerate().for_each(|(row, x)| x.copy_from_slice(&[-a(row), a(row), -a(row), a(row)]));
    for (row, statistics) in run(on(), &case, &data).f32("statistics").chunks_exact(2).enumerate() {
        let right = 1.0 / f64::from(a(row));
        let unit = EPS * 2f64.powf(right.log2().floor());
        let error = (f64::from(statistics[1]) - right).abs() / unit;
        assert!(error <= 1.3, "1 / {}: {} is {error} units off", a(row), statistics[1]);
    }
    if std::env::var_os("TILEFORMER_SHADERS").is_some() {
        return;
    }
    const ROOT: &str = include_str!("../shaders/shared/root.wgsl");
    for (number, factor) in ["0.9999998", "1.0000002"].into_iter().enumerate() {
        let off = ROOT.replace("inverseSqrt(v)", &format!("inverseSqrt(v) * {factor}"));
        assert_ne!(off, ROOT);
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("roots-{number}"));
        std::fs::create_dir_all(dir.join("shared")).unwrap();
        std::fs::write(dir.join("shared/root.wgsl"), off).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "roots_are_right_to_the_last_place"]).env("TILEFORMER_SHADERS", &dir);
        let output = child.output().unwrap();
        assert!(output.status.success(), "roots times {factor}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Rule: eps stands inside the root, whatever its size.
#[test]
fn eps_stands_inside_the_root() {
    for (number, eps) in [0.0, 1e-12, 1e-5, 0.1, 10.0].into_iter().enumerate() {
        for columns in [4, 37, 1300] {
            let case = Case { rows: 9, columns, eps, statistics: true, weight: true, ..PLAIN };
            check([on()], "eps", number as u64, case, &mut BTreeSet::new());
        }
    }
}

/// Rule: a row without variance gives the bias, exactly, with an eps of 1e-12 and with one of 0; so does a single column.
#[test]
fn rows_without_variance_give_the_bias() {
    let forms = stored_forms("layer_norm", Element::F32);
    for columns in [1, 4, 37, 1027, 1536, 4200] {
        for eps in [0.0, 1e-12, 1e-5] {
            for (number, value) in [0.0f32, 0.1, -1000.3, 1e30, 3.4e-30].into_iter().enumerate() {
                let case = Case {
                    rows: 10,
                    columns,
                    weight: true,
                    bias: true,
                    statistics: true,
                    eps,
                    place: Place::ALL[number % 4],
                    ..PLAIN
                };
                let mut data = data(&case, "flat", number as u64);
                data.x.fill(value);
                let done = run(&forms[(columns + number) % forms.len()], &case, &data);
                for row in done.f32("y").chunks_exact(columns) {
                    assert_eq!(row, data.bias, "{case:?}, rows of {value}");
                }
                for statistics in done.f32("statistics").chunks_exact(2) {
                    assert_eq!(statistics[0], value, "{case:?}: the mean");
                    let right = if eps > 0.0 { 1.0 / f64::from(eps).sqrt() } else { 0.0 };
                    let error = (f64::from(statistics[1]) - right).abs();
                    assert!(error <= 4.0 * EPS * right, "{case:?}: {} where {right} is right", statistics[1]);
                }
            }
        }
    }
}

/// Rule: RMS norm is layer norm without the mean, in every form and with every option.
#[test]
fn rms_norm_with_every_option() {
    let mut reached = BTreeSet::new();
    for (number, columns) in [1, 3, 4, 5, 31, 32, 33, 97, 128, 768, 1021, 1024, 1028, 4099, 4100].into_iter().enumerate() {
        for (i, place) in Place::ALL.into_iter().enumerate() {
            let has = |bit: usize| (number * 5 + i * 3) >> bit & 1 == 1;
            let rows = [1, 2, 5, 9][i];
            let options = Case { residual: has(0), weight: has(1), bias: has(2), sum: has(3), statistics: has(4), ..PLAIN };
            let case = Case { rows, columns, place, mean: 0.5, rms: true, ..options };
            check([on()], "rms", (number * 4 + i) as u64, case, &mut reached);
        }
        let case =
            Case { rows: 3, columns: columns.next_multiple_of(2), weight: true, element: Element::F16, rms: true, ..PLAIN };
        check([on(), on_core()], "rms f16", number as u64, case, &mut reached);
    }
}
