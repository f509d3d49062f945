//! The tolerance, derived and not guessed: max|gpu − f64| ≤ 2 · max|f32 twin − f64| + floor, a whole tensor at a time.
//!
//! The f32 twin says what rounding costs a plain loop, and the factor 2 leaves a kernel its own order of summation. The floor,
//! which every test computes from the f64 twin, is for what a lucky f32 twin does not show: 2⁻²² · max Σ|terms|, and the error
//! that WGSL allows `exp` (3 + 2|x| ULP), `inverseSqrt` (2 ULP) and division (2.5 ULP).

use tileformer::reference::Real;
use tileformer::{Activation, Element};

/// One ULP of a number near 1.
pub const EPS: f64 = 1.0 / (1u64 << 23) as f64;

/// What the kernels' tanh may be off by, an error of its argument included.
pub const TANH: f64 = 8.0 * EPS;

/// The same numbers in f64.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// 2⁻²² · the largest of `terms`, the sums of the absolute values of what each element adds up.
pub fn sum_floor(terms: &[f64]) -> f64 {
    2.0 * EPS * largest(terms)
}

/// The largest absolute value, NaN if there is one.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| if v.is_nan() || m.is_nan() { f64::NAN } else { v.abs().max(m) })
}

/// The most error that WGSL's functions may leave in activation(x) for any of `x`.
pub fn activation_floor(x: &[f64], kind: Activation) -> f64 {
    let floor = |x: f64| match kind {
        Activation::Identity | Activation::Relu => 0.0,
        // the kernel's erf: 1.5e-7, and 1 − exp(q) with q = ln(1 − erf)
        Activation::Gelu => {
            let rest = (1.0 - Real::erf(x.abs() / std::f64::consts::SQRT_2)).max(1e-16);
            x.abs() / 2.0 * (1.5e-7 + rest * (3.0 + 2.0 * rest.ln().abs()) * EPS)
        }
        // x times the sigmoid of v, which itself is off by a few roundings
        Activation::GeluTanh => {
            let v = 1.5957691 * (x + 0.044715 * x.powi(3));
            let sigmoid = 1.0 / (1.0 + (-v).exp());
            x.abs() * sigmoid * ((1.0 - sigmoid) * (3.0 + 6.0 * v.abs()) + 2.5) * EPS
        }
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            x.abs() * sigmoid * ((1.0 - sigmoid) * (3.0 + 2.0 * x.abs()) + 2.5) * EPS
        }
        // the kernel's tanh: a series, and 1 − 2 / (1 + exp(2 |x|))
        Activation::Tanh if x.abs() < 0.25 => 2.0 * x.abs() * EPS,
        Activation::Tanh => {
            let rest = 2.0 / (1.0 + (2.0 * x.abs().min(15.0)).exp());
            (rest * (3.0 + 4.0 * x.abs().min(15.0) + 2.5) + 1.0) * EPS
        }
        other => panic!("no allowance is stated for {other:?}"),
    };
    largest(&x.iter().map(|&x| floor(x)).collect::<Vec<_>>())
}

/// Fails unless `gpu` is as near to the f64 twin as the rule asks. Where the f64 twin is infinite, `gpu` must be the same
/// infinity; NaN fails.
pub fn assert_close(name: &str, gpu: &[f32], twin32: &[f32], twin64: &[f64], floor: f64) {
    assert_eq!((gpu.len(), twin32.len()), (twin64.len(), twin64.len()), "{name}: lengths");
    let (mut own, mut worst, mut at) = (0.0f64, 0.0f64, 0);
    for (i, &right) in twin64.iter().enumerate() {
        if right.is_infinite() {
            assert!(f64::from(gpu[i]) == right, "{name}[{i}]: {} where {right} is right", gpu[i]);
            continue;
        }
        let twin = (f64::from(twin32[i]) - right).abs();
        assert!(twin.is_finite(), "{name}[{i}]: the f32 twin gives {}, the f64 twin {right}", twin32[i]);
        own = own.max(twin);
        let error = (f64::from(gpu[i]) - right).abs();
        assert!(error.is_finite(), "{name}[{i}]: {} where {right} is right", gpu[i]);
        if error > worst {
            (worst, at) = (error, i);
        }
    }
    let tolerance = 2.0 * own + floor;
    assert!(tolerance.is_finite(), "{name}: floor {floor}");
    assert!(
        worst <= tolerance,
        "{name}: error {worst:.3e} > {tolerance:.3e} = 2 · {own:.3e} of the f32 twin + floor {floor:.3e}\n  \
         at [{at}] of {}: {} where {} is right (f32 twin {})",
        gpu.len(),
        gpu[at],
        twin64[at],
        twin32[at]
    );
}

/// What a float becomes when it is stored as `element`.
pub fn stored(element: Element, x: &[f32]) -> Vec<f32> {
    match element {
        Element::F16 => x.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect(),
        _ => x.to_vec(),
    }
}

/// What rounding to `element` may add to the error of a result: half an ULP of the largest, or of the smallest number that
/// f16 has.
pub fn storage_floor(element: Element, result: &[f64]) -> f64 {
    match element {
        Element::F16 => (largest(result) / 2048.0).max(1.0 / (1u64 << 25) as f64),
        _ => 0.0,
    }
}
