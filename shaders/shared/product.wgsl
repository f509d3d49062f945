// The product of two tiles of shared/tile.wgsl, each thread for itself.

fn multiply_tiles(sum: ptr<function, Accumulator>, tx: u32, ty: u32) {
  for (var k = 0u; k < TILE_K; k += UNROLL) {
    for (var c = 0u; c < UNROLL; c++) {  // unroll
      let k4 = k / 4u + c / 4u;
      var b = array<vec4<f32>, COLUMN_GROUPS>();
      for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
        b[j] = b_tile[k / UNROLL][c][swizzle_b(tx + j * GROUPS_N, k4)];
      }
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = a_tile[k / UNROLL][c][swizzle_a(ty + i * GROUPS_M, k4)];
        for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
          let at = i * 4u * COLUMN_GROUPS + j;
          (*sum)[at] = fma(vec4<f32>(a.x), b[j], (*sum)[at]);
          (*sum)[at + COLUMN_GROUPS] = fma(vec4<f32>(a.y), b[j], (*sum)[at + COLUMN_GROUPS]);
          (*sum)[at + COLUMN_GROUPS * 2u] = fma(vec4<f32>(a.z), b[j], (*sum)[at + COLUMN_GROUPS * 2u]);
          (*sum)[at + COLUMN_GROUPS * 3u] = fma(vec4<f32>(a.w), b[j], (*sum)[at + COLUMN_GROUPS * 3u]);
        }
      }
    }
  }
}
