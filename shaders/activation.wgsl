// activation: y = activation(x), element by element
//
//   x (rows, columns) -> y (rows, columns)
//
// A thread makes four neighbours of one row. Loops: constant.

struct Params {
  rows: u32,
  columns: u32,
  groups: u32,         // of four columns, in a row
  workgroups: u32,
  kind: u32,
  x_row: u32,          // strides
  y_row: u32,
  x_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> x: array<Storage>;          // (rows, columns)
@group(1) @binding(1) var<storage, read_write> y: array<Storage>;    // (rows, columns)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let group = number * THREADS + thread;
  let row = group / params.groups;
  let column = group % params.groups * 4u;
  if row >= params.rows { return; }
  let at = params.x_offset + row * params.x_row + column;
  let v = activate(group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]), params.kind);
  let y_at = params.y_offset + row * params.y_row + column;
  for (var c = 0u; c < 4u / LANES; c++) {
    if column + c * LANES < params.columns { y[y_at / LANES + c] = pick(v, c); }
  }
}
