// Storage in aligned groups of four f16: offsets, strides and inner sizes are multiples of four. Stores saturate at ±65504.

const LANES: u32 = 4u;       // elements in a Storage
alias Storage = vec4<f16>;

// Four neighbours, given the Storage of each; here the first holds them all and the other loads vanish.
fn group4(a: Storage, b: Storage, c: Storage, d: Storage) -> vec4<f32> { return vec4<f32>(a); }
// The same as they are stored, for matrices.
fn half4(a: Storage, b: Storage, c: Storage, d: Storage) -> vec4<f16> { return a; }

// The first `count` of four neighbours, zeros behind; a group of four is never cut.
fn keep(v: vec4<f32>, count: u32) -> vec4<f32> { return v; }

// Storage number `i` of the 4 / LANES that four neighbours fill.
fn pick(v: vec4<f32>, i: u32) -> Storage { return vec4<f16>(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }
