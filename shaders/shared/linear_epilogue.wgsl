// What happens to the sums of linear.

@group(0) @binding(2) var<storage, read> bias: array<Storage>;       // (d_out)
@group(1) @binding(1) var<storage, read> residual: array<Storage>;   // (rows, d_out)

// The bias of columns n .. n + 3, 0 where there is none.
fn bias4(n: u32) -> vec4<f32> {
  if params.bias == 0u { return vec4<f32>(0.0); }
  let at = params.bias_offset + n;
  return group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
}

// The same of the residual's row m.
fn residual4(m: u32, n: u32) -> vec4<f32> {
  if params.residual == 0u { return vec4<f32>(0.0); }
  let at = params.residual_offset + m * params.residual_row + n;
  return group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
}

// activation(sum + bias) + residual for columns n .. n + 3 of row m.
fn epilogue(sum: vec4<f32>, m: u32, n: u32) -> vec4<f32> {
  return activate_onto(sum + bias4(n), params.activation, residual4(m, n));
}
