// cache_append: projected keys and values of new rows into a key/value cache
//
//   k (rows, NH_kv, HS), v (rows, NH_kv, VS), sequences (B, 8) -> cache (2, slots, NH_kv, S, W)
//
// New row t of a sequence is its key number k_len − q_len + t; one that the slot has no room for, or of no slot, is not written.
// A thread copies four columns of one row. Loops: constant.

struct Params {
  groups: u32,             // of four columns, in a head
  workgroups: u32,
  batch: u32,
  longest: u32,            // rows of a sequence
  heads: u32,
  head_size: u32,
  value_size: u32,
  capacity: u32,           // keys of a slot
  key_rows: u32,           // of the cache, up to where the last slot's first head ends
  sequence_stride: u32,    // strides
  k_row: u32,
  k_head: u32,
  v_row: u32,
  v_head: u32,
  cache_kind: u32,
  cache_head: u32,
  cache_row: u32,
  k_offset: u32,
  v_offset: u32,
  sequences_offset: u32,
  cache_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> k: array<Storage>;               // (rows, NH_kv, HS)
@group(1) @binding(1) var<storage, read> v: array<Storage>;               // (rows, NH_kv, VS)
@group(1) @binding(2) var<storage, read> sequences: array<u32>;           // (B, 8)
@group(1) @binding(3) var<storage, read_write> cache: array<Storage>;     // (2, slots, NH_kv, S, W)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let item = number * THREADS + thread;
  let d = item % params.groups * 4u;
  let head = item / params.groups % params.heads;
  let kind = item / params.groups / params.heads % 2u;
  let t = item / params.groups / params.heads / 2u % params.longest;
  let b = item / params.groups / params.heads / 2u / params.longest;
  if b >= params.batch { return; }
  let s = params.sequences_offset + b * params.sequence_stride;
  let key = sequences[s + 3u] - sequences[s + 1u] + t;  // wraps to more than any capacity where there are more rows than keys
  if t >= sequences[s + 1u] || key >= params.capacity { return; }
  let key_row = min(sequences[s + 2u], params.key_rows) + key;  // a start past them all wraps to no other slot
  if key_row >= params.key_rows { return; }
  let row = sequences[s] + t;
  let size = select(params.head_size, params.value_size, kind == 1u);
  let to = params.cache_offset + kind * params.cache_kind + key_row * params.cache_row + head * params.cache_head + d;
  for (var c = 0u; c < 4u / LANES; c++) {
    if d + c * LANES >= size { return; }
    if kind == 0u {
      cache[to / LANES + c] = k[(params.k_offset + row * params.k_row + head * params.k_head + d) / LANES + c];
    } else {
      cache[to / LANES + c] = v[(params.v_offset + row * params.v_row + head * params.v_head + d) / LANES + c];
    }
  }
}
