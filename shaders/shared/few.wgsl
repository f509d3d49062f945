// What the forms of linear for few rows have in common: activation(norm(x) · Wᵀ + bias) for the rows that some sequence has.
//
// A workgroup makes ROWS rows × COLUMNS columns, in PASSES of 4 · GROUPS columns: K_THREADS threads share four columns and read
// neighbouring groups of each weight row, once for all ROWS rows. A row's bits depend neither on ROWS nor on the other rows, nor on
// whether sums meet in workgroup memory (shared/few_meet.wgsl) or in subgroups (shared/few_subgroups.wgsl), where the entry point is.
// So no product feeds an addition but by fma: what compilers make of one differs from form to form.
// The kernel defines
//   const PASSES: u32
//   fn finish(r: u32, m: u32, owner: u32, n: u32, sum: vec4<f32>)   what happens to the sums of columns n .. n + 3 of row m + r
//   fn conclude(m: u32, rows: u32, first: u32, thread: u32)         what follows the last pass over columns from `first` on
// Loops: k up to d_in, sequences up to their number. Barriers depend on parameters and read-only memory alone.

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

// What is known of a row's norm: the mean, and before that the row's first element; −Σ (x − mean), by which it is off, 0 while unknown;
// 1 / √(variance + eps); 1 / d_in. layer_norm.wgsl says why.
fn norm_at(shift: f32) -> vec4<f32> { return vec4<f32>(shift, 0.0, 0.0, 1.0 / f32(params.d_in)); }

// x − mean, taken off in two parts so that a large mean costs no digits.
fn centred(v: vec4<f32>, norm: vec4<f32>) -> vec4<f32> { return fma(vec4<f32>(norm.y), vec4<f32>(norm.w), v - norm.x); }

// Sums over a row of x − mean and of its squares.
struct Moments { rests: vec4<f32>, squares: vec4<f32> }

fn with_deviation(moments: Moments, v: vec4<f32>, k: u32, norm: vec4<f32>) -> Moments {
  let d = keep(v - norm.x, params.d_in - k);
  return Moments(moments.rests + d, fma(d, d, moments.squares));
}

// A thread's, for all threads to be added up: two halves of each.
fn halves(moments: Moments) -> vec4<f32> {
  return vec4<f32>(moments.rests.xy + moments.rests.zw, moments.squares.xy + moments.squares.zw);
}

// What is known of a row's norm once the sums of the first or the second pass are there. (Ba et al., arXiv 1607.06450)
fn norm_of(known: vec4<f32>, pass_number: u32, sums: vec4<f32>) -> vec4<f32> {
  let sum = sums.x + sums.y;
  if pass_number == 0u { return vec4<f32>(fma(sum, known.w, known.x), 0.0, 0.0, known.w); }
  let rest = select(0.0, sum, params.norm == 1u);
  let spread = fma(fma(-rest * known.w, rest, sums.z + sums.w), known.w, params.eps);
  return vec4<f32>(known.x, -rest, select(0.0, inverse_root(spread), spread > 0.0), known.w);
}

// The norm's weight and bias for k .. k + 3.
struct Affine { gain: vec4<f32>, offset: vec4<f32> }

fn norm_affine(k: u32) -> Affine {
  var affine = Affine(vec4<f32>(1.0), vec4<f32>(0.0));
  if NORMED == 1u && params.norm_weight != 0u { affine.gain = norm_weight4(k); }
  if NORMED == 1u && params.norm_bias != 0u { affine.offset = norm_bias4(k); }
  return affine;
}

fn normed(v: vec4<f32>, norm: vec4<f32>, affine: Affine) -> vec4<f32> {
  if NORMED == 0u || params.norm == 0u { return v; }
  return fma(centred(v, norm) * norm.z, affine.gain, affine.offset);
}

// norm(x) of a row.
fn normed4(row: u32, k: u32, norm: vec4<f32>, affine: Affine) -> vec4<f32> { return normed(x4(x_start(row), k), norm, affine); }

fn weights4x4(weights: vec4<u32>, k: u32) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(weight4(weights.x, k), weight4(weights.y, k), weight4(weights.z, k), weight4(weights.w, k)));
}

fn product(v: vec4<f32>, w: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(v.w), w[3], fma(vec4<f32>(v.z), w[2], fma(vec4<f32>(v.y), w[1], fma(vec4<f32>(v.x), w[0], sum))));
}

// Where the rows of the weight for columns n .. n + 3 begin, in units of Storage; past the last column they are the last one's.
fn weight_starts(n: u32) -> vec4<u32> {
  let row = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(params.d_out - 1u));
  return (params.weight_offset + row * params.weight_row) / LANES;
}

// activation(sum + bias) + residual, columns n .. n + 3.
fn biased(sum: vec4<f32>, n: u32, residual: vec4<f32>) -> vec4<f32> {
  var v = sum;
  if params.bias != 0u {
    let at = params.bias_offset + n;
    v += group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
  }
  return activate_onto(v, params.activation, residual);
}
