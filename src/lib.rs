#![doc = include_str!("../README.md")]

mod bindings;
mod builder;
mod classes;
#[cfg(feature = "convenience")]
pub mod convenience;
pub mod error;
pub mod kernels;
pub mod layers;
#[cfg(feature = "safetensors")]
pub mod models;
mod options;
mod overlap;
mod pipeline;
mod plan;
mod program;
pub mod reference;
mod scratch;
pub mod shape;
pub mod spec;
mod storage;
pub mod tensor;
mod timing;
mod tuned;
mod tuning;
mod unroll;
mod variant;
mod warm_up;

pub use bindings::Bindings;
pub use builder::Builder;
pub use error::{Error, Result};
pub use options::{Options, wanted_experimental_features, wanted_features, wanted_limits};
pub use pipeline::Kernels;
pub use plan::Plan;
pub use program::{Dispatch, Program, Role, Tensor};
pub use scratch::Scratch;
pub use shape::Layout;
pub use spec::sampling::Sampling;
pub use spec::{Activation, AttentionOptions, BatchShape, Mask, Sequence, Sequences, SinusoidOrder};
pub use tensor::{Element, TensorView, Weight};
pub use timing::Timing;
pub use tuned::Tuned;
pub use variant::Variant;
pub use warm_up::{Progress, WarmUp};
pub use wgpu;
