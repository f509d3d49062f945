// The activations, four at a time; the numbers are those of `Activation` in Rust. tanh4: shared/tanh.wgsl.

// No product feeds an addition but by fma, whose bits are the same in every form that an activation is part of.

// 1 + erf(x), erf to 1.5e-7 relative below 1 and 6e-8 absolute above: x · P(x²), and 1 − exp(Q(|x|)); both polynomials are Chebyshev
// fits.
fn one_plus_erf4(x: vec4<f32>) -> vec4<f32> {
  let t = min(abs(x), vec4<f32>(4.0));
  let s = min(t, vec4<f32>(1.0)) * min(t, vec4<f32>(1.0));
  var p = vec4<f32>(7.875874871388078e-05);
  p = fma(p, s, vec4<f32>(-0.000801686430349946));
  p = fma(p, s, vec4<f32>(0.005189087241888046));
  p = fma(p, s, vec4<f32>(-0.02685421146452427));
  p = fma(p, s, vec4<f32>(0.11283594369888306));
  p = fma(p, s, vec4<f32>(-0.3761262595653534));
  p = fma(p, s, vec4<f32>(1.1283791065216064));
  var q = vec4<f32>(1.6371513993362896e-06);
  q = fma(q, t, vec4<f32>(-4.605804133461788e-05));
  q = fma(q, t, vec4<f32>(0.0005968056502752006));
  q = fma(q, t, vec4<f32>(-0.004759596195071936));
  q = fma(q, t, vec4<f32>(0.026421135291457176));
  q = fma(q, t, vec4<f32>(-0.11008008569478989));
  q = fma(q, t, vec4<f32>(-0.6318260431289673));
  q = fma(q, t, vec4<f32>(-1.1302334070205688));
  q = fma(q, t, vec4<f32>(0.0003201380604878068));
  let rest = select(exp(q), vec4<f32>(0.0), t >= vec4<f32>(4.0));  // below what counts beside 1, but x may be large
  return select(fma(sign(x), 1.0 - rest, vec4<f32>(1.0)), fma(x, p, vec4<f32>(1.0)), abs(x) <= vec4<f32>(1.0));
}

// 1 / (1 + exp(−x)); below −87 it stays at 1.6e-38.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> { return 1.0 / (1.0 + exp(-max(x, vec4<f32>(-87.0)))); }

// activation(x) + added
fn activate_onto(x: vec4<f32>, kind: u32, added: vec4<f32>) -> vec4<f32> {
  // What a sigmoid of about 0 is multiplied with: all below −87 gives −1.4e-36, as good as the −0 that is right far below.
  let c = select(x, vec4<f32>(-87.0), x < vec4<f32>(-87.0));
  switch kind {
    case 1u: { return max(x, vec4<f32>(0.0)) + added; }
    case 2u: { return fma(0.5 * x, one_plus_erf4(x * 0.70710678), added); }
    case 3u: {  // 0.5 · (1 + tanh(u)) is sigmoid(2 u)
      let d = clamp(x, vec4<f32>(-30.0), vec4<f32>(30.0));  // the cube stays finite; the sigmoid is 0 or 1 long before
      return fma(c, sigmoid4(1.5957691 * fma(d * d * d, vec4<f32>(0.044715), d)), added);
    }
    case 4u: { return fma(c, sigmoid4(x), added); }
    case 5u: { return tanh4(x) + added; }
    default: { return x + added; }
  }
}

fn activate(x: vec4<f32>, kind: u32) -> vec4<f32> { return activate_onto(x, kind, vec4<f32>(0.0)); }
