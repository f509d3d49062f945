// cache_gather: slots of one key/value cache into the slots of another
//
//   from (2, slots, NH_kv, S, W), parents (n), lengths (n) -> to (2, slots of to, NH_kv, S of to, W)
//
// Slot i of `to` becomes slot parents[i] of `from`, its first lengths[i] keys and values; what is behind them stays. A parent that
// `from` lacks leaves its slot as it is. A thread copies four columns of one row. Loops: constant.

struct Params {
  groups: u32,             // of four columns, in a row
  workgroups: u32,
  columns: u32,
  heads: u32,
  count: u32,              // slots to fill
  keys: u32,               // of a slot, in the shorter cache
  from_slots: u32,
  from_kind: u32,          // strides
  from_slot: u32,
  from_head: u32,
  from_row: u32,
  to_kind: u32,
  to_slot: u32,
  to_head: u32,
  to_row: u32,
  parent_stride: u32,
  length_stride: u32,
  lengths_bound: u32,      // whether bound; else all keys are copied
  from_offset: u32,
  parents_offset: u32,
  lengths_offset: u32,
  to_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> origin: array<Storage>;        // (2, slots, NH_kv, S, W)
@group(1) @binding(1) var<storage, read> parents: array<u32>;           // (n)
@group(1) @binding(2) var<storage, read> lengths: array<u32>;           // (n)
@group(1) @binding(3) var<storage, read_write> to: array<Storage>;      // (2, slots, NH_kv, S, W)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let item = number * THREADS + thread;
  let column = item % params.groups * 4u;
  let key = item / params.groups % params.keys;
  let head = item / params.groups / params.keys % params.heads;
  let slot_kind = item / params.groups / params.keys / params.heads;
  let slot = slot_kind / 2u;
  let kind = slot_kind % 2u;
  if slot >= params.count { return; }
  let parent = parents[params.parents_offset + slot * params.parent_stride];
  if parent >= params.from_slots { return; }
  if params.lengths_bound != 0u && key >= lengths[params.lengths_offset + slot * params.length_stride] { return; }
  let at = params.from_offset + kind * params.from_kind + parent * params.from_slot + head * params.from_head + key * params.from_row + column;
  let to_at = params.to_offset + kind * params.to_kind + slot * params.to_slot + head * params.to_head + key * params.to_row + column;
  for (var c = 0u; c < 4u / LANES; c++) {
    if column + c * LANES < params.columns { to[to_at / LANES + c] = origin[at / LANES + c]; }
  }
}
