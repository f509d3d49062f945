// What both forms of attention have in common: parameters, bindings, and what happens to a finished row.

struct Params {
  tiles_m: u32,
  batch: u32,
  n_heads: u32,
  heads_per_kv: u32,   // query heads that share a key head
  head_size: u32,
  value_size: u32,
  longest_q: u32,
  longest_k: u32,
  q_row: u32,          // strides
  q_head: u32,
  k_row: u32,
  k_head: u32,
  v_row: u32,
  v_head: u32,
  out_row: u32,
  out_head: u32,
  statistics: u32,     // which are wanted: 0 none, 1 the logarithms of sums, 2 largest scores and sums
  statistics_kind: u32,
  statistics_batch: u32,
  statistics_head: u32,
  q_offset: u32,
  k_offset: u32,
  v_offset: u32,
  out_offset: u32,
  statistics_offset: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> q: array<Storage>;                  // (q_rows, NH, HS)
@group(1) @binding(1) var<storage, read> k: array<Storage>;                  // (k_rows, NH_kv, HS)
@group(1) @binding(2) var<storage, read> v: array<Storage>;                  // (k_rows, NH_kv, VS)
@group(1) @binding(3) var<storage, read> sequences: array<u32>;              // (B, 8)
@group(1) @binding(4) var<storage, read> key_mask: array<u32>;               // (B, S)
@group(1) @binding(5) var<storage, read> mask: array<u32>;                   // (B, NH, T, S)
@group(1) @binding(6) var<storage, read_write> out: array<Storage>;          // (q_rows, NH, VS)
@group(1) @binding(7) var<storage, read_write> statistics: array<u32>;       // (B, NH, T) or (2, B, NH, T), by their bits

// What a workgroup works on: set once, from uniform values.
var<private> batch_index: u32;
var<private> head_index: u32;
var<private> current: Sequence;

// What is wanted of a row: the logarithm of its sum of exponentials, by its bits −∞ where nothing was summed and for a row that
// the sequence lacks, or its largest score and the sum below it.
fn store_statistics(i: u32, top: f32, sum: f32) {
  if params.statistics == 0u || i >= params.longest_q { return; }
  let at = params.statistics_offset + batch_index * params.statistics_batch + head_index * params.statistics_head + i;
  let there = sum > 0.0 && i < current.q_len;
  if params.statistics == 1u {
    statistics[at] = select(MINUS_INFINITY, bitcast<u32>(top + log(sum)), there);
  } else {
    statistics[at] = bitcast<u32>(top);
    statistics[at + params.statistics_kind] = bitcast<u32>(select(0.0, sum, there));
  }
}

// Columns d .. d + 3 of row i, as many of them as out has.
fn store(value: vec4<f32>, i: u32, d: u32) {
  if i >= current.q_len || d >= params.value_size { return; }
  let at = params.out_offset + (current.q_start + i) * params.out_row + head_index * params.out_head + d;
  for (var c = 0u; c < 4u / LANES; c++) {
    if d + c * LANES < params.value_size { out[at / LANES + c] = pick(value, c); }
  }
}
