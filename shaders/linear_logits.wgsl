// linear_logits: y = norm(x) · Wᵀ + bias for one to a few rows over a vocabulary, and the largest of every 64 columns
//
//   x (rows, d_in), weight (V, d_in), bias (V), norm_weight (d_in), norm_bias (d_in), sequences (B, 8)
//     -> y (rows, V) in f32, maxima (rows, groups, 2): the largest as a number that orders as the floats do, and its column
//
// Of equal logits the lowest column counts, −0 equals +0, and NaN is 0, below everything. Rows that no sequence has are left as they
// are. Workgroups, loops, parameters and bindings: shared/few.wgsl. Workgroup memory: THREADS · 8 bytes more.

@group(1) @binding(1) var<storage, read_write> y: array<f32>;        // (rows, V)
@group(1) @binding(2) var<storage, read_write> maxima: array<u32>;   // (rows, groups, 2)

const PASSES: u32 = 64u / (4u * GROUPS);

var<workgroup> of_thread: array<vec2<u32>, THREADS>;

var<private> largest: u32;
var<private> column: u32;

// Numbers that order as the floats with these bits do; 0 for NaN.
fn order(bits: vec4<u32>) -> vec4<u32> {
  let magnitude = bits & vec4<u32>(0x7fffffffu);
  let ordered = select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
  return select(ordered, vec4<u32>(0u), magnitude > vec4<u32>(0x7f800000u));
}

fn finish(row: u32, owner: u32, n: u32, sum: vec4<f32>) {
  let v = affine(sum, n);
  let at = params.y_offset + row * params.y_row + n;
  let candidates = order(bitcast<vec4<u32>>(v));
  for (var c = 0u; c < 4u; c++) {
    let exists = n + c < params.d_out;
    if exists { y[at + c] = v[c]; }
    if exists && candidates[c] > largest {
      largest = candidates[c];
      column = n + c;
    }
  }
}

fn conclude(m: u32, tile_n: u32, thread: u32, owner: u32) {
  of_thread[thread] = vec2<u32>(largest, column);
  workgroupBarrier();
  // One thread a row has the sequence, and was the first of its row's.
  if owner == NOBODY || thread >= K_THREADS { return; }
  var best = vec2<u32>(0u, tile_n * COLUMNS);
  for (var g = 0u; g < GROUPS; g++) {
    let candidate = of_thread[g * K_THREADS + thread];
    if candidate.x > best.x || (candidate.x == best.x && candidate.x > 0u && candidate.y < best.y) { best = candidate; }
  }
  let at = params.maxima_offset + (m + thread) * params.maxima_row + tile_n * params.maxima_group;
  maxima[at] = best.x;
  maxima[at + 1u] = params.first_column + best.y;
}
