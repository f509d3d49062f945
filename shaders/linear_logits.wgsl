// linear_logits: y = norm(x) · Wᵀ + bias for one to a few rows over a vocabulary, and the largest of every 64 columns
//
//   x (rows, d_in), weight (V, d_in), bias (V), norm_weight (d_in), norm_bias (d_in), sequences (B, 8)
//     -> y (rows, V) in f32, maxima (rows, groups, 2): the largest as a number that orders as the floats do, and its column
//
// Of equal logits the lowest column counts, −0 equals +0, and NaN is 0, below everything. Rows that no sequence has are left as they
// are. Workgroups, loops, parameters and bindings: shared/few.wgsl; order: shared/order.wgsl.
// Workgroup memory: GROUPS · ROWS · 8 bytes more.

@group(1) @binding(1) var<storage, read_write> y: array<f32>;        // (rows, V)
@group(1) @binding(2) var<storage, read_write> maxima: array<u32>;   // (rows, groups, 2)

const PASSES: u32 = 64u / (4u * GROUPS);

var<workgroup> largest: array<vec2<u32>, ROWS * GROUPS>;   // [row][group]: the number and its column, of the passes so far

fn finish(r: u32, m: u32, owner: u32, n: u32, sum: vec4<f32>) {
  let v = biased(sum, n, vec4<f32>(0.0));
  let at = params.y_offset + (m + r) * params.y_row + n;
  let candidates = order(bitcast<vec4<u32>>(v));
  let group = r * GROUPS + n / 4u % GROUPS;
  var best = vec2<u32>(0u, n);
  if n % COLUMNS >= 4u * GROUPS { best = largest[group]; }
  for (var c = 0u; c < 4u; c++) {
    if n + c < params.d_out {
      y[at + c] = v[c];
      if candidates[c] > best.x { best = vec2<u32>(candidates[c], n + c); }
    }
  }
  largest[group] = best;
}

fn conclude(m: u32, rows: u32, first: u32, thread: u32) {
  workgroupBarrier();
  for (var r = thread; r < rows; r += THREADS) {
    if !is_live(r) { continue; }
    // Groups of columns that the vocabulary lacks have written nothing.
    let groups = min(GROUPS, (params.d_out - first + 3u) / 4u);
    var best = largest[r * GROUPS];
    for (var g = 1u; g < groups; g++) {
      let other = largest[r * GROUPS + g];
      if other.x > best.x || (other.x == best.x && other.y < best.y) { best = other; }
    }
    let at = params.maxima_offset + (m + r) * params.maxima_row + first / COLUMNS * params.maxima_group;
    maxima[at] = best.x;
    maxima[at + 1u] = params.first_column + best.y;
  }
}
