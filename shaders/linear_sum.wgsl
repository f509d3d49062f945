// linear_sum: y = activation(Σ partial[s] + bias) + residual, the parts in order
//
//   partial (splits, rows, d_out), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A thread makes four neighbours of y. Loops: splits.

@group(1) @binding(0) var<storage, read> partial: array<Wide>;       // (splits, rows, d_out), rows in multiples of four

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let groups = (params.d_out + 3u) / 4u;
  let i = workgroup_number(id) * THREADS + thread;
  if i >= params.rows * groups { return; }
  let row = i / groups;
  let column = i % groups * 4u;
  var at = params.partial_offset + row * params.partial_row + column;
  var sum = vec4<f32>(0.0);
  for (var s = 0u; s < params.splits; s++) {
    sum += wide4(partial[at / WIDE_LANES], partial[(at + 1u) / WIDE_LANES], partial[(at + 2u) / WIDE_LANES], partial[(at + 3u) / WIDE_LANES]);
    at += params.rows * params.partial_row;
  }
  store(row, column, epilogue(sum, row, column));
}
