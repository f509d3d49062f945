// argmax: ids = for each row the column of its largest element, the lowest of several
//
//   x (rows, columns), by its bits -> ids (rows)
//
// ROW_THREADS threads share a row, and have GROUPS loads of four columns under way at a time. Floats are compared as integers in
// the same order, −0 equal to +0; NaN is never chosen, and a row of nothing else gives 0.
// Loops: columns. Entry point, workgroup memory: shared/rows.wgsl; order: shared/order.wgsl.

struct Params {
  rows: u32,
  columns: u32,
  x_row: u32,          // strides
  id_stride: u32,
  x_offset: u32,
  ids_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> x: array<Bits>;               // (rows, columns)
@group(1) @binding(1) var<storage, read_write> ids: array<u32>;        // (rows)

fn rows(id: vec3<u32>, thread: u32, subgroup: u32) {
  let first = workgroup_number(id) * ROWS;
  if first >= params.rows { return; }
  let row = min(first + thread / ROW_THREADS, params.rows - 1u);
  let x_row = params.x_offset + row * params.x_row;
  let last = (params.columns - 1u) / 4u * 4u;
  let start = thread % ROW_THREADS * 4u;

  var key = 0u;
  var column = 0u;
  for (var c0 = start; c0 < params.columns; c0 += GROUPS * STEP) {
    var found = array<vec4<u32>, GROUPS>();
    for (var g = 0u; g < GROUPS; g++) {
      let at = x_row + min(c0 + g * STEP, last);
      found[g] = bits4(x[at / WIDE_LANES], x[(at + 1u) / WIDE_LANES], x[(at + 2u) / WIDE_LANES], x[(at + 3u) / WIDE_LANES]);
    }
    for (var g = 0u; g < GROUPS; g++) {
      let candidates = order(found[g]);
      let c = c0 + g * STEP;
      for (var l = 0u; l < 4u; l++) {
        let better = candidates[l] > key && c + l < params.columns;
        key = select(key, candidates[l], better);
        column = select(column, c + l, better);
      }
    }
  }
  let best = row_max(0u, thread, subgroup, key);
  // The lowest column is the largest of their complements.
  let lowest = ~row_max(1u, thread, subgroup, select(0u, ~column, key == best));
  if start == 0u && first + thread / ROW_THREADS < params.rows {
    ids[params.ids_offset + row * params.id_stride] = lowest;
  }
}
