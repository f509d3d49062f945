// linear_few: y = activation(x · Wᵀ + bias) + residual for one to a few rows
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes ROWS rows × 4 · GROUPS columns of y: K_THREADS threads share four columns, read neighbouring groups of
// each weight row once for all ROWS rows, and their sums meet in workgroup memory (THREADS · ROWS · 16 bytes).
// Loops: k up to d_in. Parameters, bindings and epilogue: shared/linear.wgsl.

const GROUPS: u32 = THREADS / K_THREADS;

var<workgroup> partial: array<vec4<f32>, THREADS * ROWS>;  // [row][thread]

fn x4(m: u32, k: u32) -> vec4<f32> {
  let at = params.x_offset + min(m, params.rows - 1u) * params.x_row + k;
  return keep(group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]), params.d_in - k);
}

fn weight4(n: u32, k: u32) -> vec4<f32> {
  let at = params.weight_offset + min(n, params.d_out - 1u) * params.weight_row + k;
  let four = group4(weight[at / LANES], weight[(at + 1u) / LANES], weight[(at + 2u) / LANES], weight[(at + 3u) / LANES]);
  return keep(four, params.d_in - k);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = workgroup_number(id);
  if tile >= params.tiles_m * params.tiles_n { return; }
  let m0 = tile % params.tiles_m * ROWS;
  let n = (tile / params.tiles_m * GROUPS + thread / K_THREADS) * 4u;

  var sum: array<array<vec4<f32>, 4>, ROWS>;  // [row][column], four partial sums along k
  for (var k = thread % K_THREADS * 4u; k < params.d_in; k += K_THREADS * 4u) {
    let w = array<vec4<f32>, 4>(weight4(n, k), weight4(n + 1u, k), weight4(n + 2u, k), weight4(n + 3u, k));
    for (var r = 0u; r < ROWS; r++) {
      let v = x4(m0 + r, k);
      for (var c = 0u; c < 4u; c++) { sum[r][c] = fma(v, w[c], sum[r][c]); }
    }
  }
  for (var r = 0u; r < ROWS; r++) {
    let t = transpose(mat4x4<f32>(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    partial[r * THREADS + thread] = (t[0] + t[1]) + (t[2] + t[3]);
  }
  workgroupBarrier();

  // One thread of a group finishes one row: ROWS ≤ K_THREADS.
  let r = thread % K_THREADS;
  if r < ROWS {
    let first = r * THREADS + thread / K_THREADS * K_THREADS;
    var total = partial[first];
    for (var i = 1u; i < K_THREADS; i++) { total += partial[first + i]; }
    store(m0 + r, n, epilogue(total, m0 + r, n));
  }
}
