// What a score becomes and which keys a query sees. With p = i + offset:
//   score   = softcap(scale · q·k) − slope[h] · |p − j| + additive[i, j]
//   visible = j < k_len, key mask, boolean mask, j ≤ p if causal, p − left ≤ j ≤ p + right
// The kernel binds `mask` (B, NH, T, S), u32, beside what shared/attention.wgsl needs.

const MINUS_INFINITY: u32 = 0xff800000u;  // by its bits: WGSL may assume that no infinity exists

// The first and last key that any of the queries i0 .. i0 + count can see by position, as i32; first > last for none. Nothing
// overflows: positions and window widths lie within ±2^30, an open window is i32's largest, and reach is at least 0.
fn key_range(s: Sequence, i0: u32, count: u32) -> vec2<i32> {
  let p = i32(i0) + s.offset;
  let last = p + i32(count) - 1;
  let reach = select(params.attention.right, 0, (params.attention.flags & CAUSAL) != 0u);
  return vec2<i32>(max(max(p, 0) - params.attention.left, 0), last + min(reach, i32(s.k_len) - 1 - last));
}

// The bits of the finished score of query i and key j of sequence b, given the scaled and capped one; −∞ where hidden.
fn finish_score(score: f32, b: u32, h: u32, s: Sequence, i: u32, j: u32) -> u32 {
  let range = key_range(s, i, 1u);
  var visible = i < s.q_len && i32(j) >= range.x && i32(j) <= range.y && key_exists(b, s, j);
  var result = score;
  let flags = params.attention.flags;
  if (flags & ALIBI) != 0u {
    result -= params.attention.slopes[h / 4u][h % 4u] * f32(abs(i32(i) + s.offset - i32(j)));
  }
  if (flags & (BOOLEAN_MASK | ADDITIVE_MASK)) != 0u {
    let bits = mask[params.attention.mask_offset + b * params.attention.mask_batch + h * params.attention.mask_head
                    + i * params.attention.mask_row + j * params.attention.mask_key];
    if (flags & BOOLEAN_MASK) != 0u {
      visible = visible && bits != 0u;
    } else {
      visible = visible && bits != MINUS_INFINITY;
      result += select(0.0, bitcast<f32>(bits), bits != MINUS_INFINITY);
    }
  }
  return select(MINUS_INFINITY, bitcast<u32>(result), visible);
}

// softcap(scale · x). WGSL's tanh is good to 1e-5 absolute, which a large cap multiplies: near 0 its series stands in.
fn scale_score(x: f32) -> f32 {
  let scaled = params.attention.scale * x;
  if (params.attention.flags & SOFTCAP) == 0u { return scaled; }
  let t = clamp(scaled / params.attention.softcap, -15.0, 15.0);
  let s = t * t;
  let series = 1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869489)));
  return select(params.attention.softcap * tanh(t), scaled * series, abs(t) < 0.25);
}
