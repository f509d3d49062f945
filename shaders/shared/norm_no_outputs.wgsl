// layer_norm with the output y alone.
fn store_sum(row: u32, c: u32, v: vec4<f32>) {}
fn store_statistics(row: u32, mean: f32, inverse_deviation: f32) {}
