// What the forms of linear for few rows have in common: activation(norm(x) · Wᵀ + bias) for the rows that some sequence has.
//
// A workgroup makes ROWS rows × COLUMNS columns, in PASSES of 4 · GROUPS columns: K_THREADS threads share four columns and read
// neighbouring groups of each weight row, once for all ROWS rows. Their sums meet in workgroup memory (THREADS · ROWS · 16 bytes).
// A row's bits depend neither on ROWS nor on the other rows. The kernel defines
//   const PASSES: u32
//   fn finish(row: u32, owner: u32, n: u32, sum: vec4<f32>)    what happens to the sums of columns n .. n + 3, by one thread
//   fn conclude(m: u32, tile_n: u32, thread: u32, owner: u32)  what follows the last pass
// Loops: k up to d_in, sequences up to their number. Barriers stand outside all that depends on sequences.

struct Params {
  rows: u32,
  d_in: u32,
  d_out: u32,
  first_column: u32,       // where the weight is a part of a larger one
  x_row: u32,              // strides
  weight_row: u32,
  residual_row: u32,
  y_row: u32,
  activation: u32,
  bias: u32,               // whether bound
  residual: u32,
  norm: u32,               // what x goes through first: 0 nothing, 1 layer norm, 2 RMS norm, which takes no mean off
  norm_weight: u32,
  norm_bias: u32,
  eps: f32,
  sequence_count: u32,     // 0: none is bound, and every row counts
  sequence_stride: u32,
  q_columns: u32,          // the rest are keys and values, of `heads` heads each
  heads: u32,
  head_size: u32,
  value_size: u32,
  capacity: u32,           // keys of a slot
  key_rows: u32,           // of the cache, up to where the last slot's first head ends
  cache_kind: u32,
  cache_head: u32,
  cache_row: u32,
  maxima_row: u32,
  maxima_group: u32,
  x_offset: u32,
  weight_offset: u32,
  bias_offset: u32,
  norm_weight_offset: u32,
  norm_bias_offset: u32,
  residual_offset: u32,
  y_offset: u32,
  cache_offset: u32,
  maxima_offset: u32,
  sequences_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<Storage>;        // (d_out, d_in)
@group(0) @binding(2) var<storage, read> bias: array<Storage>;          // (d_out)
@group(0) @binding(3) var<storage, read> norm_weight: array<Storage>;   // (d_in)
@group(0) @binding(4) var<storage, read> norm_bias: array<Storage>;     // (d_in)
@group(1) @binding(0) var<storage, read> x: array<Storage>;             // (rows, d_in)
@group(1) @binding(3) var<storage, read> sequences: array<u32>;         // (B, 8)

const GROUPS: u32 = THREADS / K_THREADS;
const COLUMNS: u32 = 4u * GROUPS * PASSES;
const NOBODY: u32 = 0xffffffffu;

var<workgroup> partial: array<vec4<f32>, THREADS * ROWS>;  // [row][thread]
var<workgroup> norms: array<vec4<f32>, ROWS>;              // what is taken off, twice so that a large mean costs no digits, and the scale
var<workgroup> owners: array<u32, ROWS>;

alias Sums = array<vec4<f32>, ROWS>;        // [row], four columns

fn has_row(b: u32, row: u32) -> bool {
  let at = params.sequences_offset + b * params.sequence_stride;
  return row >= sequences[at] && row - sequences[at] < sequences[at + 1u];
}

// Which sequence has a row: in a decode step the one of its own number.
fn owner_of(row: u32) -> u32 {
  if row >= params.rows { return NOBODY; }
  if params.sequence_count == 0u || (row < params.sequence_count && has_row(row, row)) { return row; }
  var owner = NOBODY;
  for (var b = 0u; b < params.sequence_count && owner == NOBODY; b++) {
    if has_row(b, row) { owner = b; }
  }
  return owner;
}

// Where a row of x begins, in units of Storage; past the last row it is the last one.
fn x_start(row: u32) -> u32 { return (params.x_offset + min(row, params.rows - 1u) * params.x_row) / LANES; }

fn x4(start: u32, k: u32) -> vec4<f32> {
  let at = start + k / LANES;
  return keep(group4(x[at], x[at + 1u / LANES], x[at + 2u / LANES], x[at + 3u / LANES]), params.d_in - k);
}

fn weight4(start: u32, k: u32) -> vec4<f32> {
  let at = start + k / LANES;
  return keep(group4(weight[at], weight[at + 1u / LANES], weight[at + 2u / LANES], weight[at + 3u / LANES]), params.d_in - k);
}

fn norm_weight4(k: u32) -> vec4<f32> {
  let at = params.norm_weight_offset + k;
  return keep(group4(norm_weight[at / LANES], norm_weight[(at + 1u) / LANES], norm_weight[(at + 2u) / LANES], norm_weight[(at + 3u) / LANES]),
              params.d_in - k);
}

fn norm_bias4(k: u32) -> vec4<f32> {
  let at = params.norm_bias_offset + k;
  return keep(group4(norm_bias[at / LANES], norm_bias[(at + 1u) / LANES], norm_bias[(at + 2u) / LANES], norm_bias[(at + 3u) / LANES]),
              params.d_in - k);
}

// What one thread of a row adds up for its mean: x − shift; or for its variance: the squares of x − shift − mean.
fn deviations(row: u32, norm: vec4<f32>, squared: bool, own: u32) -> vec4<f32> {
  let start = x_start(row);
  var sum = vec4<f32>(0.0);
  for (var k = own * 4u; k < params.d_in; k += K_THREADS * 4u) {
    let d = keep(x4(start, k) - norm.x - norm.y, params.d_in - k);
    sum = fma(d, select(vec4<f32>(1.0), d, squared), sum);
  }
  return sum;
}

// What is known of a row's norm once the first or the second of its sums is there. (Ba et al., arXiv 1607.06450)
fn norm_of(known: vec4<f32>, squared: bool, sums: vec4<f32>) -> vec4<f32> {
  let average = ((sums.x + sums.y) + (sums.z + sums.w)) / f32(params.d_in);
  if !squared { return vec4<f32>(known.x, select(0.0, average, params.norm == 1u), 0.0, 0.0); }
  let spread = average + params.eps;
  return vec4<f32>(known.xy, select(0.0, inverseSqrt(spread), spread > 0.0), 0.0);
}

fn add_products(sums: ptr<function, Sums>, m: u32, weights: vec4<u32>, k: u32) {
  let w = transpose(mat4x4<f32>(weight4(weights.x, k), weight4(weights.y, k), weight4(weights.z, k), weight4(weights.w, k)));
  var gain = vec4<f32>(1.0);
  var offset = vec4<f32>(0.0);
  if params.norm_weight != 0u { gain = norm_weight4(k); }
  if params.norm_bias != 0u { offset = norm_bias4(k); }
  for (var r = 0u; r < ROWS; r++) {  // unroll
    var v = x4(x_start(m + r), k);
    if params.norm != 0u { v = fma((v - norms[r].x - norms[r].y) * norms[r].z, gain, offset); }
    (*sums)[r] = fma(vec4<f32>(v.w), w[3], fma(vec4<f32>(v.z), w[2], fma(vec4<f32>(v.y), w[1], fma(vec4<f32>(v.x), w[0], (*sums)[r]))));
  }
}

// activation(sum + bias), columns n .. n + 3.
fn affine(sum: vec4<f32>, n: u32) -> vec4<f32> {
  var v = sum;
  if params.bias != 0u {
    let at = params.bias_offset + n;
    v += group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
  }
  return activate(v, params.activation);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tiles_m = (params.rows + ROWS - 1u) / ROWS;
  let tiles_n = (params.d_out + COLUMNS - 1u) / COLUMNS;
  let tile = workgroup_number(id);
  if tile >= tiles_m * tiles_n { return; }
  let m = tile % tiles_m * ROWS;
  let rows = min(ROWS, params.rows - m);
  let first = tile / tiles_m * COLUMNS;
  let turns = min(PASSES, (params.d_out - first + 4u * GROUPS - 1u) / (4u * GROUPS));

  for (var r = thread; r < ROWS; r += THREADS) {
    owners[r] = owner_of(m + r);
    norms[r] = vec4<f32>(select(0.0, x4(x_start(m + r), 0u).x, params.norm == 1u), 0.0, 0.0, 0.0);
  }
  workgroupBarrier();
  var live = false;
  for (var r = 0u; r < ROWS; r++) { live = live || owners[r] != NOBODY; }

  // One thread of a group finishes one row: ROWS ≤ K_THREADS.
  let own = thread % K_THREADS;
  let at = own * THREADS + thread / K_THREADS * K_THREADS;
  let owner = select(NOBODY, owners[min(own, ROWS - 1u)], own < ROWS);
  let statistics = 2u * min(params.norm, 1u);
  for (var turn = 0u; turn < statistics + turns; turn++) {
    let n = first + ((turn - statistics) * GROUPS + thread / K_THREADS) * 4u;
    if turn < statistics {
      for (var r = 0u; live && r < rows; r++) {
        partial[r * THREADS + thread] = deviations(m + r, norms[r], turn == 1u, own);
      }
    } else {
      let row = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(params.d_out - 1u));
      let weights = (params.weight_offset + row * params.weight_row) / LANES;
      let end = select(0u, params.d_in, live && n < params.d_out);
      var sums: Sums;
      for (var k = own * 4u; k < end; k += K_THREADS * 4u) { add_products(&sums, m, weights, k); }
      for (var r = 0u; r < ROWS; r++) {  // unroll
        partial[r * THREADS + thread] = sums[r];
      }
    }
    workgroupBarrier();
    if owner != NOBODY {
      var total = partial[at];
      for (var i = 1u; i < K_THREADS; i++) { total += partial[at + i]; }
      if turn >= statistics {
        if n < params.d_out { finish(m + own, owner, n, total); }
      } else if thread < K_THREADS {
        norms[own] = norm_of(norms[own], turn == 1u, total);
      }
    }
    workgroupBarrier();
  }
  conclude(m, tile / tiles_m, thread, owner);
}
