// layer_norm with the mean and the inverse deviation of each row as an output.

@group(1) @binding(4) var<storage, read_write> statistics: array<f32>;         // (rows, 2)

fn store_statistics(row: u32, mean: f32, inverse_deviation: f32) {
  let at = params.statistics_offset + row * params.statistics_row;
  statistics[at] = mean;
  statistics[at + 1u] = inverse_deviation;
}
