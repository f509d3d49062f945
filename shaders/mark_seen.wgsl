// mark_seen: the tokens of new rows as bits of their text
//
//   ids (rows), sequences (B, 8) -> seen (B, V / 32)
//
// A workgroup marks the rows of one sequence; one that begins a text, at offset 0, clears its bits first. Ids past the last bit
// are left out.
// Loops: words, the longest sequence.

struct Params {
  batch: u32,
  longest: u32,
  words: u32,              // of 32 tokens
  id_stride: u32,
  sequence_row: u32,
  seen_row: u32,
  ids_offset: u32,
  sequences_offset: u32,
  seen_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> ids: array<u32>;
@group(1) @binding(1) var<storage, read> sequences: array<u32>;
@group(1) @binding(2) var<storage, read_write> seen: array<atomic<u32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let b = workgroup_number(id);
  if b >= params.batch { return; }
  let at = params.sequences_offset + b * params.sequence_row;
  let count = min(sequences[at + 1u], params.longest);
  let row = params.seen_offset + b * params.seen_row;
  if count != 0u && sequences[at + 4u] == 0u {
    for (var word = thread; word < params.words; word += THREADS) { atomicStore(&seen[row + word], 0u); }
  }
  storageBarrier();
  for (var t = thread; t < count; t += THREADS) {
    let token = ids[params.ids_offset + (sequences[at] + t) * params.id_stride];
    if token / 32u < params.words { atomicOr(&seen[row + token / 32u], 1u << (token % 32u)); }
  }
}
