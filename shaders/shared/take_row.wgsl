// How the sums of shared/tile.wgsl and shared/tile_quads.wgsl are finished: row by row.

alias RowOfSums = array<vec4<f32>, COLUMN_GROUPS>;

// Takes a row of sums off the front. Only constants index the sums, so that they stay in registers though the loop around, which
// finishes one row after the other, is too long to unroll.
fn take_row(sum: ptr<function, Accumulator>) -> RowOfSums {
  var row: RowOfSums;
  for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
    row[j] = (*sum)[j];
  }
  for (var at = 0u; at < (THREAD_M - 1u) * COLUMN_GROUPS; at++) {  // unroll
    (*sum)[at] = (*sum)[at + COLUMN_GROUPS];
  }
  return row;
}
