// Uniform numbers in −scale … scale, by a hash of seed and element: the same on every adapter. A tensor comes in parts.

struct Params { words: u32, seed: u32, pairs: u32, scale: f32, first: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<u32>;

// PCG's output function over a linear congruence (O'Neill 2014; Jarzynski and Olano 2020).
fn hash(v: u32) -> u32 {
  let state = v * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

fn number(element: u32) -> f32 {
  let bits = hash(element ^ hash(params.seed)) >> 8u;
  return (f32(bits) * (2.0 / 16777216.0) - 1.0) * params.scale;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let word = (id.y * 32768u + id.x) * 64u + thread;
  if word >= params.words { return; }
  let n = params.first + word;
  if params.pairs != 0u {
    tensor[word] = pack2x16float(vec2<f32>(number(2u * n), number(2u * n + 1u)));
  } else {
    tensor[word] = bitcast<u32>(number(n));
  }
}
