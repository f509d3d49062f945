// masked_softmax: y = softmax over keys of scale · x − slope · |p − j| + additive, hidden keys left out
//
//   x (B, NH, T, S), by its bits -> y (B, NH, T, S)
//
// ROW_THREADS threads share a row. An entry of −∞ counts as hidden whatever the options say; a row with no visible key gives
// zeros, and so do rows and keys that a sequence lacks. Without options, the first GROUPS · STEP keys stay in registers and are
// read once. What is beyond, and all of a row with options, is read twice: one pass keeps a running maximum and sum (Milakov
// and Gimelshein, arXiv 1805.02867), a second one writes. The maximum starts at a finite value; no infinity is computed with.
// Loops: keys up to S. Entry point, workgroup memory: shared/rows.wgsl.

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

// Integers in the order of floats that are not NaN, each another, and back.
fn ordered(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn of_ordered(o: u32) -> f32 { return bitcast<f32>(select(~o, o & 0x7fffffffu, o >= 0x80000000u)); }

struct Row { b: u32, h: u32, i: u32, s: Sequence }

fn x4(at: u32) -> vec4<u32> {
  return bits4(x[at / WIDE_LANES], x[(at + 1u) / WIDE_LANES], x[(at + 2u) / WIDE_LANES], x[(at + 3u) / WIDE_LANES]);
}

// The scaled scores of keys j .. j + 3, by their bits, −∞ behind the last.
fn plain4(found: vec4<u32>, j: u32) -> vec4<u32> {
  let behind = j + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(params.longest_k);
  let scaled = bitcast<vec4<u32>>(fma(vec4<f32>(params.attention.scale), bitcast<vec4<f32>>(found), vec4<f32>(0.0)));
  return select(scaled, vec4<u32>(MINUS_INFINITY), (found == vec4<u32>(MINUS_INFINITY)) | behind);
}

// The same, and with whatever options there are.
fn scores4(row: Row, at: u32, j: u32) -> vec4<u32> {
  let found = x4(at);
  if params.options == 0u { return plain4(found, j); }
  // One after the other: a CPU adapter goes through what a condition hides, and once only through a loop.
  var bits = vec4<u32>();
  for (var c = 0u; c < 4u; c++) {
    let exists = key_exists(row.b, row.s, j + c);
    let v = finish_scores(vec4<f32>(bitcast<f32>(found[c])), vec4<bool>(exists), row.b, row.h, row.s, row.i, j + c).x;
    bits[c] = select(v, MINUS_INFINITY, found[c] == MINUS_INFINITY);
  }
  return bits;
}

fn visible4(bits: vec4<u32>) -> vec4<bool> { return bits != vec4<u32>(MINUS_INFINITY); }
fn value4(bits: vec4<u32>) -> vec4<f32> { return select(vec4<f32>(LOWEST), bitcast<vec4<f32>>(bits), visible4(bits)); }
fn exp4(bits: vec4<u32>, top: f32) -> vec4<f32> { return select(vec4<f32>(0.0), exp0(value4(bits) - top), visible4(bits)); }

fn store(at: u32, j: u32, p: vec4<f32>) {
  for (var c = 0u; c < 4u / WIDE_LANES; c++) {
    if j + c * WIDE_LANES < params.longest_k { y[at / WIDE_LANES + c] = pick_wide(p, c); }
  }
}

fn rows(id: vec3<u32>, thread: u32, subgroup: u32) {
  let first = workgroup_number(id) * ROWS;
  if first >= params.rows { return; }
  let number = min(first + thread / ROW_THREADS, params.rows - 1u);
  let live = first + thread / ROW_THREADS < params.rows;
  let i = number % params.longest_q;
  let h = number / params.longest_q % params.n_heads;
  let b = number / params.longest_q / params.n_heads;
  let x_row = params.x_offset + b * params.x_batch + h * params.x_head + i * params.x_row;
  let y_row = params.y_offset + b * params.y_batch + h * params.y_head + i * params.y_row;
  let start = thread % ROW_THREADS * 4u;
  let last = (params.longest_k - 1u) / 4u * 4u;
  let plain = params.options == 0u;
  let kept_keys = select(0u, params.longest_k, plain);
  let rest = start + select(0u, GROUPS * STEP, plain);
  var row = Row(b, h, i, Sequence());
  if !plain { row.s = sequence(b, params.longest_q, params.longest_k); }

  var kept: array<vec4<u32>, GROUPS>;
  for (var g = 0u; g < GROUPS; g++) {
    if g * STEP < kept_keys { kept[g] = x4(x_row + min(start + g * STEP, last)); }
  }
  var largest = LOWEST;
  for (var g = 0u; g < GROUPS; g++) {
    if g * STEP < kept_keys {
      kept[g] = plain4(kept[g], start + g * STEP);
      let v = value4(kept[g]);
      largest = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    }
  }
  var sum = 0.0;
  for (var j = rest; j < params.longest_k; j += STEP) {
    let bits = scores4(row, x_row + j, j);
    let v = value4(bits);
    let next = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    let e = exp4(bits, next);
    sum = fma(sum, exp0(vec4<f32>(largest - next)).x, (e.x + e.y) + (e.z + e.w));
    largest = next;
  }
  let top = of_ordered(row_max(0u, thread, subgroup, ordered(largest)));
  var kept_sum = 0.0;
  for (var g = 0u; g < GROUPS; g++) {
    if g * STEP < kept_keys {
      let e = exp4(kept[g], top);
      kept_sum += (e.x + e.y) + (e.z + e.w);
      kept[g] = bitcast<vec4<u32>>(e);
    }
  }
  let total = row_sum(1u, thread, subgroup, fma(sum, exp0(vec4<f32>(largest - top)).x, kept_sum));
  let inverse = select(0.0, 1.0 / total, total > 0.0);

  for (var g = 0u; g < GROUPS; g++) {
    let j = start + g * STEP;
    if live && j < kept_keys { store(y_row + j, j, bitcast<vec4<f32>>(kept[g]) * inverse); }
  }
  for (var j = rest; live && j < params.longest_k; j += STEP) {
    store(y_row + j, j, exp4(scores4(row, x_row + j, j), top) * inverse);
  }
}
