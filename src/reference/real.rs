//! The numbers that the reference computes with.

use std::fmt::Debug;

use num_traits::{Float, NumAssign};

/// `f32` or `f64`: a float that also has an error function.
pub trait Real: Float + NumAssign + Default + Debug + Send + Sync + 'static {
    /// `value`, rounded to this type once.
    fn of(value: impl Into<f64>) -> Self;

    /// The same number as `f64`.
    fn widen(self) -> f64;

    /// erf(x) = 2/√π · ∫₀ˣ e^(−t²) dt, to within a unit in the last place of this type.
    #[must_use]
    fn erf(self) -> Self;
}

impl Real for f32 {
    fn of(value: impl Into<f64>) -> Self {
        value.into() as Self
    }

    fn widen(self) -> f64 {
        self.into()
    }

    fn erf(self) -> Self {
        libm::erff(self)
    }
}

impl Real for f64 {
    fn of(value: impl Into<f64>) -> Self {
        value.into()
    }

    fn widen(self) -> f64 {
        self
    }

    fn erf(self) -> Self {
        libm::erf(self)
    }
}
