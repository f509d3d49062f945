// 1 / √v.

// To less than one unit in the last place: adapters have inverseSqrt to two, and what it is off by scales a whole row. One step of
// Newton's method, where neither v nor the root is 0 or infinite.
fn inverse_root(v: f32) -> f32 {
  let root = inverseSqrt(v);
  let closer = fma(0.5 * root, fma(-(v * root), root, 1.0), root);
  return select(root, closer, bitcast<u32>(v) - 0x00800000u < 0x7f000000u);
}
