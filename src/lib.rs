//! Transformer encoder and decoder layers as hand-written WGSL compute kernels, recorded into your own `wgpu` command encoder.

pub mod error;
pub mod reference;
pub mod shape;
pub mod spec;
pub mod tensor;

pub use error::{Error, Result};
pub use shape::Layout;
pub use spec::{Activation, AttentionOptions, BatchShape, Mask, Sequence, Sequences, SinusoidOrder};
pub use tensor::{Element, TensorView, Weight};
pub use wgpu;
