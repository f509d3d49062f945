// attention_scores: scores = the finished scores of all queries and keys, −∞ where a key is hidden
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS) -> scores (B, NH, T, S), stored by their bits
//
// A workgroup makes TILE_M queries × TILE_N keys of one head of one sequence. Tiles that no query can see by position are
// filled without a product. Every element of scores is written, those of rows and keys that a sequence lacks as −∞.
// Loops: k up to head_size. Workgroup memory: shared/tile.wgsl. (Vaswani et al., arXiv 1706.03762, 3.2.1)

struct Params {
  tiles_m: u32,
  tiles_n: u32,
  batch: u32,
  n_heads: u32,
  heads_per_kv: u32,   // query heads that share a key head
  head_size: u32,
  longest_q: u32,
  longest_k: u32,
  q_row: u32,          // strides
  q_head: u32,
  k_row: u32,
  k_head: u32,
  scores_batch: u32,
  scores_head: u32,
  scores_row: u32,
  q_offset: u32,
  k_offset: u32,
  scores_offset: u32,
  pad0: u32,
  pad1: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> q: array<Storage>;            // (q_rows, NH, HS)
@group(1) @binding(1) var<storage, read> k: array<Storage>;            // (k_rows, NH_kv, HS)
@group(1) @binding(2) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(3) var<storage, read> key_mask: array<u32>;         // (B, S)
@group(1) @binding(4) var<storage, read> mask: array<u32>;             // (B, NH, T, S)
@group(1) @binding(5) var<storage, read_write> scores: array<Bits>;    // (B, NH, T, S)

fn work(id: vec3<u32>, thread: u32) {
  let number = workgroup_number(id);
  let tiles = params.tiles_m * params.tiles_n;
  if number >= tiles * params.n_heads * params.batch { return; }
  let i0 = number % params.tiles_m * TILE_M;
  let j0 = number / params.tiles_m % params.tiles_n * TILE_N;
  let h = number / tiles % params.n_heads;
  let b = number / tiles / params.n_heads;

  let s = sequence(b, params.longest_q, params.longest_k);
  let seen = key_range(s, i0, TILE_M);
  var sum: Accumulator;
  if i0 < s.q_len && i32(j0) <= seen.y && i32(j0 + TILE_N) > seen.x {
    q_first = params.q_offset + s.q_start * params.q_row + h * params.q_head;
    k_first = params.k_offset + s.k_start * params.k_row + h / params.heads_per_kv * params.k_head;
    q_last = s.q_len - 1u;
    k_last = s.k_len - 1u;
    multiply(&sum, thread, i0, j0, 0u, params.head_size);
  }

  for (var i = 0u; i < THREAD_M; i++) {
    var sums = take_row(&sum);
    for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
      store_scores(sums[j], b, h, s, i0 + tile_row(thread, i), j0 + tile_column(thread, j));
    }
  }
}
