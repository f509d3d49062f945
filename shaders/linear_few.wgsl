// linear_few: y = activation(norm(x) · Wᵀ + bias) + residual for one to a few rows
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), norm_weight (d_in), norm_bias (d_in), residual (rows, d_out),
//   sequences (B, 8) -> y (rows, d_out), rows that no sequence has left as they are
//
// Workgroups, loops, parameters and bindings: shared/few.wgsl.

@group(1) @binding(1) var<storage, read> residual: array<Storage>;   // (rows, d_out)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;    // (rows, d_out)

const PASSES: u32 = 1u;

fn finish(r: u32, m: u32, owner: u32, n: u32, sum: vec4<f32>) {
  let row = m + r;
  var added = vec4<f32>(0.0);
  if params.residual != 0u {
    let at = params.residual_offset + row * params.residual_row + n;
    added = group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
  }
  let v = biased(sum, n, added);
  let at = params.y_offset + row * params.y_row + n;
  for (var c = 0u; c < 4u / LANES; c++) {
    if n + c * LANES < params.d_out { y[at / LANES + c] = pick(v, c); }
  }
}

fn conclude(m: u32, rows: u32, first: u32, thread: u32) {}
