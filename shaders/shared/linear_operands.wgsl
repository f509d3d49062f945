// x and the weight of linear, four neighbours along k at a time, as shared/tile.wgsl and tile_quads.wgsl want them.

@group(0) @binding(1) var<storage, read> weight: array<Storage>;     // (d_out, d_in)
@group(1) @binding(0) var<storage, read> x: array<Storage>;          // (rows, d_in)

fn a_exists(m: u32) -> bool { return m < params.rows; }

// Where rows m .. m + 3 begin, in units of Storage; those past the last row are the last one.
fn a_rows(m: u32) -> vec4<u32> {
  let row = min(vec4<u32>(m, m + 1u, m + 2u, m + 3u), vec4<u32>(params.rows - 1u));
  return (params.x_offset + row * params.x_row) / LANES;
}

fn b_rows(n: u32) -> vec4<u32> {
  let row = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(params.d_out - 1u));
  return (params.weight_offset + row * params.weight_row) / LANES;
}

// x[k .. k + 3] of a row; with `tail` zeros for k past the last.
fn a4(row: u32, k: u32, tail: bool) -> vec4<f32> {
  if tail && k >= params.d_in { return vec4<f32>(0.0); }
  let at = row + k / LANES;
  let four = group4(x[at], x[at + 1u / LANES], x[at + 2u / LANES], x[at + 3u / LANES]);
  if tail { return keep(four, params.d_in - k); }
  return four;
}

fn weight4(row: u32, k: u32, tail: bool) -> vec4<f32> {
  if tail && k >= params.d_in { return vec4<f32>(0.0); }
  let at = row + k / LANES;
  let four = group4(weight[at], weight[at + 1u / LANES], weight[at + 2u / LANES], weight[at + 3u / LANES]);
  if tail { return keep(four, params.d_in - k); }
  return four;
}

fn b_block(rows: vec4<u32>, k: u32, tail: bool) -> mat4x4<f32> {
  return transpose(
    mat4x4<f32>(weight4(rows.x, k, tail), weight4(rows.y, k, tail), weight4(rows.z, k, tail), weight4(rows.w, k, tail)));
}
