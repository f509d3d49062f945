// The options of attention (`AttentionOptions` in Rust), where a sequence lies, and which of its keys may be read.
// The kernel binds `sequences` (B, 8) and `key_mask` (B, S), both u32.

const CAUSAL: u32 = 1u;
const KEY_MASK: u32 = 2u;
const BOOLEAN_MASK: u32 = 4u;
const ADDITIVE_MASK: u32 = 8u;
const ALIBI: u32 = 16u;
const SOFTCAP: u32 = 32u;
const RELATIVE_MASK: u32 = 64u;  // beside ADDITIVE_MASK

const MINUS_INFINITY: u32 = 0xff800000u;  // by its bits: WGSL may assume that no infinity exists

struct Attention {
  scale: f32,
  softcap: f32,
  flags: u32,
  left: i32,                       // 2^31 - 1 where the window is open
  right: i32,
  key_mask_batch: u32,             // strides
  mask_batch: u32,
  mask_head: u32,
  mask_row: u32,                   // of a relative mask, its reach
  mask_key: u32,
  key_mask_key: u32,
  sequence_stride: u32,
  sequences_offset: u32,           // elements before the first, as for every binding
  key_mask_offset: u32,
  mask_offset: u32,
  sequence_count: u32,             // 0: no `sequences` is bound, and every row has all its keys
  slopes: array<vec4<f32>, 32>,
}

struct Sequence { q_start: u32, q_len: u32, k_start: u32, k_len: u32, offset: i32 }

// Sequence `b`, its lengths clamped to what the program was made for.
fn sequence(b: u32, longest_q: u32, longest_k: u32) -> Sequence {
  if params.attention.sequence_count == 0u {
    return Sequence(b * longest_q, longest_q, b * longest_k, longest_k, 0);
  }
  let at = params.attention.sequences_offset + b * params.attention.sequence_stride;
  return Sequence(sequences[at], min(sequences[at + 1u], longest_q), sequences[at + 2u], min(sequences[at + 3u], longest_k),
                  bitcast<i32>(sequences[at + 4u]));
}

// Whether key j may be read at all by sequence b: hidden keys may hold NaN.
fn key_exists(b: u32, s: Sequence, j: u32) -> bool {
  if j >= s.k_len { return false; }
  if (params.attention.flags & KEY_MASK) == 0u { return true; }
  return key_mask[params.attention.key_mask_offset + b * params.attention.key_mask_batch + j * params.attention.key_mask_key] != 0u;
}

// The same of keys j .. j + 3.
fn keys_exist(b: u32, s: Sequence, j: u32) -> vec4<bool> {
  return vec4<bool>(key_exists(b, s, j), key_exists(b, s, j + 1u), key_exists(b, s, j + 2u), key_exists(b, s, j + 3u));
}
