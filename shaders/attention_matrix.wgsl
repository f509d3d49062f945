// attention_matrix: what attention is, q, k and v in f16, both products on cooperative matrices that sum in f32
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> out (q_rows, NH, VS), statistics of rows
//
// A workgroup makes TILE_M queries of one head of one sequence and walks over the keys that any of them can see by position,
// TILE_N at a time. Each subgroup has a part of PART_M queries: q and the sums of out in matrices. Where there are fewer
// subgroups than parts (their size is the driver's choice) the walk is made again for the next parts; surplus ones only help to
// load. A matrix shows its elements in workgroup memory only: scores go there, thread r makes the weights of row r, in f16, and
// sums what it wrote. A row's reference, to which its exponentials are relative, stays until the row's maximum has grown by more
// than 8 in log2; then the row's sums pass through workgroup memory to be scaled by an exact power of two.
// A tile whose keys all its queries see looks at no option. Keys past the length or hidden by the key mask are zeros in k and v.
// Two barriers a tile: values of this tile and keys of the next are fetched before the products with this one's keys, and placed
// beside the softmax.
// Workgroup memory: OPERANDS · 2 + SUMS · 4 + TILE_M · 4 + 8 bytes. Loops: keys up to k_len ≤ S.
// Parameters and bindings: shared/fused.wgsl. Matrices: shared/matrix_16.wgsl or matrix_8.wgsl. (Dao, arXiv 2307.08691)

const HEAD: u32 = HEAD_BLOCKS * MATRIX;
const ROW: u32 = HEAD + 8u;                  // between rows of k, v and q; paddings spread rows over the banks
const K_AT: u32 = 0u;
const V_AT: u32 = TILE_N * ROW;
const WEIGHTS_AT: u32 = 2u * TILE_N * ROW;
const WEIGHTS_ROW: u32 = TILE_N + 8u;
const OPERANDS: u32 = max(WEIGHTS_AT + TILE_M * WEIGHTS_ROW, TILE_M * ROW);  // q has all of it at first
const SUMS_ROW: u32 = TILE_N + 4u;
const SUMS: u32 = TILE_M * SUMS_ROW;         // scores; columns of out while they are scaled or stored

const PART_M: u32 = BLOCKS * MATRIX;         // matrices along a part's queries, as HEAD_BLOCKS along the head
const PARTS: u32 = TILE_M / PART_M;
const KEY_BLOCKS: u32 = TILE_N / MATRIX;
const ROUNDS: u32 = (HEAD + TILE_N - 1u) / TILE_N;

const GROUPS: u32 = HEAD / 4u;               // groups of four in a row
const LOADS: u32 = TILE_N * GROUPS / THREADS;

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;

alias Query = array<MatrixA, BLOCKS * HEAD_BLOCKS>;     // [block of rows][block of columns]
alias Output = array<MatrixC, BLOCKS * HEAD_BLOCKS>;
alias Fetched = array<vec4<f16>, LOADS>;

var<workgroup> factor: array<f32, TILE_M>;              // what a row of out is to be multiplied by
var<workgroup> grown: array<atomic<u32>, 2>;            // whether any row's reference changes; tiles take turns

fn inside(four: vec4<f16>, d: u32, size: u32) -> vec4<f16> {
  return select(vec4<f16>(0.0), four, vec4<u32>(d, d + 1u, d + 2u, d + 3u) < vec4<u32>(size));
}

fn load_query(thread: u32, i0: u32, first: u32) {
  for (var item = thread; item < TILE_M * GROUPS; item += THREADS) {
    let d = item % GROUPS * 4u;
    var four = vec4<f16>(0.0);
    if d < params.head_size {
      let at = first + min(i0 + item / GROUPS, current.q_len - 1u) * params.q_row + d;
      four = inside(half4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), d, params.head_size);
    }
    put_operands(item / GROUPS * ROW + d, four);
  }
}

fn fetch_keys(to: ptr<function, Fetched>, thread: u32, j0: u32, first: u32, masked: bool) {
  for (var i = 0u; i < LOADS; i++) {
    let j = j0 + (thread + i * THREADS) / GROUPS;
    let d = (thread + i * THREADS) % GROUPS * 4u;
    var four = vec4<f16>(0.0);
    if d < params.head_size && (!masked || key_exists(batch_index, current, j)) {
      let at = first + j * params.k_row + d;
      four = inside(half4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), d, params.head_size);
    }
    (*to)[i] = four;
  }
}

fn fetch_values(to: ptr<function, Fetched>, thread: u32, j0: u32, first: u32, masked: bool) {
  for (var i = 0u; i < LOADS; i++) {
    let j = j0 + (thread + i * THREADS) / GROUPS;
    let d = (thread + i * THREADS) % GROUPS * 4u;
    var four = vec4<f16>(0.0);
    if d < params.value_size && (!masked || key_exists(batch_index, current, j)) {
      let at = first + j * params.v_row + d;
      four = inside(half4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]), d, params.value_size);
    }
    (*to)[i] = four;
  }
}

fn place(fetched: ptr<function, Fetched>, thread: u32, at: u32) {
  for (var i = 0u; i < LOADS; i++) {
    let item = thread + i * THREADS;
    put_operands(at + item / GROUPS * ROW + item % GROUPS * 4u, (*fetched)[i]);
  }
}

// The part's products with all keys of the tile, to workgroup memory.
fn multiply_keys(query: ptr<function, Query>, part: u32) {
  for (var n = 0u; n < KEY_BLOCKS; n++) {
    var score: array<MatrixC, BLOCKS>;
    for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
      let keys = load_b_transposed(K_AT + n * MATRIX * ROW + d * MATRIX, ROW);
      for (var m = 0u; m < BLOCKS; m++) {  // unroll
        score[m] = multiply_add((*query)[m * HEAD_BLOCKS + d], keys, score[m]);
      }
    }
    for (var m = 0u; m < BLOCKS; m++) {  // unroll
      store_c(score[m], (part * PART_M + m * MATRIX) * SUMS_ROW + n * MATRIX, SUMS_ROW);
    }
  }
}

fn add_values(sum: ptr<function, Output>, part: u32) {
  for (var n = 0u; n < KEY_BLOCKS; n++) {
    var weights: array<MatrixA, BLOCKS>;
    for (var m = 0u; m < BLOCKS; m++) {  // unroll
      weights[m] = load_a(WEIGHTS_AT + (part * PART_M + m * MATRIX) * WEIGHTS_ROW + n * MATRIX, WEIGHTS_ROW);
    }
    for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
      let values = load_b(V_AT + n * MATRIX * ROW + d * MATRIX, ROW);
      for (var m = 0u; m < BLOCKS; m++) {  // unroll
        (*sum)[m * HEAD_BLOCKS + d] = multiply_add(weights[m], values, (*sum)[m * HEAD_BLOCKS + d]);
      }
    }
  }
}

// The matrices of TILE_N columns of out, to workgroup memory and back. One statement for each, of which those of the round run:
// no index that is only known at run time.
fn show(sum: ptr<function, Output>, part: u32, round: u32) {
  for (var m = 0u; m < BLOCKS; m++) {  // unroll
    for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
      let at = (part * PART_M + m * MATRIX) * SUMS_ROW + d % KEY_BLOCKS * MATRIX;
      if d / KEY_BLOCKS == round { store_c((*sum)[m * HEAD_BLOCKS + d], at, SUMS_ROW); }
    }
  }
}

fn take(sum: ptr<function, Output>, part: u32, round: u32) {
  for (var m = 0u; m < BLOCKS; m++) {  // unroll
    for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
      let at = (part * PART_M + m * MATRIX) * SUMS_ROW + d % KEY_BLOCKS * MATRIX;
      if d / KEY_BLOCKS == round { (*sum)[m * HEAD_BLOCKS + d] = load_c(at, SUMS_ROW); }
    }
  }
}

fn scale_rows(sum: ptr<function, Output>, thread: u32, part: u32, working: bool) {
  for (var round = 0u; round < ROUNDS; round++) {
    if working { show(sum, part, round); }
    workgroupBarrier();
    for (var at = thread * 4u; at < TILE_M * TILE_N; at += THREADS * 4u) {
      let to = at / TILE_N * SUMS_ROW + at % TILE_N;
      put_sums(to, get_sums(to) * factor[at / TILE_N]);
    }
    workgroupBarrier();
    if working { take(sum, part, round); }
    workgroupBarrier();
  }
}

// What a row's thread knows of it.
struct Softmax {
  reference: f32,      // exponentials are relative to it
  total: f32,          // their sum; 0 while no key was seen
}

// Weights of row `row` of the tile from its scores. Returns whether the row of out must be scaled, by factor[row].
fn weigh(state: ptr<function, Softmax>, row: u32, i: u32, j0: u32, masked: bool) -> bool {
  var score: array<vec4<f32>, TILE_N / 4u>;
  var tops = vec4<f32>(LOWEST);
  for (var g = 0u; g < TILE_N / 4u; g++) {
    score[g] = scale_scores(get_sums(row * SUMS_ROW + g * 4u));
    if masked {
      let j = j0 + g * 4u;
      let exist = keys_exist(batch_index, current, j);
      score[g] = bitcast<vec4<f32>>(finish_scores(score[g], exist, batch_index, head_index, current, i, j));
    }
    tops = max(tops, select(score[g], vec4<f32>(LOWEST), is_hidden(score[g])));
  }
  let top = max(max(tops.x, tops.y), max(tops.z, tops.w));

  var scale = 1.0;
  let half_growth = 0.5 * top - 0.5 * (*state).reference;  // halves: scores may be as far apart as f32 reaches
  if (*state).total == 0.0 {
    (*state).reference = top;
  } else if half_growth > 40.0 {
    scale = 0.0;
    (*state).reference = top;
  } else if half_growth > 4.0 * LN_2 {
    let power = ceil(2.0 * half_growth * LOG2_E);
    scale = bitcast<f32>((127u - u32(power)) << 23u);
    (*state).reference += power * LN_2;
  }
  factor[row] = scale;

  var sum = vec4<f32>(0.0);
  for (var g = 0u; g < TILE_N / 4u; g++) {
    let weight = vec4<f16>(select(exp0(score[g] - (*state).reference), vec4<f32>(0.0), is_hidden(score[g])));
    put_operands(WEIGHTS_AT + row * WEIGHTS_ROW + g * 4u, weight);
    sum += vec4<f32>(weight);
  }
  (*state).total = fma((*state).total, scale, (sum.x + sum.y) + (sum.z + sum.w));
  return scale != 1.0;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
  let number = workgroup_number(id);
  if number >= params.tiles_m * params.n_heads * params.batch { return; }
  // Under a causal mask the last queries see the most keys: they start first.
  let i0 = (params.tiles_m - 1u - number % params.tiles_m) * TILE_M;
  let h = number / params.tiles_m % params.n_heads;
  let b = number / params.tiles_m / params.n_heads;
  let s = sequence(b, params.longest_q, params.longest_k);
  batch_index = b;
  head_index = h;
  current = s;
  if i0 >= s.q_len {
    for (var i = thread; i < TILE_M; i += THREADS) { store_statistics(i0 + i, 0.0, 0.0); }
    return;
  }
  let q_first = params.q_offset + s.q_start * params.q_row + h * params.q_head;
  let k_first = params.k_offset + s.k_start * params.k_row + h / params.heads_per_kv * params.k_head;
  let v_first = params.v_offset + s.k_start * params.v_row + h / params.heads_per_kv * params.v_head;

  // All keys from `begin` to `end`, and without a look at options those from `plain.x` to `plain.y`.
  let count = min(TILE_M, s.q_len - i0);
  let seen = key_range(s, i0, count);
  let begin = u32(seen.x) / TILE_N * TILE_N;
  let end = min(u32(max(seen.y + 1, 0)), s.k_len);
  let options = (params.attention.flags & (KEY_MASK | BOOLEAN_MASK | ADDITIVE_MASK | ALIBI)) != 0u;
  let plain = vec2<i32>(key_range(s, i0 + count - 1u, 1u).x, key_range(s, i0, 1u).y);

  for (var first = 0u; first < PARTS; first += subgroups) {
    let part = first + subgroup;
    let working = part < PARTS;
    let own_row = thread < TILE_M && thread / PART_M >= first && thread / PART_M < first + subgroups;

    if thread < 2u { atomicStore(&grown[thread], 0u); }
    load_query(thread, i0, q_first);
    workgroupBarrier();
    var query: Query;
    if working {
      for (var m = 0u; m < BLOCKS; m++) {  // unroll
        for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
          query[m * HEAD_BLOCKS + d] = load_a((part * PART_M + m * MATRIX) * ROW + d * MATRIX, ROW);
        }
      }
    }
    workgroupBarrier();

    var sum = Output();
    var state = Softmax(LOWEST, 0.0);
    var keys: Fetched;
    var values: Fetched;
    var turn = 0u;
    fetch_keys(&keys, thread, begin, k_first, true);
    place(&keys, thread, K_AT);
    workgroupBarrier();
    for (var j0 = begin; j0 < end; j0 += TILE_N) {
      let masked = options || i32(j0) < plain.x || i32(j0 + TILE_N) > plain.y + 1;
      let next_masked = options || i32(j0 + TILE_N) < plain.x || i32(j0 + 2u * TILE_N) > plain.y + 1;
      fetch_values(&values, thread, j0, v_first, masked);
      fetch_keys(&keys, thread, j0 + TILE_N, k_first, next_masked);
      if working { multiply_keys(&query, part); }
      workgroupBarrier();
      place(&values, thread, V_AT);
      place(&keys, thread, K_AT);
      if own_row && weigh(&state, thread, i0 + thread, j0, masked) { atomicStore(&grown[turn], 1u); }
      workgroupBarrier();
      if subgroupBroadcastFirst(atomicLoad(&grown[turn])) != 0u { scale_rows(&sum, thread, part, working); }
      turn = 1u - turn;
      if thread == 0u { atomicStore(&grown[turn], 0u); }
      if working { add_values(&sum, part); }
    }

    if own_row {
      store_statistics(i0 + thread, state.reference, state.total);
      factor[thread] = select(0.0, 1.0 / state.total, state.total > 0.0);
    }
    for (var round = 0u; round < ROUNDS; round++) {
      if working { show(&sum, part, round); }
      workgroupBarrier();
      for (var at = thread * 4u; at < TILE_M * TILE_N; at += THREADS * 4u) {
        let row = at / TILE_N;
        if row / PART_M >= first && row / PART_M < first + subgroups {
          store(get_sums(row * SUMS_ROW + at % TILE_N) * factor[row], i0 + row, round * TILE_N + at % TILE_N);
        }
      }
      workgroupBarrier();
    }
  }
}
