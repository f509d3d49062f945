//! The CPU twins of the kernels and layers.
