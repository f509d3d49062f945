//! Elementwise functions: y = activation(x).

use std::f64::consts::{FRAC_2_PI, SQRT_2};

use super::Real;
use crate::spec::Activation;

/// One element. The formulas are those of [`Activation`]; GELU is exact, by the error function.
#[must_use]
pub fn activation<T: Real>(x: T, kind: Activation) -> T {
    let (half, one) = (T::of(0.5), T::one());
    match kind {
        // not max(x, 0), which would drop a NaN
        Activation::Relu if x < T::zero() => T::zero(),
        Activation::Identity | Activation::Relu => x,
        Activation::Gelu => half * x * (one + (x / T::of(SQRT_2)).erf()),
        Activation::GeluTanh => {
            let inner = T::of(FRAC_2_PI.sqrt()) * (x + T::of(0.044_715) * x * x * x);
            half * x * (one + inner.tanh())
        }
        Activation::Silu => x / (one + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

/// Every element of `x`, whatever its shape.
#[must_use]
pub fn activation_rows<T: Real>(x: &[T], kind: Activation) -> Vec<T> {
    x.iter().map(|&x| activation(x, kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn gelu_at_known_values() {
        // x · Φ(x) by tables of the normal distribution
        near(activation(1.0, Activation::Gelu), 0.841_344_746_068_542_9);
        near(activation(-1.0, Activation::Gelu), -0.158_655_253_931_457_05);
        near(activation(2.0, Activation::Gelu), 2.0 * 0.977_249_868_051_820_8);
        near(activation(0.0, Activation::Gelu), 0.0);
    }

    #[test]
    fn gelu_tanh_at_known_values() {
        near(activation(1.0, Activation::GeluTanh), 0.841_191_990_608_276_8);
        near(activation(-1.0, Activation::GeluTanh), -0.158_808_009_391_723_24);
        assert_eq!(activation(-1e20f32, Activation::GeluTanh), 0.0);
        assert_eq!(activation(1e20f32, Activation::GeluTanh), 1e20);
    }

    #[test]
    fn silu_relu_tanh() {
        near(activation(1.0, Activation::Silu), 0.731_058_578_630_004_9);
        assert_eq!(activation(-1000f32, Activation::Silu), 0.0);
        assert_eq!(activation_rows(&[-1.5f32, 0.0, 2.5], Activation::Relu), [0.0, 0.0, 2.5]);
        assert!(activation(f32::NAN, Activation::Relu).is_nan());
        near(activation(0.5, Activation::Tanh), 0.462_117_157_260_009_8);
        assert_eq!(activation(3.5f32, Activation::Identity), 3.5);
    }
}
