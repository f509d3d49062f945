//! The runner: what this program, its test and the page for browsers share.

pub(crate) mod attention;
pub(crate) mod case;
pub(crate) mod gpu;
pub(crate) mod greedy;
pub(crate) mod host;
pub(crate) mod huggingface;
pub(crate) mod huggingface_causal;
pub(crate) mod huggingface_seq2seq;
pub(crate) mod judge;
pub(crate) mod kernels;
pub(crate) mod onnx;
pub(crate) mod onnx_attention;
pub(crate) mod onnx_norm;
pub(crate) mod pytorch;
pub(crate) mod pytorch_attention;
pub(crate) mod pytorch_layers;
pub(crate) mod suite;
