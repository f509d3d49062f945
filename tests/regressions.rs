//! What once was wrong, each with the rule that it broke.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, Run, on};
use tileformer::Activation;
use tileformer::kernels::ActivationRows;

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
