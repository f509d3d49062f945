// Storage in single f16: any offset, stride and inner size. Stores saturate at ±65504.

const LANES: u32 = 1u;       // elements in a Storage
alias Storage = f16;

// Four neighbours, given the Storage of each.
fn group4(a: Storage, b: Storage, c: Storage, d: Storage) -> vec4<f32> { return vec4<f32>(vec4<f16>(a, b, c, d)); }
// The same as they are stored, for matrices.
fn half4(a: Storage, b: Storage, c: Storage, d: Storage) -> vec4<f16> { return vec4<f16>(a, b, c, d); }

// The first `count` of four neighbours, zeros behind.
fn keep(v: vec4<f32>, count: u32) -> vec4<f32> {
  return select(vec4<f32>(0.0), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count));
}

// Storage number `i` of the 4 / LANES that four neighbours fill.
fn pick(v: vec4<f32>, i: u32) -> Storage { return f16(clamp(v[i], -65504.0, 65504.0)); }
