// Rows of logits by their keys, for kernels that bind `logits` and `bias` and have params.columns.

const LARGE: f32 = 8.0e34;            // twice this, times or over a penalty of up to 2¹⁰, stays below 2¹²⁷

// The model's logits c .. c + 3 of the row that begins at `row`, 0 for what cannot be chosen: NaN, −∞, columns past the last.
fn own_logits(row: u32, c: u32) -> vec4<u32> {
  let at = row + c;
  let keys = order(bits4(logits[at / WIDE_LANES], logits[(at + 1u) / WIDE_LANES], logits[(at + 2u) / WIDE_LANES], logits[(at + 3u) / WIDE_LANES]));
  let inside = c + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.columns);
  return select(vec4<u32>(0u), keys, inside & (keys > vec4<u32>(KEY_OF_MINUS_INFINITY)));
}

// Those of `keys` as numbers to add to.
fn limited(keys: vec4<u32>) -> vec4<f32> { return clamp(number(keys), vec4<f32>(-LARGE), vec4<f32>(LARGE)); }

// x with the biases c .. c + 3 of the row that begins at `row`; what they ban is no longer possible.
fn add_bias(row: u32, c: u32, x: vec4<f32>, possible: ptr<function, vec4<bool>>) -> vec4<f32> {
  let at = row + min(c + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.columns - 1u));
  let added = order(vec4<u32>(bias[at.x], bias[at.y], bias[at.z], bias[at.w]));
  *possible = *possible & (added > vec4<u32>(KEY_OF_MINUS_INFINITY));
  return x + limited(added);
}

// Bits c .. c + 3 of a row of bits, one a token, whose word that has bit c is `word`; c is a multiple of four.
fn marked(word: u32, c: u32) -> vec4<bool> {
  return (vec4<u32>(word >> (c % 32u)) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u);
}

// Whether a key and a column's complement come before others: the larger key, of equal ones the lower column.
fn before(a: vec4<u32>, b: vec4<u32>) -> bool { return a.x > b.x || (a.x == b.x && a.y > b.y); }
fn better(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> { return vec4<u32>(select(b.xy, a.xy, before(a, b)), max(a.zw, b.zw)); }
