// 1 / √v.

// To half a unit in the last place or hardly more, where fma is one rounding: adapters have inverseSqrt to two units, and what it is off by
// scales a whole row. One step of Newton's method, where neither v nor the root is 0 or infinite.
fn inverse_root(v: f32) -> f32 {
  let root = inverseSqrt(v);
  let scaled = v * root;
  let lost = fma(v, root, -scaled);  // by the rounding of `scaled`
  let short = fma(-lost, root, fma(-scaled, root, 1.0));
  return select(root, fma(0.5 * root, short, root), bitcast<u32>(v) - 0x00800000u < 0x7f000000u);
}
