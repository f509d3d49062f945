// Subgroups of EMULATED threads on any device: what they exchange goes through workgroup memory. Subgroups and their lanes are numbered
// against local_invocation_index, as WGSL promises nothing of that order.

struct Emulated { size: u32, number: u32, lane: u32 }

var<workgroup> exchanged: array<vec4<u32>, 2u * THREADS>;  // by turns, so that one barrier is enough
var<private> emulated_index: u32;
var<private> exchanges: u32;

fn emulate(index: u32) -> Emulated {
  var size = EMULATED;
  emulated_index = index;
  return Emulated(size, max(THREADS / size, 1u) - 1u - index / size, (min(size, THREADS) - 1u) ^ (index % size));
}

fn exchange(v: vec4<u32>, lanes: u32) -> vec4<u32> {
  let at = exchanges % 2u * THREADS;
  exchanges++;
  exchanged[at + emulated_index] = v;
  workgroupBarrier();
  return exchanged[at + (emulated_index ^ lanes)];
}

fn exchange_vec4(v: vec4<f32>, lanes: u32) -> vec4<f32> { return bitcast<vec4<f32>>(exchange(bitcast<vec4<u32>>(v), lanes)); }
fn exchange_f32(v: f32, lanes: u32) -> f32 { return exchange_vec4(vec4<f32>(v), lanes).x; }
fn exchange_u32(v: u32, lanes: u32) -> u32 { return exchange(vec4<u32>(v), lanes).x; }
