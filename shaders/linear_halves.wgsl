// linear_halves: what linear is, in f32, on cooperative matrices with f16 operands
//
//   x (rows, d_in), weight (d_out, d_in), bias (d_out), residual (rows, d_out) -> y (rows, d_out)
//
// Each operand is split in two: v ≈ hi + lo / 2¹¹, both f16, of which three products are left: hi·hi + (lo·hi + hi·lo) / 2¹¹.
// Matrix units may round sums towards zero, so each product starts from zero and is added outside of them. That is as good as
// f32 while the largest element of a row of x and of a row of W lies within SMALLEST … LARGEST; f16 holds no more, and of less
// it loses digits. Outputs of other rows are summed in plain f32, those alone: a row's bits do not depend on other rows.
// A workgroup makes TILE_M × TILE_N of y, each subgroup a part of PART_M × PART_N, as in linear_matrix.
// Workgroup memory: 2 · (TILE_M + TILE_N) · (TILE_K + 8) · 2 bytes of operands, PARTS · MATRIX² · 4 bytes of sums,
// (TILE_M + TILE_N) · 4 bytes of maxima. Loops: k up to d_in. Parameters, bindings and epilogue: shared/linear*.wgsl.
// Matrices: shared/matrix_16.wgsl or matrix_8.wgsl. (Ootomo and Yokota, arXiv 2203.03341)

const SMALLEST: u32 = 0x39000000u;               // 2⁻¹³ by its bits: below, lo ends at 2⁻³⁶
const LARGEST: u32 = 0x477fe000u;                // 65504

const ROW: u32 = TILE_K + 8u;                    // between rows of a tile; the padding spreads them over the banks
const LOW: u32 = (TILE_M + TILE_N) * ROW;        // from hi to lo
const B_AT: u32 = TILE_M * ROW;                  // where the tile of W begins, behind that of x
const OPERANDS: u32 = 2u * LOW;

const PART_M: u32 = BLOCKS_M * MATRIX;
const PART_N: u32 = BLOCKS_N * MATRIX;
const PARTS_M: u32 = TILE_M / PART_M;
const PARTS: u32 = PARTS_M * (TILE_N / PART_N);
const SQUARE: u32 = MATRIX * MATRIX;
const SUMS: u32 = PARTS * SQUARE;

const GROUPS: u32 = TILE_K / 4u;                 // groups of four in a row of a tile
const STEP: u32 = THREADS / GROUPS;              // rows that all threads load at once
const LOADS_A: u32 = TILE_M / STEP;
const LOADS_B: u32 = TILE_N / STEP;
const LOADS: u32 = LOADS_A + LOADS_B;

alias Accumulator = array<MatrixC, BLOCKS_M * BLOCKS_N>;
alias Fetched = array<vec4<f32>, LOADS>;
alias Maxima = array<u32, LOADS>;

var<workgroup> largest: array<atomic<u32>, TILE_M + TILE_N>;  // |element| of the tile's rows of x, then of W, by its bits

fn x_at(m: u32, k: u32) -> vec4<f32> {
  if k >= params.d_in { return vec4<f32>(0.0); }
  let at = params.x_offset + min(m, params.rows - 1u) * params.x_row + k;
  return keep(group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]), params.d_in - k);
}

fn weight_at(n: u32, k: u32) -> vec4<f32> {
  if k >= params.d_in { return vec4<f32>(0.0); }
  let at = params.weight_offset + min(n, params.d_out - 1u) * params.weight_row + k;
  let four = group4(weight[at / LANES], weight[(at + 1u) / LANES], weight[(at + 2u) / LANES], weight[(at + 3u) / LANES]);
  return keep(four, params.d_in - k);
}

// The thread's share of the tiles at k0.
fn fetch(to: ptr<function, Fetched>, thread: u32, m0: u32, n0: u32, k0: u32) {
  let k = k0 + thread % GROUPS * 4u;
  for (var i = 0u; i < LOADS_A; i++) {  // unroll
    (*to)[i] = x_at(m0 + thread / GROUPS + i * STEP, k);
  }
  for (var i = 0u; i < LOADS_B; i++) {  // unroll
    (*to)[LOADS_A + i] = weight_at(n0 + thread / GROUPS + i * STEP, k);
  }
}

// v to the nearest f16, as f32. By integers: a conversion there and back is one that compilers may leave out.
fn rounded(v: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(v);
  let normal = bitcast<vec4<f32>>((bits + 0xfffu + ((bits >> vec4<u32>(13u)) & vec4<u32>(1u))) & vec4<u32>(0xffffe000u));
  let quanta = vec4<f32>(vec4<i32>(round(clamp(v * 16777216.0, vec4<f32>(-1024.0), vec4<f32>(1024.0)))));  // of 2⁻²⁴
  return select(normal, quanta / 16777216.0, abs(v) < vec4<f32>(0.00006103515625));
}

fn place(fetched: ptr<function, Fetched>, maxima: ptr<function, Maxima>, thread: u32) {
  let at = thread / GROUPS * ROW + thread % GROUPS * 4u;
  for (var i = 0u; i < LOADS; i++) {  // unroll
    let v = (*fetched)[i];
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    (*maxima)[i] = max((*maxima)[i], max(max(bits.x, bits.y), max(bits.z, bits.w)));
    // x and W lie one behind the other, STEP rows at a time.
    let high = rounded(v);
    put_operands(at + i * STEP * ROW, vec4<f16>(high));
    put_operands(LOW + at + i * STEP * ROW, vec4<f16>((v - high) * 2048.0));
  }
}

fn multiply_tiles(sum: ptr<function, Accumulator>, part: u32) {
  let a_at = part % PARTS_M * PART_M * ROW;
  let b_at = B_AT + part / PARTS_M * PART_N * ROW;
  for (var step = 0u; step < TILE_K / MATRIX; step++) {  // unroll
    let k = step * MATRIX;
    for (var i = 0u; i < BLOCKS_M; i++) {  // unroll
      let high_a = load_a(a_at + i * MATRIX * ROW + k, ROW);
      let low_a = load_a(LOW + a_at + i * MATRIX * ROW + k, ROW);
      for (var j = 0u; j < BLOCKS_N; j++) {  // unroll
        let high_b = load_b_transposed(b_at + j * MATRIX * ROW + k, ROW);
        let low_b = load_b_transposed(LOW + b_at + j * MATRIX * ROW + k, ROW);
        let low = multiply_add(low_a, high_b, multiply_add(high_a, low_b, MatrixC()));
        let product = add_scaled(multiply_add(high_a, high_b, MatrixC()), low, 1.0 / 2048.0);
        (*sum)[i * BLOCKS_N + j] = add((*sum)[i * BLOCKS_N + j], product);
      }
    }
  }
}

fn in_range(largest: u32) -> bool { return largest == 0u || (largest >= SMALLEST && largest <= LARGEST); }

// The sums of row m0 + m and columns n0 + n … n0 + n + 3: `sum`, or plain ones where the range of f16 does not do.
fn finish(sum: vec4<f32>, m0: u32, n0: u32, m: u32, n: u32) -> vec4<f32> {
  let row = in_range(atomicLoad(&largest[m]));
  let good = vec4<bool>(row && in_range(atomicLoad(&largest[TILE_M + n])), row && in_range(atomicLoad(&largest[TILE_M + n + 1u])),
                        row && in_range(atomicLoad(&largest[TILE_M + n + 2u])), row && in_range(atomicLoad(&largest[TILE_M + n + 3u])));
  if all(good) { return sum; }
  var plain = vec4<f32>(0.0);
  for (var k = 0u; k < params.d_in; k += 4u) {
    let a = x_at(m0 + m, k);
    plain += vec4<f32>(dot(a, weight_at(n0 + n, k)), dot(a, weight_at(n0 + n + 1u, k)), dot(a, weight_at(n0 + n + 2u, k)),
                       dot(a, weight_at(n0 + n + 3u, k)));
  }
  return select(plain, sum, good);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
  let tiles_m = (params.rows + TILE_M - 1u) / TILE_M;
  let tiles_n = (params.d_out + TILE_N - 1u) / TILE_N;
  let tile = workgroup_number(id);
  if tile >= tiles_m * tiles_n { return; }
  let m0 = tile % tiles_m * TILE_M;
  let n0 = tile / tiles_m * TILE_N;

  for (var i = thread; i < TILE_M + TILE_N; i += THREADS) { atomicStore(&largest[i], 0u); }
  for (var first = 0u; first < PARTS; first += subgroups) {
    let part = first + subgroup;
    let working = part < PARTS;
    var sum = Accumulator();
    var maxima = Maxima();
    var fetched = Fetched();
    fetch(&fetched, thread, m0, n0, 0u);
    for (var k0 = 0u; k0 < params.d_in; k0 += TILE_K) {
      place(&fetched, &maxima, thread);
      workgroupBarrier();
      fetch(&fetched, thread, m0, n0, k0 + TILE_K);
      if working { multiply_tiles(&sum, part); }
      workgroupBarrier();
    }
    for (var i = 0u; i < LOADS; i++) {  // unroll
      atomicMax(&largest[thread / GROUPS + i * STEP], maxima[i]);
    }

    for (var block = 0u; block < BLOCKS_M * BLOCKS_N; block++) {
      // One store for each matrix, of which one runs: no index that is only known at run time.
      for (var i = 0u; i < BLOCKS_M; i++) {  // unroll
        for (var j = 0u; j < BLOCKS_N; j++) {  // unroll
          if working && i * BLOCKS_N + j == block { store_c(sum[i * BLOCKS_N + j], part * SQUARE, MATRIX); }
        }
      }
      workgroupBarrier();
      for (var at = thread * 4u; at < SUMS; at += THREADS * 4u) {
        let owner = at / SQUARE;
        let m = owner % PARTS_M * PART_M + block / BLOCKS_N * MATRIX + at % SQUARE / MATRIX;
        let n = owner / PARTS_M * PART_N + block % BLOCKS_N * MATRIX + at % MATRIX;
        if owner >= first && owner < first + subgroups && m0 + m < params.rows && n0 + n < params.d_out {
          store(m0 + m, n0 + n, epilogue(finish(get_sums(at), m0, n0, m, n), m0 + m, n0 + n));
        }
      }
      workgroupBarrier();
    }
  }
}
