// Where the results of linear go that are f32 whatever the storage: logits. Rows, and the
// binding behind the last one, have room for whole groups of WIDE_LANES.

@group(1) @binding(2) var<storage, read_write> y: array<Wide>;       // (rows, d_out)

// Columns n .. n + 3 of row m, in whole groups.
fn store(m: u32, n: u32, v: vec4<f32>) {
  if m >= params.rows || n >= params.d_out { return; }
  let at = params.y_offset + m * params.y_row + n;
  for (var c = 0u; c < 4u / WIDE_LANES; c++) {
    if n + c * WIDE_LANES < params.d_out { y[at / WIDE_LANES + c] = pick_wide(v, c); }
  }
}
