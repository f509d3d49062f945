// What a projection does with its sums: bias, activation, residual, store. Binds as linear.wgsl does.

// activation(sum + bias) + residual for columns n .. n + 3 of row m.
fn epilogue(sum: vec4<f32>, m: u32, n: u32) -> vec4<f32> {
  var v = sum;
  if params.bias != 0u {
    let at = params.bias_offset + n;
    v += group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
  }
  v = activate(v, params.activation);
  if params.residual != 0u {
    let at = params.residual_offset + m * params.residual_row + n;
    v += group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
  }
  return v;
}

// Columns n .. n + 3 of row m, as many of them as y has.
fn store(m: u32, n: u32, v: vec4<f32>) {
  if m >= params.rows || n >= params.d_out { return; }
  let at = params.y_offset + m * params.y_row + n;
  for (var c = 0u; c < 4u / LANES; c++) {
    if n + c < params.d_out { y[at / LANES + c] = pick(v, c); }
  }
}
