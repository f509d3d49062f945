// The tiles of attention.wgsl and their products, each thread for itself: scores += q · kᵀ and sum += weights · v. Tiles are taken whole,
// as compilers unroll a loop of known length: behind `depth` are zeros, or weights of 0.

var<workgroup> a_tile: array<array<vec4<f32>, TILE_M / 4u>, A_ROWS>;
var<workgroup> b_tile: array<array<vec4<f32>, GROUPS_N>, B_ROWS>;

fn a_at(row: u32, group: u32) -> vec4<f32> { return a_tile[row][group]; }
fn b_at(row: u32, group: u32) -> vec4<f32> { return b_tile[row][group]; }
fn put_a(row: u32, group: u32, v: vec4<f32>) { a_tile[row][group] = v; }
fn put_b(row: u32, group: u32, v: vec4<f32>) { b_tile[row][group] = v; }

fn add_scores(scores: ptr<function, Scores>, tx: u32, ty: u32, depth: u32) {
  for (var d4 = 0u; d4 < TILE_K / 4u; d4++) {
    for (var c = 0u; c < 4u; c++) {  // unroll
      let d = d4 * 4u + c;
      var b = array<vec4<f32>, SCORE_GROUPS>();
      for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
        b[g] = b_at(d * SCORE_GROUPS + g, swizzle_b(tx, d4));
      }
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = a_at(d, swizzle_a(ty + i * GROUPS_M, d4));
        for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
          let at = i * 4u * SCORE_GROUPS + g;
          (*scores)[at] = fma(vec4<f32>(a.x), b[g], (*scores)[at]);
          (*scores)[at + SCORE_GROUPS] = fma(vec4<f32>(a.y), b[g], (*scores)[at + SCORE_GROUPS]);
          (*scores)[at + SCORE_GROUPS * 2u] = fma(vec4<f32>(a.z), b[g], (*scores)[at + SCORE_GROUPS * 2u]);
          (*scores)[at + SCORE_GROUPS * 3u] = fma(vec4<f32>(a.w), b[g], (*scores)[at + SCORE_GROUPS * 3u]);
        }
      }
    }
  }
}

fn add_values(sum: ptr<function, Output>, tx: u32, ty: u32, depth: u32) {
  for (var key4 = 0u; key4 < WRITERS; key4++) {
    for (var c = 0u; c < 4u; c++) {  // unroll
      let key = key4 * 4u + c;
      var b = array<vec4<f32>, VALUE_GROUPS>();
      for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
        b[j] = b_at(key * VALUE_GROUPS + j, tx);
      }
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = a_at(key, swizzle_a(ty + i * GROUPS_M, key4));
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
