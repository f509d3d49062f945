// argmax: ids = for each row the column of its largest element, the lowest of several
//
//   x (rows, columns), by its bits -> ids (rows)
//
// ROW_THREADS threads share a row. Floats are compared as integers in the same order, −0 equal to +0; NaN is never chosen,
// and a row of nothing else gives 0. Loops: columns. Workgroup memory: THREADS · 8 bytes.

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

const ROWS: u32 = THREADS / ROW_THREADS;

var<workgroup> best_key: array<u32, THREADS>;
var<workgroup> best_column: array<u32, THREADS>;

// A number that orders as the float with these bits does; 0 for NaN.
fn order(bits: u32) -> u32 {
  let magnitude = bits & 0x7fffffffu;
  if magnitude > 0x7f800000u { return 0u; }
  return select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first = workgroup_number(id) * ROWS;
  if first >= params.rows { return; }
  let row = min(first + thread / ROW_THREADS, params.rows - 1u);
  let x_row = params.x_offset + row * params.x_row;

  var key = 0u;
  var column = 0u;
  for (var c = thread % ROW_THREADS * 4u; c < params.columns; c += ROW_THREADS * 4u) {
    let at = x_row + c;
    let bits = bits4(x[at / WIDE_LANES], x[(at + 1u) / WIDE_LANES], x[(at + 2u) / WIDE_LANES], x[(at + 3u) / WIDE_LANES]);
    for (var l = 0u; l < 4u && c + l < params.columns; l++) {
      let candidate = order(bits[l]);
      if candidate > key {
        key = candidate;
        column = c + l;
      }
    }
  }
  best_key[thread] = key;
  best_column[thread] = column;
  workgroupBarrier();

  if thread % ROW_THREADS == 0u && first + thread / ROW_THREADS < params.rows {
    for (var i = 1u; i < ROW_THREADS; i++) {
      let other = best_key[thread + i];
      if other > key || (other == key && best_column[thread + i] < column) {
        key = other;
        column = best_column[thread + i];
      }
    }
    ids[params.ids_offset + row * params.id_stride] = column;
  }
}
