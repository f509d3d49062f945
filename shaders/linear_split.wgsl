// linear_split: partial[s] = x · Wᵀ over the k of part s, where too few tiles would keep a device busy; linear_sum adds the parts
//
//   x (rows, d_in), weight (d_out, d_in) -> partial (splits, rows, d_out)
//
// A workgroup makes TILE_M rows × TILE_N columns of one part: k from s · split up to (s + 1) · split. The rest is as in linear.

@group(1) @binding(1) var<storage, read_write> partial: array<Wide>;  // (splits, rows, d_out), rows in multiples of four

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tiles_m = (params.rows + TILE_M - 1u) / TILE_M;
  let tiles_n = (params.d_out + TILE_N - 1u) / TILE_N;
  let number = workgroup_number(id);
  if number >= tiles_m * tiles_n * params.splits { return; }
  let m0 = number % tiles_m * TILE_M;
  let n0 = number / tiles_m % tiles_n * TILE_N;
  let s = number / tiles_m / tiles_n;

  var sum: Accumulator;
  multiply(&sum, thread, m0, n0, s * params.split, min((s + 1u) * params.split, params.d_in));

  for (var i = 0u; i < THREAD_M; i++) {
    var sums = take_row(&sum);
    let row = m0 + tile_row(thread, i);
    for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
      let column = n0 + tile_column(thread, j);
      if row < params.rows && column < params.d_out {
        let at = params.partial_offset + (s * params.rows + row) * params.partial_row + column;
        for (var c = 0u; c < 4u / WIDE_LANES; c++) { partial[at / WIDE_LANES + c] = pick_wide(sums[j], c); }
      }
    }
  }
}
