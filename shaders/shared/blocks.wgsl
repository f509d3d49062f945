// Weights as integers of 4 or 8 bits, in blocks of 128 columns of a row: four scales in f32, one for 32 weights each, then the weights in
// two's complement, the lowest bits first. What a row lacks to whole blocks is zeros.
// The kernel binds `weight` (d_out, blocks of 1 + bits units) as units of 16 bytes and has the parameter `bits`.

// The scale of weight k of the row that begins at unit `start`.
fn block_scale(start: u32, k: u32) -> f32 {
  return bitcast<f32>(weight[start + k / 128u * (1u + params.bits)][k / 32u % 4u]);
}

// Behind the first unit of a row the one with weight k.
fn block_unit(k: u32) -> u32 { return k / 128u * (1u + params.bits) + 1u + k % 128u * params.bits / 128u; }

// The word with weight k.
fn block_word(start: u32, k: u32) -> u32 { return weight[start + block_unit(k)][k * params.bits / 32u % 4u]; }

// Weights k .. k + 3 of a word, before their scale.
fn block_integers(word: u32, k: u32) -> vec4<f32> {
  let above = vec4<u32>(32u - params.bits - k * params.bits % 32u) - vec4<u32>(0u, 1u, 2u, 3u) * params.bits;
  return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << above) >> vec4<u32>(32u - params.bits));
}
