// A register-tiled matrix product: the workgroup makes TILE_M × TILE_N outputs, TILE_K at a time through workgroup memory
// (TILE_K · (TILE_M + TILE_N) · 4 bytes), each thread THREAD_M × THREAD_N of them in registers.
//
// The kernel defines where operands come from, four rows of A or four columns of B at a time:
//   fn a_rows(m: u32) -> vec4<u32>                                  where rows m .. m + 3 of A begin
//   fn a4(row: u32, k: u32, tail: bool) -> vec4<f32>                A at k .. k + 3 of the row that begins there
//   fn b_rows(n: u32) -> vec4<u32>                                  the same of columns of B
//   fn b_block(rows: vec4<u32>, k: u32, tail: bool) -> mat4x4<f32>  column c: those columns at k + c
// and shared/product.wgsl multiplies. `tail` is a constant where they are called: whether k may pass the last one, behind which are
// zeros. With AHEAD the loads of the next TILE_K are under way while the ones before are multiplied. What a thread holds is in
// registers: its loops are written out.

const GROUPS_M: u32 = TILE_M / THREAD_M;  // threads along m
const GROUPS_N: u32 = TILE_N / THREAD_N;
const ROW_GROUPS: u32 = THREAD_M / 4u;    // groups of four of a thread
const COLUMN_GROUPS: u32 = THREAD_N / 4u;
const THREADS: u32 = GROUPS_M * GROUPS_N;
const K4: u32 = TILE_K / 4u;
const BLOCKS_A: u32 = TILE_M / 4u * K4;   // blocks of 4 × 4
const BLOCKS_AB: u32 = BLOCKS_A + TILE_N / 4u * K4;
const BLOCKS: u32 = (BLOCKS_AB + THREADS - 1u) / THREADS;  // those of a thread

alias Accumulator = array<vec4<f32>, THREAD_M * COLUMN_GROUPS>;  // [row of the thread][group of columns]

// [k / UNROLL][k % UNROLL][m / 4], the groups of m in an order of their own: swizzle_a.
var<workgroup> a_tile: array<array<array<vec4<f32>, TILE_M / 4u>, UNROLL>, TILE_K / UNROLL>;
var<workgroup> b_tile: array<array<array<vec4<f32>, TILE_N / 4u>, UNROLL>, TILE_K / UNROLL>;

// The blocks that a thread carries from memory to workgroup memory.
struct Carried {
  rows: array<vec4<u32>, BLOCKS>,
  block: array<mat4x4<f32>, BLOCKS>,
}

// Threads that store blocks of neighbouring k at once meet in the same banks, unless each k has its groups in another order.
fn swizzle_a(group: u32, k4: u32) -> u32 { return group ^ ((k4 * (32u / TILE_K)) & (min(TILE_M / 4u, 8u) - 1u)); }
fn swizzle_b(group: u32, k4: u32) -> u32 { return group ^ ((k4 * (32u / TILE_K)) & (min(TILE_N / 4u, 8u) - 1u)); }

fn find_rows(carried: ptr<function, Carried>, thread: u32, m0: u32, n0: u32) {
  for (var i = 0u; i < BLOCKS; i++) {  // unroll
    let group = (thread + i * THREADS) / K4;
    if only_a(i) || (!only_b(i) && group < TILE_M / 4u) {
      (*carried).rows[i] = a_rows(m0 + group * 4u);
    } else {
      (*carried).rows[i] = b_rows(n0 + (group - TILE_M / 4u) * 4u);
    }
  }
}

// Whether block number `i` of every thread belongs to A, and whether to B: constants, once the loops over blocks are unrolled.
fn only_a(i: u32) -> bool { return (i + 1u) * THREADS <= BLOCKS_A; }
fn only_b(i: u32) -> bool { return i * THREADS >= BLOCKS_A; }

fn a_block(rows: vec4<u32>, k: u32, tail: bool) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(a4(rows.x, k, tail), a4(rows.y, k, tail), a4(rows.z, k, tail), a4(rows.w, k, tail)));
}

fn load_blocks(carried: ptr<function, Carried>, thread: u32, k0: u32, tail: bool) {
  for (var i = 0u; i < BLOCKS; i++) {  // unroll
    let block = thread + i * THREADS;
    let k = k0 + block % K4 * 4u;
    if only_a(i) || (!only_b(i) && block < BLOCKS_A) {
      (*carried).block[i] = a_block((*carried).rows[i], k, tail);
    } else if block < BLOCKS_AB {
      (*carried).block[i] = b_block((*carried).rows[i], k, tail);
    }
  }
}

// The blocks at k0, up to `end`; only the last ones are tested, and all where code counts more than tests.
fn load(carried: ptr<function, Carried>, thread: u32, k0: u32, end: u32) {
  if AHEAD != 0u && k0 + TILE_K <= end { load_blocks(carried, thread, k0, false); } else if k0 < end { load_blocks(carried, thread, k0, true); }
}

fn store_blocks(carried: ptr<function, Carried>, thread: u32) {
  for (var i = 0u; i < BLOCKS; i++) {  // unroll
    let block = thread + i * THREADS;
    let k4 = block % K4;
    let v = (*carried).block[i];
    if only_a(i) || (!only_b(i) && block < BLOCKS_A) {
      let m = swizzle_a(block / K4, k4);
      for (var c = 0u; c < 4u; c++) {  // unroll
        a_tile[(k4 * 4u + c) / UNROLL][(k4 * 4u + c) % UNROLL][m] = v[c];
      }
    } else if block < BLOCKS_AB {
      let n = swizzle_b(block / K4 - TILE_M / 4u, k4);
      for (var c = 0u; c < 4u; c++) {  // unroll
        b_tile[(k4 * 4u + c) / UNROLL][(k4 * 4u + c) % UNROLL][n] = v[c];
      }
    }
  }
}

// sum += A[m0 .., begin .. end] · B[begin .. end, n0 ..]; all threads of the workgroup together, `begin` and `end` the same for
// all.
fn multiply(sum: ptr<function, Accumulator>, thread: u32, m0: u32, n0: u32, begin: u32, end: u32) {
  var carried: Carried;
  find_rows(&carried, thread, m0, n0);
  // Each round multiplies the tile of the round before: the first has none yet, and the one past the end loads no more.
  for (var k0 = begin; k0 < end + TILE_K; k0 += TILE_K) {
    if AHEAD != 0u { load(&carried, thread, k0, end); }
    if k0 > begin {
      multiply_tiles(sum, tile_x(thread), tile_y(thread));
      workgroupBarrier();
    }
    if k0 < end {
      if AHEAD == 0u { load(&carried, thread, k0, end); }
      store_blocks(&carried, thread);
      workgroupBarrier();
    }
  }
}

// Threads stand in patches of 8 × 4, so that those of a subgroup read few different groups.
const PATCH_M: u32 = min(GROUPS_M, 4u);
const PATCHES_N: u32 = GROUPS_N / 8u;
fn tile_x(thread: u32) -> u32 { return thread % 8u + thread / (8u * PATCH_M) % PATCHES_N * 8u; }
fn tile_y(thread: u32) -> u32 { return thread / 8u % PATCH_M + thread / (8u * PATCH_M * PATCHES_N) * PATCH_M; }

// The thread's row `i`, and the first column of its column group `j`, inside the tile.
fn tile_row(thread: u32, i: u32) -> u32 { return (tile_y(thread) + i / 4u * GROUPS_M) * 4u + i % 4u; }
fn tile_column(thread: u32, j: u32) -> u32 { return (tile_x(thread) + j * GROUPS_N) * 4u; }
