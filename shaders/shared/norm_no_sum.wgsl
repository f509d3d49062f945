// layer_norm without the output `sum_out`.
fn store_sum(row: u32, c: u32, v: vec4<f32>) {}
