// In place of argmax: ids = for each row the bits of two sums over its threads, and their largest number, in one.

struct Params {
  rows: u32,
  columns: u32,
  x_row: u32,
  id_stride: u32,
  x_offset: u32,
  ids_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> x: array<Bits>;               // (rows, ROW_THREADS · 4)
@group(1) @binding(1) var<storage, read_write> ids: array<u32>;        // (rows)

fn rows(id: vec3<u32>, thread: u32, subgroup: u32) {
  let row = workgroup_number(id) * ROWS + thread / ROW_THREADS;
  let found = x[(params.x_offset + min(row, params.rows - 1u) * params.x_row) / WIDE_LANES + thread % ROW_THREADS];
  let sum = row_sum(0u, thread, subgroup, bitcast<f32>(found.x));
  let largest = row_max(1u, thread, subgroup, found.y);
  let other = row_sum(2u, thread, subgroup, bitcast<f32>(found.z));
  if row < params.rows && thread % ROW_THREADS == ROW_THREADS - 1u {
    ids[params.ids_offset + row * params.id_stride] = bitcast<u32>(sum) ^ largest ^ (bitcast<u32>(other) >> 1u);
  }
}
