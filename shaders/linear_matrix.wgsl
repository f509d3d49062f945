// linear_matrix: y = activation(x · Wᵀ + bias) + residual, x and W in f16, on cooperative matrices that sum in f32
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// A workgroup makes TILE_M × TILE_N of y, each subgroup a part of PART_M × PART_N in registers. Where there are fewer subgroups
// than parts (their size is the driver's choice) the product is made again for the next parts; surplus subgroups only help to
// load. The next tile of operands is on its way to registers while one is multiplied. Rows and columns past the edge repeat the
// last one's data and are not stored; past d_in there are zeros. Sums run over k in order, so a row's bits do not depend on
// other rows. A matrix shows its elements in workgroup memory only: sums pass through it to the epilogue, one matrix of each
// part at a time. What the epilogue reads is there before it is needed, as a wait for each matrix would cost as much as the products:
// biases in place of the operands, residuals a matrix ahead.
// Workgroup memory: (TILE_M + TILE_N) · (TILE_K + 8) · 2 bytes of operands, PARTS · MATRIX² · 4 bytes of sums.
// Loops: k up to d_in, or the part of it that shared/linear_parts.wgsl gives a workgroup, in place of shared/linear_whole.wgsl.
// Parameters, bindings and epilogue: shared/linear*.wgsl. Matrices: shared/matrix_16.wgsl or matrix_8.wgsl.

const ROW: u32 = TILE_K + 8u;                    // between rows of a tile; the padding spreads them over the banks
const B_AT: u32 = TILE_M * ROW;                  // where the tile of W begins, behind that of x
const OPERANDS: u32 = (TILE_M + TILE_N) * ROW;

const PART_M: u32 = BLOCKS_M * MATRIX;
const PART_N: u32 = BLOCKS_N * MATRIX;
const PARTS_M: u32 = TILE_M / PART_M;
const PARTS: u32 = PARTS_M * (TILE_N / PART_N);
const SQUARE: u32 = MATRIX * MATRIX;
const SUMS: u32 = PARTS * SQUARE;
const ITEMS: u32 = (SUMS / 4u + THREADS - 1u) / THREADS;  // groups of four sums for a thread

const GROUPS: u32 = TILE_K / 4u;                 // groups of four in a row of a tile
const STEP: u32 = THREADS / GROUPS;              // rows that all threads load at once
const LOADS_A: u32 = TILE_M / STEP;
const LOADS_B: u32 = TILE_N / STEP;
const LOADS: u32 = LOADS_A + LOADS_B;             // rows of x and then of W, one behind the other in workgroup memory

// Whether loads keep behind a branch: moved between products they would take registers that sums, or the loads themselves, have.
const APART: bool = BLOCKS_M * BLOCKS_N * SQUARE >= 4096u || LOADS >= 32u;

alias Accumulator = array<MatrixC, BLOCKS_M * BLOCKS_N>;
alias Fetched = array<vec4<f16>, LOADS>;
alias Residuals = array<vec4<f32>, ITEMS>;

// Where a thread loads from, in units of Storage: where its first row of x and of W begins, what lies between its rows, and where the
// last row that there is begins, which stands in for those past it. Places of these may be past 2³²: they are some place before the
// last one's then, and what is loaded there is not stored.
struct Places {
  x: u32,
  x_step: u32,
  x_last: u32,
  weight: u32,
  weight_step: u32,
  weight_last: u32,
}

// The first row that a thread loads. Where sixteen threads store to two rows at once, these are four apart: neighbours would meet in
// the same banks.
fn own_row(thread: u32) -> u32 {
  let row = thread / GROUPS;
  if GROUPS != 8u { return row; }
  return (row & 0xfffffffau) | ((row & 1u) << 2u) | ((row >> 2u) & 1u);
}

fn own_k(thread: u32) -> u32 { return thread % GROUPS * 4u; }

fn places_of(thread: u32, m0: u32, n0: u32) -> Places {
  let row = own_row(thread);
  let k = select(0u, own_k(thread), APART);  // in the place, where all of it is known to be there
  return Places((params.x_offset + (m0 + row) * params.x_row + k) / LANES, STEP * params.x_row / LANES,
                (params.x_offset + (params.rows - 1u) * params.x_row + k) / LANES,
                (params.weight_offset + (n0 + row) * params.weight_row + k) / LANES, STEP * params.weight_row / LANES,
                (params.weight_offset + (params.d_out - 1u) * params.weight_row + k) / LANES);
}

fn x_at(at: u32) -> vec4<f16> { return half4(x[at], x[at + 1u / LANES], x[at + 2u / LANES], x[at + 3u / LANES]); }

fn weight_at(at: u32) -> vec4<f16> {
  return half4(weight[at], weight[at + 1u / LANES], weight[at + 2u / LANES], weight[at + 3u / LANES]);
}

// The thread's share of two tiles, so many units of Storage after its places.
fn fetch_at(to: ptr<function, Fetched>, places: Places, along: u32) {
  for (var i = 0u; i < LOADS_A; i++) {  // unroll
    (*to)[i] = x_at(min(places.x + i * places.x_step, places.x_last) + along);
  }
  for (var i = 0u; i < LOADS_B; i++) {  // unroll
    (*to)[LOADS_A + i] = weight_at(min(places.weight + i * places.weight_step, places.weight_last) + along);
  }
}

// What of four operands at k lies inside the part of the row.
fn inside(v: vec4<f16>, k: u32) -> vec4<f16> {
  return select(vec4<f16>(0.0), v, vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(last_k()));
}

// The share of the tiles at k0. Without a branch around them, what lies past the part of the row is loaded from its beginning and dropped
// where it is placed.
fn fetch(to: ptr<function, Fetched>, places: Places, thread: u32, k0: u32) {
  let k = k0 + own_k(thread);
  if !APART {
    fetch_at(to, places, select(0u, k / LANES, k < last_k()));
  } else if k0 + TILE_K <= last_k() {
    fetch_at(to, places, k0 / LANES);
  } else if k < last_k() {
    fetch_at(to, places, k0 / LANES);
    for (var i = 0u; i < LOADS; i++) {  // unroll
      (*to)[i] = inside((*to)[i], k);
    }
  } else {
    *to = Fetched();
  }
}

fn place(fetched: ptr<function, Fetched>, thread: u32, k0: u32) {
  let at = own_row(thread) * ROW + own_k(thread);
  if APART || k0 + TILE_K <= last_k() {
    for (var i = 0u; i < LOADS; i++) {  // unroll
      put_operands(at + i * STEP * ROW, (*fetched)[i]);
    }
  } else {
    for (var i = 0u; i < LOADS; i++) {  // unroll
      put_operands(at + i * STEP * ROW, inside((*fetched)[i], k0 + own_k(thread)));
    }
  }
}

fn multiply_tiles(sum: ptr<function, Accumulator>, part: u32) {
  let a_at = part % PARTS_M * PART_M * ROW;
  let b_at = B_AT + part / PARTS_M * PART_N * ROW;
  for (var step = 0u; step < TILE_K / MATRIX; step++) {  // unroll
    let k = step * MATRIX;
    var b = array<MatrixB, BLOCKS_N>();
    for (var j = 0u; j < BLOCKS_N; j++) {  // unroll
      b[j] = load_b_transposed(b_at + j * MATRIX * ROW + k, ROW);
    }
    for (var i = 0u; i < BLOCKS_M; i++) {  // unroll
      let a = load_a(a_at + i * MATRIX * ROW + k, ROW);
      for (var j = 0u; j < BLOCKS_N; j++) {  // unroll
        (*sum)[i * BLOCKS_N + j] = multiply_add(a, b[j], (*sum)[i * BLOCKS_N + j]);
      }
    }
  }
}

// Row and column, inside the tile, of a thread's item `i` when matrix number `block` of each part is shown.
fn place_of(thread: u32, i: u32, block: u32) -> vec2<u32> {
  let at = (thread + i * THREADS) * 4u;
  let part = at / SQUARE;
  return vec2<u32>(part % PARTS_M * PART_M + block / BLOCKS_N * MATRIX + at % SQUARE / MATRIX,
                   part / PARTS_M * PART_N + block % BLOCKS_N * MATRIX + at % MATRIX);
}

fn residuals_of(to: ptr<function, Residuals>, thread: u32, m0: u32, n0: u32, block: u32) {
  if params.residual == 0u || block >= BLOCKS_M * BLOCKS_N { return; }
  for (var i = 0u; i < ITEMS; i++) {  // unroll
    let shown = place_of(thread, i, block);
    let n = n0 + shown.y;
    (*to)[i] = residual4(min(m0 + shown.x, params.rows - 1u), select(0u, n, n < params.d_out));
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
  let tiles_m = (params.rows + TILE_M - 1u) / TILE_M;
  let tiles_n = (params.d_out + TILE_N - 1u) / TILE_N;
  let number = workgroup_number(id);
  if number >= tiles_m * tiles_n * parts_of_k() { return; }
  let m0 = number % tiles_m * TILE_M;
  let n0 = number / tiles_m % tiles_n * TILE_N;
  begin_part(number / tiles_m / tiles_n);

  for (var first = 0u; first < PARTS; first += subgroups) {
    let part = first + subgroup;
    let working = part < PARTS;
    var sum = Accumulator();
    var fetched = Fetched();
    let places = places_of(thread, m0, n0);
    fetch(&fetched, places, thread, first_k());
    place(&fetched, thread, first_k());
    workgroupBarrier();
    for (var k0 = first_k(); k0 < last_k(); k0 += TILE_K) {
      fetch(&fetched, places, thread, k0 + TILE_K);
      if working { multiply_tiles(&sum, part); }
      workgroupBarrier();
      place(&fetched, thread, k0 + TILE_K);
      workgroupBarrier();
    }

    for (var i = thread; i < TILE_N / 4u; i += THREADS) {
      let n = n0 + i * 4u;
      put_operands(i * 4u, vec4<f16>(bias4(select(0u, n, n < params.d_out))));
    }
    var residuals = Residuals();
    residuals_of(&residuals, thread, m0, n0, 0u);
    for (var block = 0u; block < BLOCKS_M * BLOCKS_N; block++) {
      // One store for each matrix, of which one runs: no index that is only known at run time.
      for (var i = 0u; i < BLOCKS_M; i++) {  // unroll
        for (var j = 0u; j < BLOCKS_N; j++) {  // unroll
          if working && i * BLOCKS_N + j == block { store_c(sum[i * BLOCKS_N + j], part * SQUARE, MATRIX); }
        }
      }
      let known = residuals;
      residuals_of(&residuals, thread, m0, n0, block + 1u);
      workgroupBarrier();
      for (var i = 0u; i < ITEMS; i++) {  // unroll
        let at = (thread + i * THREADS) * 4u;
        let shown = place_of(thread, i, block);
        if at < SUMS && at / SQUARE >= first && at / SQUARE < first + subgroups {
          let sums = get_sums(at) + vec4<f32>(get_operands(shown.y));
          store(m0 + shown.x, n0 + shown.y, activate_onto(sums, params.activation, known[i]));
        }
      }
      workgroupBarrier();
    }
  }
}
