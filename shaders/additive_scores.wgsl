// additive_scores: scores = the finished scores of vᵀ tanh(q + k), −∞ where a key is hidden
//
//   q (q_rows, NH, HS) = W₂ · query, k (k_rows, NH, HS) = W₁ · key, vector (NH, HS) -> scores (B, NH, T, S), by their bits
//
// A thread makes one query × four keys; there is no product to tile, each term has a tanh of its own.
// Loops: d up to head_size. (Bahdanau et al., arXiv 1409.0473)

struct Params {
  workgroups: u32,
  key_groups: u32,     // groups of four keys
  batch: u32,
  n_heads: u32,
  head_size: u32,
  longest_q: u32,
  longest_k: u32,
  q_row: u32,          // strides
  q_head: u32,
  k_row: u32,
  k_head: u32,
  vector_head: u32,
  scores_batch: u32,
  scores_head: u32,
  scores_row: u32,
  q_offset: u32,
  k_offset: u32,
  vector_offset: u32,
  scores_offset: u32,
  pad0: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> vector: array<Storage>;       // (NH, HS)
@group(1) @binding(0) var<storage, read> q: array<Storage>;            // (q_rows, NH, HS)
@group(1) @binding(1) var<storage, read> k: array<Storage>;            // (k_rows, NH, HS)
@group(1) @binding(2) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(3) var<storage, read> key_mask: array<u32>;         // (B, S)
@group(1) @binding(4) var<storage, read> mask: array<u32>;             // (B, NH, T, S)
@group(1) @binding(5) var<storage, read_write> scores: array<Bits>;    // (B, NH, T, S)

fn q4(at: u32) -> vec4<f32> { return group4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]); }
fn k4(at: u32) -> vec4<f32> { return group4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]); }
fn vector4(at: u32, count: u32) -> vec4<f32> {
  return keep(group4(vector[at / LANES], vector[(at + 1u) / LANES], vector[(at + 2u) / LANES], vector[(at + 3u) / LANES]), count);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let group = number * THREADS + thread;
  let j = group % params.key_groups * 4u;
  let i = group / params.key_groups % params.longest_q;
  let h = group / params.key_groups / params.longest_q % params.n_heads;
  let b = group / params.key_groups / params.longest_q / params.n_heads;
  if b >= params.batch { return; }

  let s = sequence(b, params.longest_q, params.longest_k);
  let q_at = params.q_offset + (s.q_start + min(i, max(s.q_len, 1u) - 1u)) * params.q_row + h * params.q_head;
  let v_at = params.vector_offset + h * params.vector_head;
  var products: vec4<f32>;
  for (var c = 0u; c < 4u; c++) {
    if !(i < s.q_len && key_exists(b, s, j + c)) { continue; }
    let k_at = params.k_offset + (s.k_start + j + c) * params.k_row + h * params.k_head;
    var sum = vec4<f32>(0.0);
    for (var d = 0u; d < params.head_size; d += 4u) {
      let t = keep(tanh4(q4(q_at + d) + k4(k_at + d)), params.head_size - d);
      sum = fma(vector4(v_at + d, params.head_size - d), t, sum);
    }
    products[c] = (sum.x + sum.y) + (sum.z + sum.w);
  }
  store_scores(products, b, h, s, i, j);
}
