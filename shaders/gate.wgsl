// gate: y = activation(gate) · up, element by element
//
//   gate (rows, columns), up (rows, columns) -> y (rows, columns)
//
// A thread makes four neighbours of one row. Loops: constant. (Shazeer, arXiv 2002.05202)

struct Params {
  rows: u32,
  columns: u32,
  groups: u32,         // of four columns, in a row
  workgroups: u32,
  kind: u32,
  gate_row: u32,       // strides
  up_row: u32,
  y_row: u32,
  gate_offset: u32,
  up_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> gate: array<Storage>;       // (rows, columns)
@group(1) @binding(1) var<storage, read> up: array<Storage>;         // (rows, columns)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;    // (rows, columns)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let group = number * THREADS + thread;
  let row = group / params.groups;
  let column = group % params.groups * 4u;
  if row >= params.rows { return; }
  let at = params.gate_offset + row * params.gate_row + column;
  let up_at = params.up_offset + row * params.up_row + column;
  let open = activate(group4(gate[at / LANES], gate[(at + 1u) / LANES], gate[(at + 2u) / LANES], gate[(at + 3u) / LANES]), params.kind);
  let v = open * group4(up[up_at / LANES], up[(up_at + 1u) / LANES], up[(up_at + 2u) / LANES], up[(up_at + 3u) / LANES]);
  let y_at = params.y_offset + row * params.y_row + column;
  for (var c = 0u; c < 4u / LANES; c++) {
    if column + c * LANES < params.columns { y[y_at / LANES + c] = pick(v, c); }
  }
}
