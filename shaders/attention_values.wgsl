// attention_values: out = probs · v
//
//   probs (B, NH, T, S), v (k_rows, NH_kv, VS) -> out (q_rows, NH, VS)
//
// A workgroup makes TILE_M queries × TILE_N columns of one head of one sequence. Keys past the length or hidden by the key mask
// are loaded as zeros, so that NaN in them never arrives. Rows of out that no sequence has are not written.
// Loops: keys up to k_len ≤ S. Workgroup memory: shared/tile.wgsl. (Vaswani et al., arXiv 1706.03762, 3.2.1)

struct Params {
  tiles_m: u32,
  tiles_n: u32,
  batch: u32,
  n_heads: u32,
  heads_per_kv: u32,   // query heads that share a value head
  value_size: u32,
  longest_q: u32,
  longest_k: u32,
  probs_batch: u32,    // strides
  probs_head: u32,
  probs_row: u32,
  v_row: u32,
  v_head: u32,
  out_row: u32,
  out_head: u32,
  probs_offset: u32,
  v_offset: u32,
  out_offset: u32,
  pad0: u32,
  pad1: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> probs: array<Wide>;           // (B, NH, T, S)
@group(1) @binding(1) var<storage, read> v: array<Storage>;            // (k_rows, NH_kv, VS)
@group(1) @binding(2) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(3) var<storage, read> key_mask: array<u32>;         // (B, S)
@group(1) @binding(4) var<storage, read_write> out: array<Storage>;    // (q_rows, NH, VS)

// For the loads: set once, from uniform values (a private variable does not count as one itself).
var<private> batch_index: u32;
var<private> current: Sequence;
var<private> probs_first: u32;
var<private> v_first: u32;

fn a_exists(i: u32) -> bool { return i < current.q_len; }

fn a_rows(i: u32) -> vec4<u32> {
  let row = min(vec4<u32>(i, i + 1u, i + 2u, i + 3u), vec4<u32>(current.q_len - 1u));
  return (probs_first + row * params.probs_row) / WIDE_LANES;
}

// The columns d .. d + 3 of v begin in one place; rows of v are keys.
fn b_rows(d: u32) -> vec4<u32> { return vec4<u32>(v_first + d, d, 0u, 0u); }

fn a4(row: u32, j: u32, tail: bool) -> vec4<f32> {
  if tail && j >= current.k_len { return vec4<f32>(0.0); }
  let at = row + j / WIDE_LANES;
  let four = wide4(probs[at], probs[at + 1u / WIDE_LANES], probs[at + 2u / WIDE_LANES], probs[at + 3u / WIDE_LANES]);
  if tail { return select(vec4<f32>(0.0), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(current.k_len - j)); }
  return four;
}

fn v4(first: u32, d: u32, j: u32) -> vec4<f32> {
  if d >= params.value_size || !key_exists(batch_index, current, j) { return vec4<f32>(0.0); }
  let at = first + j * params.v_row;
  return group4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]);
}

fn b_block(at: vec4<u32>, j: u32, tail: bool) -> mat4x4<f32> {
  return mat4x4<f32>(v4(at.x, at.y, j), v4(at.x, at.y, j + 1u), v4(at.x, at.y, j + 2u), v4(at.x, at.y, j + 3u));
}

fn work(id: vec3<u32>, thread: u32) {
  let number = workgroup_number(id);
  let tiles = params.tiles_m * params.tiles_n;
  if number >= tiles * params.n_heads * params.batch { return; }
  let i0 = number % params.tiles_m * TILE_M;
  let d0 = number / params.tiles_m % params.tiles_n * TILE_N;
  let h = number / tiles % params.n_heads;
  let b = number / tiles / params.n_heads;
  let s = sequence(b, params.longest_q, params.longest_k);
  if i0 >= s.q_len { return; }
  batch_index = b;
  current = s;
  probs_first = params.probs_offset + b * params.probs_batch + h * params.probs_head;
  v_first = params.v_offset + s.k_start * params.v_row + h / params.heads_per_kv * params.v_head;

  var sum: Accumulator;
  multiply(&sum, thread, i0, d0, 0u, s.k_len);

  for (var i = 0u; i < THREAD_M; i++) {
    var sums = take_row(&sum);
    let row = i0 + tile_row(thread, i);
    for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
      let d = d0 + tile_column(thread, j);
      if row < s.q_len && d < params.value_size {
        let at = params.out_offset + (s.q_start + row) * params.out_row + h * params.out_head + d;
        for (var c = 0u; c < 4u / LANES; c++) {
          if d + c * LANES < params.value_size { out[at / LANES + c] = pick(sums[j], c); }
        }
      }
    }
  }
}
