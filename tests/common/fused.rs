//! Fused attention of a case, and what the twins of the separate kernels give for it.

use tileformer::kernels::{AttentionWeights, FusedAttention};
use tileformer::reference::{self, Real};
use tileformer::{Element, Tensor};

use super::attention::{Case, Data, assert_scores, softmax_errors};
use super::{Done, EPS, On, Run, assert_close, largest, on, on_invariant, storage_floor, sum_floor};

/// Keys of the smallest tile: a row's maximum may change, and its sum be rescaled, that often.
const TILE: usize = 32;

/// q, k and v of a case, in its place.
fn inputs(run: &mut Run, case: &Case, data: &Data) -> [Tensor; 3] {
    let (n, kv) = (case.n_heads, case.n_kv_heads);
    [
        run.input("q", &[case.shape.q_rows, n, case.head_size], &data.q),
        run.input("k", &[case.shape.k_rows, kv, case.head_size], &data.k),
        run.input("v", &[case.shape.k_rows, kv, case.value_head_size], &data.v),
    ]
}

/// q, k, v and out are stored as `element`.
pub fn run(case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let mut run = Run::stored(on, "fused", case.place, element);
    let [batch, n, t, s] = case.score_sizes();
    let [q, k, v] = inputs(&mut run, case, data);
    let out = run.output("out", &[case.shape.q_rows, n, case.value_head_size]);
    let sums = run.output_as("sums", Element::F32, case.place.layout(&[batch, n, t]));
    let visibility = case.visibility(&mut run);
    let args = FusedAttention {
        q,
        k,
        v,
        sizes: [batch, t, s],
        visibility,
        out,
        log_sum_exp: Some(sums),
        statistics: None,
        cached: false,
    };
    run.builder.attention("attention", &args).unwrap();
    run.go()
}

/// As [`run`], for the attention weights of the second pass.
pub fn run_weights(case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let mut run = Run::stored(on, "fused weights", case.place, element);
    let [batch, n, t, s] = case.score_sizes();
    let [q, k, v] = inputs(&mut run, case, data);
    let out = run.output("out", &[case.shape.q_rows, n, case.value_head_size]);
    let statistics = run.output_as("statistics", Element::F32, case.place.layout(&[2, batch, n, t]));
    let weights = run.output_as("weights", Element::F32, case.place.layout(&[batch, n, t, s]));
    let visibility = case.visibility(&mut run);
    let sizes = [batch, t, s];
    let visible = visibility.clone();
    let args = FusedAttention {
        q,
        k,
        v,
        sizes,
        visibility: visible,
        out,
        log_sum_exp: None,
        statistics: Some(statistics),
        cached: false,
    };
    run.builder.attention("attention", &args).unwrap();
    let args = AttentionWeights { q, k, visibility, statistics, weights };
    run.builder.attention_weights("weights", &args).unwrap();
    run.go()
}

pub fn check_weights(name: &str, case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let done = run_weights(case, on, element, data);
    let (twin32, twin64) = (twin::<f32>(case, data), twin::<f64>(case, data));
    let name = format!("weights of {name}: {:?} of {:?} {:?}", case.options, case.shape, case.place);
    let columns = case.shape.longest_k;
    let errors = softmax_errors(&twin64.probs, &case.score_errors(case.dot_errors(&data.q, &data.k)), columns);
    // Each tile of keys may rescale the sum.
    let floor = largest(&errors) + columns.div_ceil(TILE) as f64 * 4.0 * EPS;
    let found = done.f32("weights");
    assert_close(&name, &found, &twin32.probs, &twin64.probs, floor);
    for (i, (found, score)) in found.iter().zip(&twin64.scores).enumerate() {
        assert!(score.is_finite() || *found == 0.0, "{name}: [{i}] is {found} and its key is hidden");
    }
    done
}

/// What the twins give: scores, their log-sum-exp, weights, out.
pub struct Twin<T> {
    pub scores: Vec<T>,
    pub sums: Vec<T>,
    pub probs: Vec<T>,
    pub out: Vec<T>,
}

pub fn twin<T: Real>(case: &Case, data: &Data) -> Twin<T> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(v)).collect::<Vec<_>>();
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|values| real(values));
    let [batch, n, t, s] = case.score_sizes();
    case.twin::<T, _>(|att| {
        let (out, probs) = reference::attention(att, &q, &k, &v).unwrap();
        let scores = reference::attention_scores(att, &q, &k).unwrap();
        let sums = reference::log_sum_exp(&scores, batch * n * t, s).unwrap();
        Twin { scores, sums, probs, out }
    })
}

pub fn check(name: &str, case: &Case, invariant: bool, data: &Data) -> Done {
    check_stored(name, case, if invariant { on_invariant() } else { on() }, Element::F32, data)
}

pub fn check_stored(name: &str, case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let done = run(case, on, element, data);
    let (twin32, twin64) = (twin::<f32>(case, data), twin::<f64>(case, data));
    let name = format!("{name}: {:?} of {:?} {:?}", case.options, case.shape, case.place);
    let columns = case.shape.longest_k;

    // A score that is off moves its weight, and the sum by as much; so does each rescaling of the running sum.
    let errors = case.score_errors(case.dot_errors(&data.q, &data.k));
    let steps = columns.div_ceil(TILE) as f64 * 4.0 * EPS;
    let sums = done.tensor("sums").bits().into_iter().map(f32::from_bits).collect::<Vec<_>>();
    let magnitude = largest(&twin64.sums.iter().map(|s| if s.abs() < 1e30 { *s } else { 0.0 }).collect::<Vec<_>>());
    let distance =
        magnitude + largest(&twin64.scores.iter().map(|s| if s.abs() < 1e30 { *s } else { 0.0 }).collect::<Vec<_>>());
    let floor = largest(&errors) + steps + (2.0 * magnitude + 3.0 + 2.0 * (columns as f64).ln().min(distance)) * EPS;
    assert_scores(&format!("log_sum_exp of {name}"), &sums, &twin32.sums, &twin64.sums, floor);

    let errors = softmax_errors(&twin64.probs, &errors, columns);
    let width = case.n_heads * case.value_head_size;
    let out = done.tensor("out").f32_where(|i| case.owns_query(i / width));
    let v: Vec<f64> = data.v.iter().map(|v| f64::from(v.abs())).collect();
    let weigh = |probs: &[f64]| case.twin::<f64, _>(|att| reference::attention_values(att, probs, &v).unwrap());
    let weights = weigh(&twin64.probs);
    let floor =
        largest(&weigh(&errors)) + sum_floor(&weights) + steps * largest(&weights) + storage_floor(element, &twin64.out);
    assert_close(&format!("out of {name}"), &out, &twin32.out, &twin64.out, floor);
    for (i, weight) in weights.into_iter().enumerate() {
        assert!(weight > 0.0 || out[i] == 0.0, "out of {name}: [{i}] is {} and all its keys are hidden", out[i]);
    }
    done
}
