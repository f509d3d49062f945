// linear_blocks: y = activation(x · Wᵀ + bias) + residual for one to a few rows, of a weight in blocks of integers
//
//   x (rows, d_in), weight (d_out, d_in) in blocks, bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes ROWS rows × COLUMNS columns: K_THREADS threads share four columns and take neighbouring words of their weight rows,
// AHEAD of them under way, each read once for all ROWS rows. Where a thread has k by itself, words that follow each other share a scale,
// and no sums meet. A row's bits do not depend on the other rows.
// Loops: words of a row. Workgroup memory: ROWS · (THREADS + 8) · 16 bytes. Blocks: shared/blocks.wgsl.

struct Params {
  rows: u32,
  d_in: u32,
  d_out: u32,
  bits: u32,             // of a weight, 4 or 8
  x_row: u32,            // strides; the weight's in units of 16 bytes
  weight_row: u32,
  residual_row: u32,
  y_row: u32,
  activation: u32,
  bias: u32,             // whether bound
  residual: u32,
  x_offset: u32,
  weight_offset: u32,    // in words
  bias_offset: u32,
  residual_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;      // (d_out, units)
@group(0) @binding(2) var<storage, read> bias: array<Storage>;          // (d_out)
@group(1) @binding(0) var<storage, read> x: array<Storage>;             // (rows, d_in)
@group(1) @binding(1) var<storage, read> residual: array<Storage>;      // (rows, d_out)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;       // (rows, d_out)

const COLUMNS: u32 = 4u * THREADS / K_THREADS;
const ALONE: bool = K_THREADS == 1u;                                    // whether a thread has k by itself

var<workgroup> partial: array<vec4<f32>, ROWS * THREADS>;               // [row][thread], four columns
var<workgroup> shares: array<vec4<f32>, ROWS * 8u>;                     // [row][eighth]

fn x4(row: u32, k: u32) -> vec4<f32> {
  let at = params.x_offset + row * params.x_row + k;
  return keep(group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]), params.d_in - k);
}

// What a thread has under way of the weight rows of four columns.
struct Ahead { words: array<vec4<u32>, AHEAD>, scales: array<vec4<f32>, AHEAD> }

fn words_at(starts: vec4<u32>, k: u32) -> vec4<u32> {
  return vec4<u32>(block_word(starts.x, k), block_word(starts.y, k), block_word(starts.z, k), block_word(starts.w, k));
}

fn scales_at(starts: vec4<u32>, k: u32) -> vec4<f32> {
  return vec4<f32>(block_scale(starts.x, k), block_scale(starts.y, k), block_scale(starts.z, k), block_scale(starts.w, k));
}

// Words `first`, `first` + K_THREADS and so on of rows of `words`.
fn ahead_of(starts: vec4<u32>, first: u32, words: u32) -> Ahead {
  let step = 32u / params.bits;                                         // weights of a word
  var ahead = Ahead();
  if ALONE {                                                            // one unit of each row
    let unit = starts + block_unit(first * step);
    let units = array<vec4<u32>, 4>(weight[unit.x], weight[unit.y], weight[unit.z], weight[unit.w]);
    let scales = scales_at(starts, first * step);
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      ahead.words[a] = vec4<u32>(units[0][a], units[1][a], units[2][a], units[3][a]);
      ahead.scales[a] = scales;
    }
    return ahead;
  }
  for (var a = 0u; a < AHEAD; a++) {  // unroll
    let k = min(first + a * K_THREADS, words - 1u) * step;
    ahead.words[a] = words_at(starts, k);
    ahead.scales[a] = scales_at(starts, k);
  }
  return ahead;
}

fn finish(row: u32, n: u32, sum: vec4<f32>) {
  var v = sum;
  if params.bias != 0u {
    let at = params.bias_offset + n;
    v += group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
  }
  var added = vec4<f32>(0.0);
  if params.residual != 0u {
    let at = params.residual_offset + row * params.residual_row + n;
    added = group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
  }
  v = activate_onto(v, params.activation, added);
  let at = params.y_offset + row * params.y_row + n;
  for (var c = 0u; c < 4u / LANES; c++) {
    if n + c * LANES < params.d_out { y[at / LANES + c] = pick(v, c); }
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tiles_m = (params.rows + ROWS - 1u) / ROWS;
  let tile = workgroup_number(id);
  if tile >= tiles_m * ((params.d_out + COLUMNS - 1u) / COLUMNS) { return; }
  let m = tile % tiles_m * ROWS;
  let rows = min(ROWS, params.rows - m);
  let n = tile / tiles_m * COLUMNS + thread / K_THREADS * 4u;
  let own = thread % K_THREADS;
  let starts = params.weight_offset / 4u + min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(params.d_out - 1u)) * params.weight_row;

  let step = 32u / params.bits;
  let words = (params.d_in + step - 1u) / step;
  var sums: array<vec4<f32>, ROWS>;
  for (var first = select(words, own, n < params.d_out); first < words; first += K_THREADS * AHEAD) {
    let ahead = ahead_of(starts, first, words);
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      let word = first + a * K_THREADS;
      for (var k = word * step; k < min((word + 1u) * step, params.d_in); k += 4u) {
        let w = transpose(mat4x4<f32>(block_integers(ahead.words[a].x, k), block_integers(ahead.words[a].y, k),
                                      block_integers(ahead.words[a].z, k), block_integers(ahead.words[a].w, k)));
        for (var r = 0u; r < ROWS; r++) {  // unroll
          if r < rows {
            let v = x4(m + r, k);
            let products = fma(vec4<f32>(v.w), w[3], fma(vec4<f32>(v.z), w[2], fma(vec4<f32>(v.y), w[1], v.x * w[0])));
            sums[r] = fma(products, ahead.scales[a], sums[r]);
          }
        }
      }
    }
  }
  for (var r = 0u; r < ROWS; r++) {  // unroll
    partial[r * THREADS + thread] = sums[r];
  }
  if !ALONE {
    workgroupBarrier();
    for (var item = thread; item < rows * 8u; item += THREADS) {
      let at = item * (THREADS / 8u);
      var sum = partial[at];
      for (var t = 1u; t < THREADS / 8u; t++) { sum += partial[at + t]; }
      shares[item] = sum;
    }
    workgroupBarrier();
  }
  for (var r = own; r < rows && n < params.d_out; r += K_THREADS) {
    var sum = partial[r * THREADS + thread];
    if !ALONE {
      sum = shares[r * 8u];
      for (var t = 1u; t < 8u; t++) { sum += shares[r * 8u + t]; }
    }
    finish(m + r, n, sum);
  }
}
