// layer_norm with x + residual as an output.

@group(1) @binding(3) var<storage, read_write> sum_out: array<Storage>;        // (rows, columns)

// The sum that was normalised, for the residual of a pre-norm layer.
fn store_sum(row: u32, c: u32, v: vec4<f32>) {
  let at = params.sum_offset + row * params.sum_row + c;
  for (var l = 0u; l < 4u / LANES; l++) {
    if c + l * LANES < params.columns { sum_out[at / LANES + l] = pick(v, l); }
  }
}
