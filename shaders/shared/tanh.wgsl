// tanh, four at a time: of the activation, of additive scores and of the softcap.

// 1 − 2 / (1 + exp(2 |x|)) with the sign of x, and a series near 0: WGSL's tanh is good to 1e-5 absolute only, and may give NaN for large
// arguments. Past ±15 it is ±1 in f32.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
  let t = clamp(x, vec4<f32>(-15.0), vec4<f32>(15.0));
  let s = t * t;
  let p = fma(s, fma(s, fma(s, vec4<f32>(0.021869489), vec4<f32>(-0.053968254)), vec4<f32>(0.13333333)), vec4<f32>(-0.33333333));
  let far = fma(vec4<f32>(-2.0), 1.0 / (1.0 + exp(2.0 * abs(t))), vec4<f32>(1.0));
  return select(select(far, -far, t < vec4<f32>(0.0)), fma(t * s, p, t), s < vec4<f32>(0.0625));
}
