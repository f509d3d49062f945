//! What once was wrong, each with the rule that it broke.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, Run, on};
use tileformer::kernels::{ActivationRows, AttentionScores, Visibility};
use tileformer::{Activation, AttentionOptions, Builder, Element, Layout};

/// Rule: silu goes to zero on the left, for the largest numbers too.
#[test]
fn silu_of_huge_negative_numbers() {
    let x = [-88.0, -1e10, -1e30, -1e37, f32::MIN];
    for place in Place::ALL {
        let mut run = Run::new(on(), "silu", place);
        let (xt, y) = (run.input("x", &[1, x.len()], &x), run.output("y", &[1, x.len()]));
        run.builder.activation("silu", &ActivationRows { x: xt, activation: Activation::Silu, y }).unwrap();
        for (x, y) in x.iter().zip(run.go().f32("y")) {
            assert!(y.abs() <= 2e-36, "silu({x:e}) = {y:e}");
        }
    }
}

/// Rule: a cap far above a score leaves the score as it is, and scores have the digits of f32 at any cap.
#[test]
fn large_softcaps_leave_scores_alone() {
    let q = [0.0f32, 1e-3, 1.0, -5.0, 12.4, 12.6, 100.0];
    for cap in [f32::MIN_POSITIVE, 1.0, 50.0, 1e4, 1e6, 1e30, f32::MAX] {
        let options = AttentionOptions { scale: Some(1.0), softcap: Some(cap), ..AttentionOptions::default() };
        let mut run = Run::new(on(), "softcap", Place::DENSE);
        let (qt, k) = (run.input("q", &[q.len(), 1, 1], &q), run.input("k", &[1, 1, 1], &[1.0]));
        let scores = run.output("scores", &[1, 1, q.len(), 1]);
        let args = AttentionScores { q: qt, k, visibility: Visibility::new(options), scores };
        run.builder.attention_scores("scores", &args).unwrap();
        for (x, found) in q.iter().zip(run.go().f32("scores")) {
            let right = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
            let error = (f64::from(found) - right).abs();
            assert!(error <= 2e-6 * right.abs(), "{x} capped at {cap:e}: {found:e} where {right:e} is right");
        }
    }
}

/// Rule: a program writes outputs and scratch, never what the caller lends it, and reads no scratch that nothing has written.
#[test]
fn roles_are_kept() {
    let layout = Layout::contiguous(&[2, 4]).unwrap();
    for (what, expected) in
        [("input", "as relu writes it"), ("weight", "as relu writes it"), ("scratch", "before relu that writes")]
    {
        let mut b = Builder::new(&on().kernels, "roles");
        let [x, y] = [b.input("x", Element::F32, layout), b.output("y", Element::F32, layout)].map(Result::unwrap);
        let (x, y) = match what {
            "input" => (x, b.input("lent", Element::F32, layout).unwrap()),
            "weight" => (x, b.weight("lent", layout).unwrap()),
            _ => (b.scratch("lent", Element::F32, layout).unwrap(), y),
        };
        let relu = ActivationRows { x, activation: Activation::Relu, y };
        let error = b.activation("relu", &relu).expect_err(what).to_string();
        assert!(error.contains("lent") && error.contains(expected), "{what}: {error}");
    }
}
