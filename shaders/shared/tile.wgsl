// A register-tiled matrix product: the workgroup makes TILE_M × TILE_N outputs, TILE_K at a time through workgroup memory
// (TILE_K · (TILE_M + TILE_N) · 4 bytes), each thread THREAD_M × THREAD_N of them in registers.
//
// The kernel defines where operands come from, four by four, zeros behind the last k:
//   fn a_block(m: u32, k: u32) -> mat4x4<f32>   column c: rows m .. m + 3 of A at k + c
//   fn b_block(n: u32, k: u32) -> mat4x4<f32>   column c: columns n .. n + 3 of B at k + c
// Thread (tx, ty) holds the groups of four rows ty + i · GROUPS_M and of four columns tx + j · GROUPS_N: neighbours in a
// workgroup read neighbouring groups.

const GROUPS_M: u32 = TILE_M / THREAD_M;
const GROUPS_N: u32 = TILE_N / THREAD_N;
const ROW_GROUPS: u32 = THREAD_M / 4u;
const COLUMN_GROUPS: u32 = THREAD_N / 4u;
const THREADS: u32 = GROUPS_M * GROUPS_N;
const BLOCKS_A: u32 = TILE_M * TILE_K / 16u;
const BLOCKS_B: u32 = TILE_N * TILE_K / 16u;

alias Accumulator = array<vec4<f32>, THREAD_M * COLUMN_GROUPS>;  // [row of the thread][group of columns]

var<workgroup> a_tile: array<vec4<f32>, TILE_K * TILE_M / 4u>;  // [k][m / 4]
var<workgroup> b_tile: array<vec4<f32>, TILE_K * TILE_N / 4u>;  // [k][n / 4]

fn load_tiles(thread: u32, m0: u32, n0: u32, k0: u32) {
  for (var block = thread; block < BLOCKS_A + BLOCKS_B; block += THREADS) {
    if block < BLOCKS_A {
      let k = block % (TILE_K / 4u) * 4u;
      let m = block / (TILE_K / 4u);
      let v = a_block(m0 + m * 4u, k0 + k);
      let at = k * (TILE_M / 4u) + m;
      a_tile[at] = v[0];
      a_tile[at + TILE_M / 4u] = v[1];
      a_tile[at + TILE_M / 2u] = v[2];
      a_tile[at + TILE_M / 4u * 3u] = v[3];
    } else {
      let k = (block - BLOCKS_A) % (TILE_K / 4u) * 4u;
      let n = (block - BLOCKS_A) / (TILE_K / 4u);
      let v = b_block(n0 + n * 4u, k0 + k);
      let at = k * (TILE_N / 4u) + n;
      b_tile[at] = v[0];
      b_tile[at + TILE_N / 4u] = v[1];
      b_tile[at + TILE_N / 2u] = v[2];
      b_tile[at + TILE_N / 4u * 3u] = v[3];
    }
  }
}

fn multiply_tiles(sum: ptr<function, Accumulator>, tx: u32, ty: u32) {
  for (var k = 0u; k < TILE_K; k++) {
    var b: array<vec4<f32>, COLUMN_GROUPS>;
    for (var j = 0u; j < COLUMN_GROUPS; j++) { b[j] = b_tile[k * (TILE_N / 4u) + tx + j * GROUPS_N]; }
    for (var i = 0u; i < ROW_GROUPS; i++) {
      let a = a_tile[k * (TILE_M / 4u) + ty + i * GROUPS_M];
      for (var j = 0u; j < COLUMN_GROUPS; j++) {
        let at = i * 4u * COLUMN_GROUPS + j;
        (*sum)[at] = fma(vec4<f32>(a.x), b[j], (*sum)[at]);
        (*sum)[at + COLUMN_GROUPS] = fma(vec4<f32>(a.y), b[j], (*sum)[at + COLUMN_GROUPS]);
        (*sum)[at + COLUMN_GROUPS * 2u] = fma(vec4<f32>(a.z), b[j], (*sum)[at + COLUMN_GROUPS * 2u]);
        (*sum)[at + COLUMN_GROUPS * 3u] = fma(vec4<f32>(a.w), b[j], (*sum)[at + COLUMN_GROUPS * 3u]);
      }
    }
  }
}

// sum += A[m0 .., 0 .. depth] · B[0 .. depth, n0 ..]; all threads of the workgroup together, `depth` the same for all.
fn multiply(sum: ptr<function, Accumulator>, thread: u32, m0: u32, n0: u32, depth: u32) {
  for (var k0 = 0u; k0 < depth; k0 += TILE_K) {
    load_tiles(thread, m0, n0, k0);
    workgroupBarrier();
    multiply_tiles(sum, thread % GROUPS_N, thread / GROUPS_N);
    workgroupBarrier();
  }
}

// The first row of the thread's row group `i`, and the first column of its column group `j`, inside the tile.
fn tile_row(thread: u32, i: u32) -> u32 { return (thread / GROUPS_N + i * GROUPS_M) * 4u; }
fn tile_column(thread: u32, j: u32) -> u32 { return (thread % GROUPS_N + j * GROUPS_N) * 4u; }
