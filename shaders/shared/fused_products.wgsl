// The products of the tiles of attention.wgsl, each thread for itself: scores += q · kᵀ and sum += weights · v.

fn add_scores(scores: ptr<function, Scores>, tx: u32, ty: u32, depth: u32) {
  for (var d = 0u; d < depth; d++) {
    let b = b_tile[d * (TILE_N / 4u) + tx];
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      let a = a_tile[d * (TILE_M / 4u) + ty + i * GROUPS_M];
      (*scores)[i * 4u] = fma(vec4<f32>(a.x), b, (*scores)[i * 4u]);
      (*scores)[i * 4u + 1u] = fma(vec4<f32>(a.y), b, (*scores)[i * 4u + 1u]);
      (*scores)[i * 4u + 2u] = fma(vec4<f32>(a.z), b, (*scores)[i * 4u + 2u]);
      (*scores)[i * 4u + 3u] = fma(vec4<f32>(a.w), b, (*scores)[i * 4u + 3u]);
    }
  }
}

fn add_values(sum: ptr<function, Output>, tx: u32, ty: u32, depth: u32) {
  for (var key = 0u; key < depth; key++) {
    var b: array<vec4<f32>, VALUE_GROUPS>;
    for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
      b[j] = b_tile[key * (VALUE_SIZE / 4u) + tx + j * GROUPS_N];
    }
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      let a = a_tile[key * (TILE_M / 4u) + ty + i * GROUPS_M];
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
