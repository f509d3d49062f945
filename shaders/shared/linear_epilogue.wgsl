// What happens to the sums of linear.

@group(0) @binding(2) var<storage, read> bias: array<Storage>;       // (d_out)
@group(1) @binding(1) var<storage, read> residual: array<Storage>;   // (rows, d_out)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;    // (rows, d_out)

// activation(sum + bias) + residual for columns n .. n + 3 of row m.
fn epilogue(sum: vec4<f32>, m: u32, n: u32) -> vec4<f32> {
  var v = sum;
  if params.bias != 0u {
    let at = params.bias_offset + n;
    v += group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
  }
  var added = vec4<f32>(0.0);
  if params.residual != 0u {
    let at = params.residual_offset + m * params.residual_row + n;
    added = group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
  }
  return activate_onto(v, params.activation, added);
}

// Columns n .. n + 3 of row m, as many of them as y has.
fn store(m: u32, n: u32, v: vec4<f32>) {
  if m >= params.rows || n >= params.d_out { return; }
  let at = params.y_offset + m * params.y_row + n;
  for (var c = 0u; c < 4u / LANES; c++) {
    if n + c * LANES < params.d_out { y[at / LANES + c] = pick(v, c); }
  }
}
