// What shared/tile.wgsl makes, for CPU adapters: from memory into registers, with no tile, no barrier and no workgroup memory, which they go
// through one thread after the other. Threads are in quads (shared/threads_quads.wgsl) and have all TILE_M rows; each has columns
// of its own. The threads of a quad read every fourth row of A for each other, which reaches them by a broadcast, so that an element
// that is loaded serves as many products as registers hold sums. Sums run over k in order and have the bits of shared/tile.wgsl.
//
// The kernel defines a_rows, a4, b_rows and b_block, as there, and
//   fn a_exists(m: u32) -> bool                                     whether A has row m: sums of rows past the last stay 0

const THREADS: u32 = 8u;                  // the vector of most CPU adapters
const THREAD_M: u32 = TILE_M;
const ROW_GROUPS: u32 = TILE_M / 4u;
const COLUMN_GROUPS: u32 = TILE_N / THREADS / 4u;

alias Accumulator = array<vec4<f32>, THREAD_M * COLUMN_GROUPS>;  // [row][group of columns]

fn multiply(sum: ptr<function, Accumulator>, thread: u32, m0: u32, n0: u32, begin: u32, end: u32) {
  var a_row = array<u32, ROW_GROUPS>();
  for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
    a_row[i] = a_rows(m0 + i * 4u + place).x;
  }
  var b_columns = array<vec4<u32>, COLUMN_GROUPS>();
  for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
    b_columns[j] = b_rows(n0 + tile_column(thread, j));
  }
  for (var k = begin; k < end; k += 4u) {
    let tail = k + 4u > end;
    var b = array<mat4x4<f32>, COLUMN_GROUPS>();
    for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
      b[j] = b_block(b_columns[j], k, tail);
    }
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      let mine = a4(a_row[i], k, tail);
      let a = array(quadBroadcast(mine, 0u), quadBroadcast(mine, 1u), quadBroadcast(mine, 2u), quadBroadcast(mine, 3u));
      // Without a branch around them Mesa 25 moves all products behind all loads, into more registers than there are.
      if a_exists(m0 + i * 4u) {
        for (var r = 0u; r < 4u; r++) {  // unroll
          for (var c = 0u; c < 4u; c++) {  // unroll
            for (var j = 0u; j < COLUMN_GROUPS; j++) {  // unroll
              let at = (i * 4u + r) * COLUMN_GROUPS + j;
              (*sum)[at] = fma(vec4<f32>(a[r][c]), b[j][c], (*sum)[at]);
            }
          }
        }
      }
    }
  }
}

// The thread's row `i`, and the first column of its column group `j`.
fn tile_row(thread: u32, i: u32) -> u32 { return i; }
fn tile_column(thread: u32, j: u32) -> u32 { return (thread + j * THREADS) * 4u; }
