// shared/product.wgsl for threads in quads (shared/threads_quads.wgsl) that have the same rows: each of the four reads one k of A for
// all, which reaches the others by a broadcast. Sums have the bits of shared/product.wgsl.

fn multiply_tiles(sum: ptr<function, Accumulator>, tx: u32, ty: u32) {
  for (var k = 0u; k < TILE_K; k += 4u) {
    let mine = k + place;
    var a4 = array<vec4<f32>, ROW_GROUPS>();
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      a4[i] = a_tile[mine / UNROLL][mine % UNROLL][swizzle_a(ty + i * GROUPS_M, k / 4u)];
    }
    for (var c = 0u; c < 4u; c++) {  // unroll
      let at_k = k + c;
      var b = array<vec4<f32>, COLUMN_GROUPS>();
      for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
        b[j] = b_tile[at_k / UNROLL][at_k % UNROLL][swizzle_b(tx + j * GROUPS_N, k / 4u)];
      }
      for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
        let a = quadBroadcast(a4[i], c);
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
