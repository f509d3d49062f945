//! Projection: y = activation(x·Wᵀ + b) + residual.

use super::{Real, activation, count, expect_len};
use crate::error::Result;
use crate::shape::nonzero;
use crate::spec::Activation;

/// A projection's operands.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a, T> {
    /// Input (rows, d_in).
    pub x: &'a [T],
    /// Weight (d_out, d_in), one row an output column.
    pub weight: &'a [T],
    /// Bias (d_out).
    pub bias: Option<&'a [T]>,
    /// Added behind the activation (rows, d_out).
    pub residual: Option<&'a [T]>,
    /// Applied to x·Wᵀ + b.
    pub activation: Activation,
    /// Rows of input and output.
    pub rows: usize,
    /// Columns of the input.
    pub d_in: usize,
    /// Columns of the output.
    pub d_out: usize,
}

/// y (rows, d_out): `y[r, o] = activation(Σ_c x[r, c] · weight[o, c] + bias[o]) + residual[r, o]`.
///
/// # Errors
/// [`crate::Error::Shape`] for a slice of another length, [`crate::Error::Option`] for a size of 0.
pub fn linear<T: Real>(p: &Linear<'_, T>) -> Result<Vec<T>> {
    for (name, size) in [("rows", p.rows), ("d_in", p.d_in), ("d_out", p.d_out)] {
        nonzero(name, size)?;
    }
    expect_len("x", &[p.rows, p.d_in], p.x.len())?;
    expect_len("weight", &[p.d_out, p.d_in], p.weight.len())?;
    if let Some(bias) = p.bias {
        expect_len("bias", &[p.d_out], bias.len())?;
    }
    if let Some(residual) = p.residual {
        expect_len("residual", &[p.rows, p.d_out], residual.len())?;
    }
    let mut y = Vec::with_capacity(count("y", &[p.rows, p.d_out])?);
    for (r, x) in p.x.chunks_exact(p.d_in).enumerate() {
        for (o, weight) in p.weight.chunks_exact(p.d_in).enumerate() {
            let mut sum = dot(x, weight);
            if let Some(bias) = p.bias {
                sum += bias[o];
            }
            sum = activation(sum, p.activation);
            if let Some(residual) = p.residual {
                sum += residual[r * p.d_out + o];
            }
            y.push(sum);
        }
    }
    Ok(y)
}

/// Σ a[c] · b[c], one term after another.
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sum = T::zero();
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_by_two() -> Linear<'static, f32> {
        Linear {
            x: &[1.0, 2.0, 3.0, 4.0],
            weight: &[1.0, -1.0, 0.5, 2.0],
            bias: None,
            residual: None,
            activation: Activation::Identity,
            rows: 2,
            d_in: 2,
            d_out: 2,
        }
    }

    #[test]
    fn bias_then_activation_then_residual() -> Result<()> {
        let plain = two_by_two();
        assert_eq!(linear(&plain)?, [-1.0, 4.5, -1.0, 9.5]);
        let all = Linear {
            bias: Some(&[0.5, -5.0]),
            activation: Activation::Relu,
            residual: Some(&[10.0, 20.0, 30.0, 40.0]),
            ..plain
        };
        assert_eq!(linear(&all)?, [10.0, 20.0, 30.0, 44.5]);
        Ok(())
    }

    #[test]
    fn names_what_does_not_fit() {
        let short = Linear { bias: Some(&[0.0]), ..two_by_two() };
        let message = linear(&short).map_err(|e| e.to_string());
        assert_eq!(message, Err("bias: expected 2 elements [2], found 1 elements".into()));
        assert!(linear(&Linear { rows: usize::MAX, ..two_by_two() }).is_err());
        assert!(linear(&Linear { d_in: 0, ..two_by_two() }).is_err());
    }
}
