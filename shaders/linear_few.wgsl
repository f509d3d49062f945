// linear_few: y = activation(x · Wᵀ + bias) + residual for one to a few rows
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes ROWS rows × 4 · GROUPS columns of y: K_THREADS threads share four columns and read neighbouring groups of
// each weight row, once for all ROWS rows. Their sums meet in workgroup memory (THREADS · ROWS · 16 bytes).
// Loops: k up to d_in. Parameters, bindings and epilogue: shared/linear*.wgsl.

const GROUPS: u32 = THREADS / K_THREADS;

var<workgroup> partial: array<vec4<f32>, THREADS * ROWS>;  // [row][thread]

alias Sums = array<vec4<f32>, ROWS>;  // [row], four columns

fn add_products(sum: ptr<function, Sums>, m: u32, weights: vec4<u32>, k: u32, tail: bool) {
  let w = b_block(weights, k, tail);
  for (var r = 0u; r < ROWS; r++) {
    let v = x4((params.x_offset + min(m + r, params.rows - 1u) * params.x_row) / LANES, k, tail);
    (*sum)[r] = fma(vec4<f32>(v.w), w[3], fma(vec4<f32>(v.z), w[2], fma(vec4<f32>(v.y), w[1], fma(vec4<f32>(v.x), w[0], (*sum)[r]))));
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tiles_m = (params.rows + ROWS - 1u) / ROWS;
  let tiles_n = (params.d_out + 4u * GROUPS - 1u) / (4u * GROUPS);
  let tile = workgroup_number(id);
  if tile >= tiles_m * tiles_n { return; }
  let m = tile % tiles_m * ROWS;
  let n = (tile / tiles_m * GROUPS + thread / K_THREADS) * 4u;

  let weights = b_rows(n);
  var sum: Sums;
  var k = thread % K_THREADS * 4u;
  for (; k + 4u <= params.d_in; k += K_THREADS * 4u) { add_products(&sum, m, weights, k, false); }
  if k < params.d_in { add_products(&sum, m, weights, k, true); }

  for (var r = 0u; r < ROWS; r++) { partial[r * THREADS + thread] = sum[r]; }
  workgroupBarrier();

  // One thread of a group finishes one row: ROWS ≤ K_THREADS.
  let r = thread % K_THREADS;
  if r < ROWS {
    let first = r * THREADS + thread / K_THREADS * K_THREADS;
    var total = partial[first];
    for (var i = 1u; i < K_THREADS; i++) { total += partial[first + i]; }
    store(m + r, n, epilogue(total, m + r, n));
  }
}
