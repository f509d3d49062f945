// linear: y = activation(x · Wᵀ + bias) + residual
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes TILE_M rows × TILE_N columns of y. Rows and columns past the edge are computed from the last one's data
// and not stored; only k is tested in the loads. Sums run over k in order, so a row's bits do not depend on the other rows.
// Loops: k up to d_in. Workgroup memory: shared/tile.wgsl. Parameters, bindings and epilogue: shared/linear.wgsl.

fn x4(m: u32, k: u32) -> vec4<f32> {
  if k >= params.d_in { return vec4<f32>(0.0); }
  let at = params.x_offset + min(m, params.rows - 1u) * params.x_row + k;
  return keep(group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]), params.d_in - k);
}

fn weight4(n: u32, k: u32) -> vec4<f32> {
  if k >= params.d_in { return vec4<f32>(0.0); }
  let at = params.weight_offset + min(n, params.d_out - 1u) * params.weight_row + k;
  let four = group4(weight[at / LANES], weight[(at + 1u) / LANES], weight[(at + 2u) / LANES], weight[(at + 3u) / LANES]);
  return keep(four, params.d_in - k);
}

fn a_block(m: u32, k: u32) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(x4(m, k), x4(m + 1u, k), x4(m + 2u, k), x4(m + 3u, k)));
}

fn b_block(n: u32, k: u32) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(weight4(n, k), weight4(n + 1u, k), weight4(n + 2u, k), weight4(n + 3u, k)));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = workgroup_number(id);
  if tile >= params.tiles_m * params.tiles_n { return; }
  let m0 = tile % params.tiles_m * TILE_M;
  let n0 = tile / params.tiles_m * TILE_N;

  var sum: Accumulator;
  multiply(&sum, thread, m0, n0, params.d_in);

  for (var i = 0u; i < ROW_GROUPS; i++) {
    for (var r = 0u; r < 4u; r++) {
      for (var j = 0u; j < COLUMN_GROUPS; j++) {
        let column = n0 + tile_column(thread, j);
        store(m0 + tile_row(thread, i) + r, column, epilogue(sum[(i * 4u + r) * COLUMN_GROUPS + j], m0 + tile_row(thread, i) + r, column));
      }
    }
  }
}
