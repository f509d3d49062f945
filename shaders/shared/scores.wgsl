// What a score becomes and which keys a query sees. With p = i + offset:
//   score   = softcap(scale · q·k) − slope[h] · |p − j| + additive[i, j], or + relative[h, reach + clamp(j − p, −reach, reach)]
//   visible = j < k_len, key mask, boolean mask, j ≤ p if causal, p − left ≤ j ≤ p + right
// The kernel binds `mask` (B, NH, T, S) or (NH, 2 · reach + 1), u32, beside what shared/attention.wgsl needs. tanh4: shared/tanh.wgsl.

// The first and last key that any of the queries i0 .. i0 + count can see by position, as i32; first > last for none. Nothing
// overflows: positions and window widths lie within ±2^30, an open window is i32's largest, and reach is at least 0.
fn key_range(s: Sequence, i0: u32, count: u32) -> vec2<i32> {
  let p = i32(i0) + s.offset;
  let last = p + i32(count) - 1;
  let reach = select(params.attention.right, 0, (params.attention.flags & CAUSAL) != 0u);
  return vec2<i32>(max(max(p, 0) - params.attention.left, 0), last + min(reach, i32(s.k_len) - 1 - last));
}

// The bits of the finished scores of query i and keys j .. j + 3 of sequence b, given their products and which of the keys there are
// (`keys_exist`); −∞ where hidden.
fn finish_scores(product: vec4<f32>, exist: vec4<bool>, b: u32, h: u32, s: Sequence, i: u32, j: u32) -> vec4<u32> {
  let range = key_range(s, i, 1u);
  let keys = vec4<i32>(i32(j)) + vec4<i32>(0, 1, 2, 3);
  var visible = (keys >= vec4<i32>(range.x)) & (keys <= vec4<i32>(range.y)) & exist & vec4<bool>(i < s.q_len);
  var added = vec4<f32>(0.0);
  let flags = params.attention.flags;
  if (flags & (BOOLEAN_MASK | ADDITIVE_MASK)) != 0u {
    // Tiles reach past the last query and key, of which there may be none; the mask does not. What stands in for them is dropped: only
    // where it is read tells, and only shaders that check no index read it there.
    var row = params.attention.mask_offset + b * params.attention.mask_batch + h * params.attention.mask_head;
    var columns = min(vec4<u32>(keys), vec4<u32>(max(s.k_len, 1u) - 1u));
    if (flags & RELATIVE_MASK) != 0u {
      let reach = vec4<i32>(i32(params.attention.mask_row));
      columns = vec4<u32>(reach + clamp(keys - vec4<i32>(i32(i) + s.offset), -reach, reach));
    } else {
      row += min(i, max(s.q_len, 1u) - 1u) * params.attention.mask_row;
    }
    let at = row + columns * params.attention.mask_key;
    let bits = vec4<u32>(mask[at.x], mask[at.y], mask[at.z], mask[at.w]);
    if (flags & BOOLEAN_MASK) != 0u {
      visible = visible & (bits != vec4<u32>(0u));
    } else {
      let finite = bits != vec4<u32>(MINUS_INFINITY);
      visible = visible & finite;
      added = select(vec4<f32>(0.0), bitcast<vec4<f32>>(bits), finite);
    }
  }
  if (flags & ALIBI) != 0u {
    let distance = vec4<f32>(abs(vec4<i32>(i32(i) + s.offset) - keys));
    added = fma(vec4<f32>(-params.attention.slopes[h / 4u][h % 4u]), distance, added);
  }
  return select(vec4<u32>(MINUS_INFINITY), bitcast<vec4<u32>>(scale_scores(product, added)), visible);
}

// softcap(scale · x) + added. A cap 10⁴ times as large as a score leaves it as it is; what is to be its tanh may have no digits left. No
// product feeds an addition but by fma: what compilers make of one differs from form to form.
fn scale_scores(x: vec4<f32>, added: vec4<f32>) -> vec4<f32> {
  let scaled = fma(vec4<f32>(params.attention.scale), x, added);
  if (params.attention.flags & SOFTCAP) == 0u { return scaled; }
  let cap = vec4<f32>(params.attention.softcap);
  let t = params.attention.scale * x / cap;
  return select(fma(cap, tanh4(t), added), scaled, abs(t) < vec4<f32>(1e-4));
}
