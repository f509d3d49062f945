// The parameters that all forms of linear have in common.

struct Params {
  rows: u32,
  d_in: u32,
  d_out: u32,
  split: u32,          // how many k one workgroup takes, where several share them
  splits: u32,
  x_row: u32,          // strides
  weight_row: u32,
  residual_row: u32,
  y_row: u32,
  partial_row: u32,
  activation: u32,
  bias: u32,           // whether bound
  residual: u32,
  x_offset: u32,
  weight_offset: u32,
  bias_offset: u32,
  residual_offset: u32,
  y_offset: u32,
  partial_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
