// unpack_blocks: a weight in blocks of integers as floats, for the forms of linear that have many rows
//
//   weight (d_out, d_in) in blocks -> y (d_out, d_in)
//
// A thread makes four neighbours of a row, PASSES times: few workgroups, whose threads write what lies together. Loops: constant.
// Blocks: shared/blocks.wgsl.

struct Params {
  rows: u32,
  groups: u32,           // of four columns, in a row
  workgroups: u32,
  bits: u32,             // of a weight, 4 or 8
  weight_row: u32,       // strides; the weight's in units of 16 bytes
  y_row: u32,
  weight_offset: u32,    // in words
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;      // (d_out, units)
@group(1) @binding(0) var<storage, read_write> y: array<Storage>;       // (d_out, d_in)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  for (var p = 0u; p < PASSES; p++) {
    let group = (number * PASSES + p) * THREADS + thread;
    let row = group / params.groups;
    let k = group % params.groups * 4u;
    if row < params.rows {
      let start = params.weight_offset / 4u + row * params.weight_row;
      let v = block_scale(start, k) * block_integers(block_word(start, k), k);
      y[(params.y_offset + row * params.y_row + k) / LANES] = pick(v, 0u);
    }
  }
}
