// layer_norm with x + residual, and the mean and the inverse deviation of each row, as outputs: either or both.

@group(1) @binding(3) var<storage, read_write> sum_out: array<Storage>;        // (rows, columns)
@group(1) @binding(4) var<storage, read_write> statistics: array<f32>;         // (rows, 2)

// The sum that was normalised, for the residual of a pre-norm layer.
fn store_sum(row: u32, c: u32, v: vec4<f32>) {
  if params.sum == 0u { return; }
  let at = params.sum_offset + row * params.sum_row + c;
  for (var l = 0u; l < 4u / LANES; l++) {
    if c + l * LANES < params.columns { sum_out[at / LANES + l] = pick(v, l); }
  }
}

fn store_statistics(row: u32, mean: f32, inverse_deviation: f32) {
  if params.statistics == 0u { return; }
  let at = params.statistics_offset + row * params.statistics_row;
  statistics[at] = mean;
  statistics[at + 1u] = inverse_deviation;
}
