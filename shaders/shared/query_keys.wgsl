// q · kᵀ by tiles, for shared/tile.wgsl: what attention_scores and attention_weights have in common.

// Where row 0 of the sequence's head begins, and its last row: set once, before the loads.
var<private> q_first: u32;
var<private> k_first: u32;
var<private> q_last: u32;
var<private> k_last: u32;

fn a_exists(i: u32) -> bool { return i <= q_last; }

fn a_rows(i: u32) -> vec4<u32> {
  return (q_first + min(vec4<u32>(i, i + 1u, i + 2u, i + 3u), vec4<u32>(q_last)) * params.q_row) / LANES;
}

fn b_rows(j: u32) -> vec4<u32> {
  return (k_first + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(k_last)) * params.k_row) / LANES;
}

fn a4(row: u32, d: u32, tail: bool) -> vec4<f32> {
  if tail && d >= params.head_size { return vec4<f32>(0.0); }
  let at = row + d / LANES;
  let four = group4(q[at], q[at + 1u / LANES], q[at + 2u / LANES], q[at + 3u / LANES]);
  if tail { return keep(four, params.head_size - d); }
  return four;
}

fn k4(row: u32, d: u32, tail: bool) -> vec4<f32> {
  if tail && d >= params.head_size { return vec4<f32>(0.0); }
  let at = row + d / LANES;
  let four = group4(k[at], k[at + 1u / LANES], k[at + 2u / LANES], k[at + 3u / LANES]);
  if tail { return keep(four, params.head_size - d); }
  return four;
}

fn b_block(rows: vec4<u32>, d: u32, tail: bool) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(k4(rows.x, d, tail), k4(rows.y, d, tail), k4(rows.z, d, tail), k4(rows.w, d, tail)));
}
