// masked_softmax: y = softmax over keys of scale · x − slope · |p − j| + additive, hidden keys left out
//
//   x (B, NH, T, S), by its bits -> y (B, NH, T, S)
//
// ROW_THREADS threads share a row. An entry of −∞ counts as hidden whatever the options say; a row with no visible key gives
// zeros, and so do rows and keys that a sequence lacks. One pass keeps a running maximum and sum (Milakov and Gimelshein,
// arXiv 1805.02867), a second one writes; the maximum starts at a finite value and no infinity is ever computed with.
// Loops: keys up to S. Workgroup memory: shared/rows.wgsl.

struct Params {
  rows: u32,           // B · NH · T
  batch: u32,
  n_heads: u32,
  longest_q: u32,
  longest_k: u32,
  x_batch: u32,        // strides
  x_head: u32,
  x_row: u32,
  y_batch: u32,
  y_head: u32,
  y_row: u32,
  x_offset: u32,
  y_offset: u32,
  options: u32,        // whether any option or length hides keys or changes scores
  pad0: u32,
  pad1: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> x: array<Bits>;               // (B, NH, T, S)
@group(1) @binding(1) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(2) var<storage, read> key_mask: array<u32>;         // (B, S)
@group(1) @binding(3) var<storage, read> mask: array<u32>;             // (B, NH, T, S)
@group(1) @binding(4) var<storage, read_write> y: array<Wide>;         // (B, NH, T, S)

const LOWEST: f32 = -3.402823466e38;

// exp of differences of at most 0, however large: exp(−104) is 0 in f32.
fn exp0(d: vec4<f32>) -> vec4<f32> { return exp(max(d, vec4<f32>(-104.0))); }

struct Row { b: u32, h: u32, i: u32, s: Sequence }

// The finished scores of keys j .. j + 3, by their bits, −∞ behind the last.
fn scores4(row: Row, at: u32, j: u32) -> vec4<u32> {
  let found = bits4(x[at / WIDE_LANES], x[(at + 1u) / WIDE_LANES], x[(at + 2u) / WIDE_LANES], x[(at + 3u) / WIDE_LANES]);
  var bits: vec4<u32>;
  for (var c = 0u; c < 4u; c++) {
    var v = bitcast<u32>(params.attention.scale * bitcast<f32>(found[c]));
    if params.options != 0u { v = finish_score(bitcast<f32>(v), row.b, row.h, row.s, row.i, j + c); }
    bits[c] = select(v, MINUS_INFINITY, found[c] == MINUS_INFINITY || j + c >= params.longest_k);
  }
  return bits;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first = workgroup_number(id) * ROWS;
  if first >= params.rows { return; }
  let number = min(first + thread / ROW_THREADS, params.rows - 1u);
  let live = first + thread / ROW_THREADS < params.rows;
  let i = number % params.longest_q;
  let h = number / params.longest_q % params.n_heads;
  let b = number / params.longest_q / params.n_heads;
  let row = Row(b, h, i, sequence(b, params.longest_q, params.longest_k));
  let x_row = params.x_offset + b * params.x_batch + h * params.x_head + i * params.x_row;
  let y_row = params.y_offset + b * params.y_batch + h * params.y_head + i * params.y_row;

  var largest = LOWEST;
  var sum = 0.0;
  for (var j = thread % ROW_THREADS * 4u; j < params.longest_k; j += ROW_THREADS * 4u) {
    let bits = scores4(row, x_row + j, j);
    let visible = bits != vec4<u32>(MINUS_INFINITY);
    let v = select(vec4<f32>(LOWEST), bitcast<vec4<f32>>(bits), visible);
    let next = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    let e = select(vec4<f32>(0.0), exp0(v - next), visible);
    sum = fma(sum, exp0(vec4<f32>(largest - next)).x, (e.x + e.y) + (e.z + e.w));
    largest = next;
  }
  let top = row_max(thread, largest);
  let total = row_sum(thread, sum * exp0(vec4<f32>(largest - top)).x);
  let inverse = select(0.0, 1.0 / total, total > 0.0);

  for (var j = thread % ROW_THREADS * 4u; live && j < params.longest_k; j += ROW_THREADS * 4u) {
    let bits = scores4(row, x_row + j, j);
    let visible = bits != vec4<u32>(MINUS_INFINITY);
    let v = select(vec4<f32>(LOWEST), bitcast<vec4<f32>>(bits), visible);
    let p = select(vec4<f32>(0.0), exp0(v - top) * inverse, visible);
    for (var c = 0u; c < 4u / WIDE_LANES; c++) {
      if j + c * WIDE_LANES < params.longest_k { y[(y_row + j) / WIDE_LANES + c] = pick_wide(p, c); }
    }
  }
}
