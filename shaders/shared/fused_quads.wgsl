// shared/fused_products.wgsl for threads in quads (shared/threads_quads.wgsl) that have the same rows: each of the four reads q, or the
// weights, at one place for all, which reaches the others by a broadcast. Depths are taken in fours, behind them are zeros or weights
// of 0. Sums have the bits of shared/fused_products.wgsl.

const_assert SCORE_GROUPS == 1u;

// Flat, as one comparison of a place with the length costs a CPU less than two.
var<workgroup> a_tile: array<vec4<f32>, A_ROWS * TILE_M / 4u>;
var<workgroup> b_tile: array<vec4<f32>, B_ROWS * GROUPS_N>;

fn a_at(row: u32, group: u32) -> vec4<f32> { return a_tile[row * (TILE_M / 4u) + group]; }
fn b_at(row: u32, group: u32) -> vec4<f32> { return b_tile[row * GROUPS_N + group]; }
fn put_a(row: u32, group: u32, v: vec4<f32>) { a_tile[row * (TILE_M / 4u) + group] = v; }
fn put_b(row: u32, group: u32, v: vec4<f32>) { b_tile[row * GROUPS_N + group] = v; }

fn add_scores(scores: ptr<function, Scores>, tx: u32, ty: u32, depth: u32) {
  for (var d = 0u; d < depth; d += 4u) {
    var a4 = array<vec4<f32>, ROW_GROUPS>();
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      a4[i] = a_at(d + place, swizzle_a(ty + i * GROUPS_M, d / 4u));
    }
    for (var c = 0u; c < 4u; c++) {  // unroll
      let b = b_at(d + c, swizzle_b(tx, d / 4u));
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = quadBroadcast(a4[i], c);
        (*scores)[i * 4u] = fma(vec4<f32>(a.x), b, (*scores)[i * 4u]);
        (*scores)[i * 4u + 1u] = fma(vec4<f32>(a.y), b, (*scores)[i * 4u + 1u]);
        (*scores)[i * 4u + 2u] = fma(vec4<f32>(a.z), b, (*scores)[i * 4u + 2u]);
        (*scores)[i * 4u + 3u] = fma(vec4<f32>(a.w), b, (*scores)[i * 4u + 3u]);
      }
    }
  }
}

fn add_values(sum: ptr<function, Output>, tx: u32, ty: u32, depth: u32) {
  for (var key = 0u; key < depth; key += 4u) {
    var a4 = array<vec4<f32>, ROW_GROUPS>();
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      a4[i] = a_at(key + place, swizzle_a(ty + i * GROUPS_M, key / 4u));
    }
    for (var c = 0u; c < 4u; c++) {  // unroll
      var b = array<vec4<f32>, VALUE_GROUPS>();
      for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
        b[j] = b_at((key + c) * VALUE_GROUPS + j, tx);
      }
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = quadBroadcast(a4[i], c);
        for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
          let at = i * 4u * VALUE_GROUPS + j;
          (*sum)[at] = fma(vec4<f32>(a.x), b[j], (*sum)[at]);
          (*sum)[at + VALUE_GROUPS] = fma(vec4<f32>(a.y), b[j], (*sum)[at + VALUE_GROUPS]);
          (*sum)[at + VALUE_GROUPS * 2u] = fma(vec4<f32>(a.z), b[j], (*sum)[at + VALUE_GROUPS * 2u]);
          (*sum)[at + VALUE_GROUPS * 3u] = fma(vec4<f32>(a.w), b[j], (*sum)[at + VALUE_GROUPS * 3u]);
        }
      }
    }
  }
}
