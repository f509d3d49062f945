// Where the results of linear go.

@group(1) @binding(2) var<storage, read_write> y: array<Storage>;    // (rows, d_out)

// Columns n .. n + 3 of row m, as many of them as y has.
fn store(m: u32, n: u32, v: vec4<f32>) {
  if m >= params.rows || n >= params.d_out { return; }
  let at = params.y_offset + m * params.y_row + n;
  for (var c = 0u; c < 4u / LANES; c++) {
    if n + c * LANES < params.d_out { y[at / LANES + c] = pick(v, c); }
  }
}
