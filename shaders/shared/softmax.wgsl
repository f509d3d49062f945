// Softmax without an infinity: maxima start at a finite value, hidden scores are known by the bits of −∞.

const LOWEST: f32 = -3.402823466e38;

// exp of differences of at most 0, or not much more where they are to a score near the largest, however far below: exp(−104) is 0 in
// f32.
fn exp0(d: vec4<f32>) -> vec4<f32> { return exp(max(d, vec4<f32>(-104.0))); }

fn is_hidden(score: vec4<f32>) -> vec4<bool> { return bitcast<vec4<u32>>(score) == vec4<u32>(MINUS_INFINITY); }
