//! Models as they are published: configuration, names and wiring, above [`crate::layers`].
//!
//! A [`Checkpoint`] is a `config.json` with safetensors files. A model reads its configuration and gives what [`crate::layers`] needs, and
//! a [`WeightMap`]: for each weight of a program, which tensors of the checkpoint it comes from. [`Gpu::upload_checkpoint`] puts those
//! on the device, piece by piece, without a second copy of the model in memory; [`WeightMap::host`] reads them for the CPU
//! reference.
//!
//! [`Gpu::upload_checkpoint`]: crate::convenience::Gpu::upload_checkpoint

pub mod bart;
pub mod bert;
pub mod causal;
mod checkpoint;
mod config;
mod convert;
pub mod gpt2;
mod header;
pub mod llama;
pub mod marian;
pub mod seq2seq;
mod source;
pub mod t5;
mod weight_map;
mod wiring;

pub use checkpoint::Checkpoint;
pub use config::Config;
pub use source::{Resolved, Source};
pub use weight_map::{HostWeights, WeightMap};
