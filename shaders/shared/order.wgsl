// Floats as integers of the same order.

const KEY_OF_MINUS_INFINITY: u32 = 0x00800000u;
const LOWEST_KEY: u32 = 0x01000000u;  // those of ±2¹²⁷: sums of halves, and twice the half, stay finite
const HIGHEST_KEY: u32 = 0xff000000u;

// Numbers that order as the floats with these bits do; 0 for NaN.
fn order(bits: vec4<u32>) -> vec4<u32> {
  let magnitude = bits & vec4<u32>(0x7fffffffu);
  let ordered = select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
  return select(ordered, vec4<u32>(0u), magnitude > vec4<u32>(0x7f800000u));
}

// The floats of such numbers, at most 2¹²⁷ in magnitude.
fn number(keys: vec4<u32>) -> vec4<f32> {
  let key = clamp(keys, vec4<u32>(LOWEST_KEY), vec4<u32>(HIGHEST_KEY));
  let negative = key < vec4<u32>(0x80000000u);
  return bitcast<vec4<f32>>(select(key - 0x80000000u, vec4<u32>(0x80000000u) | (0x80000000u - key), negative));
}
