// The activations, four at a time; the numbers are those of `Activation` in Rust.

// erf to 1.5e-7 relative below 1 and 6e-8 absolute above: x · P(x²), and 1 − exp(Q(|x|)); both polynomials are Chebyshev fits.
fn erf4(x: vec4<f32>) -> vec4<f32> {
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
  return select(sign(x) * (1.0 - exp(q)), x * p, abs(x) <= vec4<f32>(1.0));
}

// WGSL's tanh may give NaN for large arguments; past ±15 it is ±1 in f32.
fn tanh4(x: vec4<f32>) -> vec4<f32> { return tanh(clamp(x, vec4<f32>(-15.0), vec4<f32>(15.0))); }

fn activate(x: vec4<f32>, kind: u32) -> vec4<f32> {
  switch kind {
    case 1u: { return max(x, vec4<f32>(0.0)); }
    case 2u: { return 0.5 * x * (1.0 + erf4(x * 0.70710678)); }
    case 3u: {
      let c = clamp(x, vec4<f32>(-30.0), vec4<f32>(30.0));  // the cube stays finite; tanh is ±1 long before
      return 0.5 * x * (1.0 + tanh4(0.79788456 * fma(c * c * c, vec4<f32>(0.044715), c)));
    }
    // exp(-x) stays finite: all below −87 gives −1.4e-36, as good as the −0 that is right far below.
    case 4u: {
      let c = select(x, vec4<f32>(-87.0), x < vec4<f32>(-87.0));
      return c / (1.0 + exp(-c));
    }
    case 5u: { return tanh4(x); }
    default: { return x; }
  }
}
