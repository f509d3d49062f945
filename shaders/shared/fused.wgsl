// What all forms of attention have in common: parameters, and what says which keys there are.

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
  statistics: u32,     // which are wanted: 0 none, 1 the logarithms of sums, 2 references and sums
  statistics_kind: u32,
  statistics_batch: u32,
  statistics_head: u32,
  q_offset: u32,
  k_offset: u32,
  v_offset: u32,
  out_offset: u32,
  statistics_offset: u32,
  splits: u32,         // parts of the keys, where they are shared out
  pad0: u32,
  pad1: u32,
  attention: Attention,
}

@group(0) @binding(0) var<uniform> params: Params;

@group(1) @binding(3) var<storage, read> sequences: array<u32>;              // (B, 8)
@group(1) @binding(4) var<storage, read> key_mask: array<u32>;               // (B, S)

// What a workgroup works on: set once, from uniform values.
var<private> batch_index: u32;
var<private> head_index: u32;
var<private> current: Sequence;
