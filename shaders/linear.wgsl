// linear: y = activation(x · Wᵀ + bias) + residual
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes TILE_M rows × TILE_N columns of y. Rows and columns past the edge are computed from the last one's data
// and not stored; k past d_in count as zeros. Sums run over k in order, so a row's bits do not depend on the other rows.
// Loops: k up to d_in. Workgroup memory: shared/tile.wgsl. Parameters, bindings and epilogue: shared/linear.wgsl.

fn work(id: vec3<u32>, thread: u32) {
  let tiles_m = (params.rows + TILE_M - 1u) / TILE_M;
  let tiles_n = (params.d_out + TILE_N - 1u) / TILE_N;
  let tile = workgroup_number(id);
  if tile >= tiles_m * tiles_n { return; }
  let m0 = tile % tiles_m * TILE_M;
  let n0 = tile / tiles_m * TILE_N;

  var sum: Accumulator;
  multiply(&sum, thread, m0, n0, 0u, params.d_in);

  for (var i = 0u; i < THREAD_M; i++) {
    var sums = take_row(&sum);
    let row = m0 + tile_row(thread, i);
    for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
      let column = n0 + tile_column(thread, j);
      if row < params.rows && column < params.d_out { store(row, column, epilogue(sums[j], row, column)); }
    }
  }
}
