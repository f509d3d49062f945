#![doc = include_str!("../README.md")]

#[cfg(feature = "convenience")]
pub mod convenience;
pub mod error;
pub mod kernels;
pub mod layers;
mod pipeline;
mod plan;
mod program;
pub mod reference;
pub mod shape;
pub mod spec;
pub mod tensor;
mod tuning;

pub use error::{Error, Result};
pub use pipeline::{Kernels, Options, Progress, Variant, WarmUp, wanted_features, wanted_limits};
pub use plan::{Bindings, Plan, Scratch, Timing};
pub use program::{Builder, Dispatch, Program, Role, Tensor};
pub use shape::Layout;
pub use spec::{Activation, AttentionOptions, BatchShape, Mask, Sequence, Sequences, SinusoidOrder};
pub use tensor::{Element, TensorView, Weight};
pub use wgpu;
