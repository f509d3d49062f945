// Storage of f16 in pairs, for devices without the type: offsets, strides and inner sizes are even, except sizes of
// vectors that are only read. Stores saturate at ±65504.

const LANES: u32 = 2u;       // elements in a Storage
alias Storage = u32;

// Four neighbours, given the Storage of each: a holds the first two, c the last two.
fn group4(a: Storage, b: Storage, c: Storage, d: Storage) -> vec4<f32> { return vec4<f32>(unpack2x16float(a), unpack2x16float(c)); }

// The first `count` of four neighbours, zeros behind.
fn keep(v: vec4<f32>, count: u32) -> vec4<f32> {
  return select(vec4<f32>(0.0), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count));
}

// Storage number `i` of the 4 / LANES that four neighbours fill.
fn pick(v: vec4<f32>, i: u32) -> Storage {
  return pack2x16float(clamp(select(v.xy, v.zw, i != 0u), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}
