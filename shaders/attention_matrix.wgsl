// attention_matrix: what attention is, q, k and v in f16, both products on cooperative matrices that sum in f32
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> out (q_rows, NH, VS), statistics of rows
//
// A workgroup makes TILE_M queries of one head of one sequence and walks over the keys that any of them can see by position,
// TILE_N at a time. Each subgroup has a part of PART_M queries: q and the sums of out in matrices. Where there are fewer
// subgroups than parts (their size is the driver's choice) the walk is made again for the next parts; surplus ones only help to
// load. A matrix shows its elements in workgroup memory only: scores go there, and ROW_THREADS neighbours make a row's weights, in
// f16; with 32 threads a subgroup these are rows of its own part. A row's reference, to which its exponentials are relative, lies 7
// in log2 below the row's maximum when it is set, so that weights down to 2^-21 of the largest keep all digits of an f16 and those
// down to 2^-32 some, and stays until the maximum is more than 15 above it; then the row's sums pass through workgroup memory to be
// scaled by an exact power of two. A tile whose keys all its queries see looks at no option, and its scores stay in registers.
// Keys hidden by the key mask are zeros in k and v; those past the length are the last key again, whose weight there is 0.
// Two barriers a tile: values of the next one and keys of the one after it are fetched ahead of the products with this one's
// values, and placed behind the next one's softmax.
// Workgroup memory: OPERANDS · 2 + SUMS · 4 + TILE_M · 4 + 8 bytes. Loops: keys up to k_len ≤ S.
// Parameters and bindings: shared/fused.wgsl. Matrices: shared/matrix_16.wgsl or matrix_8.wgsl. (Dao, arXiv 2307.08691)

const HEAD: u32 = HEAD_BLOCKS * MATRIX;
const ROW: u32 = HEAD + 8u;                  // between rows of k, v and q; paddings spread rows over the banks
const K_AT: u32 = 0u;
const V_AT: u32 = TILE_N * ROW;
const WEIGHTS_AT: u32 = 2u * TILE_N * ROW;
const WEIGHTS_ROW: u32 = TILE_N + 8u;
const OPERANDS: u32 = WEIGHTS_AT + TILE_M * WEIGHTS_ROW;  // q has all of it at first, some of its rows at a time
const SUMS_ROW: u32 = TILE_N + 4u * min(ROW_THREADS, MATRIX / 8u);
const SUMS: u32 = TILE_M * SUMS_ROW;         // scores; columns of out while they are scaled or stored

const PART_M: u32 = BLOCKS * MATRIX;         // matrices along a part's queries, as HEAD_BLOCKS along the head
const PARTS: u32 = TILE_M / PART_M;
const KEY_BLOCKS: u32 = TILE_N / MATRIX;
const ROUNDS: u32 = (HEAD + TILE_N - 1u) / TILE_N;
const QUERY_ROUNDS: u32 = (TILE_M * ROW + OPERANDS - 1u) / OPERANDS;
const QUERY_ROWS: u32 = TILE_M / QUERY_ROUNDS;

const GROUPS: u32 = HEAD / 4u;               // groups of four in a row
const LOAD_ROWS: u32 = THREADS / GROUPS;     // between two loads of a thread
const LOADS: u32 = TILE_N / LOAD_ROWS;

const ROW_THREADS: u32 = THREADS / TILE_M;   // up to 4 neighbours, which every subgroup has
const SHARE: u32 = TILE_N / 4u / ROW_THREADS;  // groups of four scores of a thread, ROW_THREADS apart
const STEP: u32 = ROW_THREADS * 4u;

const LOG2_E: f32 = 1.4426950408889634;
const MARGIN: f32 = 7.0;                     // in log2, from a row's reference to the score that it was set by
const GROWTH: f32 = 15.0;                    // in log2, from its reference to its largest score: an f16 holds no 2^16
const EXACT: f32 = 1024.0;                   // up to here products in log2 may be off by 2^-13

alias Query = array<MatrixA, BLOCKS * HEAD_BLOCKS>;     // [block of rows][block of columns]
alias Output = array<MatrixC, BLOCKS * HEAD_BLOCKS>;

// What a thread carries from memory to workgroup memory: groups LOAD_ROWS rows apart, and which of them count, a bit each. All are
// loaded, from places that exist, and what does not count is dropped where it is placed: a branch around a load would wait for it.
struct Fetched {
  four: array<vec4<f16>, LOADS>,
  there: u32,
}

var<workgroup> factor: array<f32, TILE_M>;              // what a row of out is to be multiplied by
var<workgroup> grown: array<atomic<u32>, 2>;            // whether any row's reference changes; tiles take turns

fn inside(four: vec4<f16>, d: u32, size: u32) -> vec4<f16> {
  if LANES == 4u { return four; }
  return select(vec4<f16>(0.0), four, vec4<u32>(d, d + 1u, d + 2u, d + 3u) < vec4<u32>(size));
}

// QUERY_ROWS rows from row `start` of the tile on.
fn load_query(thread: u32, i0: u32, start: u32, first: u32) {
  for (var item = thread; item < QUERY_ROWS * GROUPS; item += THREADS) {
    let d = item % GROUPS * 4u;
    var four = vec4<f16>(0.0);
    if d < params.head_size {
      let at = first + min(i0 + start + item / GROUPS, current.q_len - 1u) * params.q_row + d;
      four = inside(half4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), d, params.head_size);
    }
    put_operands(item / GROUPS * ROW + d, four);
  }
}

// Which keys that a thread loads, from j on, may be read, a bit each. Only a key mask forbids any: past the length stands the last key.
fn keys_there(j: u32) -> u32 {
  if (params.attention.flags & KEY_MASK) == 0u { return 0xffffffffu; }
  var bits = 0u;
  for (var i = 0u; i < LOADS; i++) {
    if key_exists(batch_index, current, j + i * LOAD_ROWS) { bits |= 1u << i; }
  }
  return bits;
}

// Of a sequence that has keys.
fn fetch_keys(to: ptr<function, Fetched>, thread: u32, j0: u32, first: u32) {
  let j = j0 + thread / GROUPS;
  let d = thread % GROUPS * 4u;
  (*to).there = select(0u, keys_there(j), d < params.head_size);
  for (var i = 0u; i < LOADS; i++) {  // unroll
    let at = first + min(j + i * LOAD_ROWS, current.k_len - 1u) * params.k_row + select(0u, d, d < params.head_size);
    (*to).four[i] = inside(half4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), d, params.head_size);
  }
}

fn fetch_values(to: ptr<function, Fetched>, thread: u32, j0: u32, first: u32) {
  let j = j0 + thread / GROUPS;
  let d = thread % GROUPS * 4u;
  (*to).there = select(0u, keys_there(j), d < params.value_size);
  for (var i = 0u; i < LOADS; i++) {  // unroll
    let at = first + min(j + i * LOAD_ROWS, current.k_len - 1u) * params.v_row + select(0u, d, d < params.value_size);
    (*to).four[i] = inside(half4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]), d, params.value_size);
  }
}

fn place(fetched: ptr<function, Fetched>, thread: u32, at: u32) {
  let to = at + thread / GROUPS * ROW + thread % GROUPS * 4u;
  for (var i = 0u; i < LOADS; i++) {  // unroll
    put_operands(to + i * LOAD_ROWS * ROW, select(vec4<f16>(0.0), (*fetched).four[i], ((*fetched).there & (1u << i)) != 0u));
  }
}

// The part's products with all keys of the tile, to workgroup memory.
fn multiply_keys(query: ptr<function, Query>, part: u32) {
  for (var n = 0u; n < KEY_BLOCKS; n++) {  // unroll
    var score = array<MatrixC, BLOCKS>();
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
  for (var n = 0u; n < KEY_BLOCKS; n++) {  // unroll
    var weights = array<MatrixA, BLOCKS>();
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

// What a row's threads know of it, all the same.
struct Softmax {
  reference: f32,      // exponentials are relative to it
  total: f32,          // their sum; 0 while no key was seen
}

// a + b and b + a are the same bits, so that all threads of a row get the same.
fn row_max(v: f32) -> f32 {
  var top = v;
  if ROW_THREADS > 1u { top = max(top, subgroupShuffleXor(top, 1u)); }
  if ROW_THREADS > 2u { top = max(top, subgroupShuffleXor(top, 2u)); }
  return top;
}

fn row_sum(v: f32) -> f32 {
  var sum = v;
  if ROW_THREADS > 1u { sum += subgroupShuffleXor(sum, 1u); }
  if ROW_THREADS > 2u { sum += subgroupShuffleXor(sum, 2u); }
  return sum;
}

// The reference for a tile whose largest score is `top`. Returns what the row's sums are to be multiplied by. Where scores are so
// large that f32 rounds the margin, it becomes 8 natural units at most, 2^11.6.
fn refer(state: ptr<function, Softmax>, top: f32) -> f32 {
  var scale = 1.0;
  let half_growth = 0.5 * top - 0.5 * (*state).reference;  // halves: scores may be as far apart as f32 reaches
  if (*state).total == 0.0 {
    (*state).reference = top - MARGIN * LN_2;
  } else if half_growth > 40.0 {
    scale = 0.0;
    (*state).reference = top - MARGIN * LN_2;
  } else if half_growth > 0.5 * GROWTH * LN_2 {
    let power = ceil(2.0 * half_growth * LOG2_E) - MARGIN;  // 9 to 109
    scale = bitcast<f32>((127u - u32(power)) << 23u);
    (*state).reference += power * LN_2;
  }
  return scale;
}

// Weights of the thread's scores, which begin at `scores`, to where `weights` says, in a row that sees all keys of the tile: the
// scale is above 0, and there are no options. Returns what the row of out is to be multiplied by.
fn weigh(state: ptr<function, Softmax>, scores: u32, weights: u32) -> f32 {
  var score: array<vec4<f32>, SHARE>;
  var tops = vec4<f32>(LOWEST);
  for (var g = 0u; g < SHARE; g++) {  // unroll
    score[g] = get_sums(scores + g * STEP);
    tops = max(tops, score[g]);
  }
  let scale = refer(state, fma(params.attention.scale, row_max(max(max(tops.x, tops.y), max(tops.z, tops.w))), 0.0));
  let reference = (*state).reference;
  var sum = vec4<f32>(0.0);
  if abs(reference) <= EXACT {
    let slope = vec4<f32>(params.attention.scale * LOG2_E);
    let offset = vec4<f32>(-LOG2_E * reference);
    for (var g = 0u; g < SHARE; g++) {  // unroll
      let weight = exp2(fma(score[g], slope, offset));
      put_operands(weights + g * STEP, vec4<f16>(weight));
      sum += weight;
    }
  } else {
    for (var g = 0u; g < SHARE; g++) {  // unroll
      // Rounded as the reference was: in one fma the two could differ by more than any weight.
      let weight = exp0(fma(vec4<f32>(params.attention.scale), score[g], vec4<f32>(0.0)) - reference);
      put_operands(weights + g * STEP, vec4<f16>(weight));
      sum += weight;
    }
  }
  (*state).total = fma((*state).total, scale, row_sum((sum.x + sum.y) + (sum.z + sum.w)));
  return scale;
}

// The same with all options, for query i and the thread's keys j .. j + 3 and so on: finished scores pass through workgroup memory.
fn weigh_masked(state: ptr<function, Softmax>, scores: u32, weights: u32, i: u32, j: u32) -> f32 {
  var tops = vec4<f32>(LOWEST);
  for (var g = 0u; g < SHARE; g++) {
    let exist = keys_exist(batch_index, current, j + g * STEP);
    let product = get_sums(scores + g * STEP);
    let score = bitcast<vec4<f32>>(finish_scores(product, exist, batch_index, head_index, current, i, j + g * STEP));
    put_sums(scores + g * STEP, score);
    tops = max(tops, select(score, vec4<f32>(LOWEST), is_hidden(score)));
  }
  let scale = refer(state, row_max(max(max(tops.x, tops.y), max(tops.z, tops.w))));
  var sum = vec4<f32>(0.0);
  for (var g = 0u; g < SHARE; g++) {
    let score = get_sums(scores + g * STEP);
    let weight = select(exp0(score - (*state).reference), vec4<f32>(0.0), is_hidden(score));
    put_operands(weights + g * STEP, vec4<f16>(weight));
    sum += weight;
  }
  (*state).total = fma((*state).total, scale, row_sum((sum.x + sum.y) + (sum.z + sum.w)));
  return scale;
}

// Whether a query of the tile does not see all keys of the tile at j0, or there are options.
fn is_masked(j0: u32, plain: vec2<i32>, options: bool) -> bool {
  return options || i32(j0) < plain.x || i32(j0 + TILE_N) > plain.y + 1;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32,
        @builtin(subgroup_size) lanes: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let thread = subgroup * lanes + lane;  // along subgroups, in which order local_invocation_index need not run
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
  let all_options = KEY_MASK | BOOLEAN_MASK | ADDITIVE_MASK | ALIBI | SOFTCAP;
  let options = (params.attention.flags & all_options) != 0u || params.attention.scale <= 0.0;
  let plain = vec2<i32>(key_range(s, i0 + count - 1u, 1u).x, key_range(s, i0, 1u).y);

  let row = thread / ROW_THREADS;
  let share = thread % ROW_THREADS * 4u;
  for (var first = 0u; first < PARTS; first += subgroups) {
    let part = first + subgroup;
    let working = part < PARTS;
    let own_row = row / PART_M >= first && row / PART_M < first + subgroups;

    if thread < 2u { atomicStore(&grown[thread], 0u); }
    var query = Query();
    for (var round = 0u; round < QUERY_ROUNDS; round++) {
      load_query(thread, i0, round * QUERY_ROWS, q_first);
      workgroupBarrier();
      if working && part * PART_M / QUERY_ROWS == round {
        for (var m = 0u; m < BLOCKS; m++) {  // unroll
          for (var d = 0u; d < HEAD_BLOCKS; d++) {  // unroll
            query[m * HEAD_BLOCKS + d] = load_a((part * PART_M % QUERY_ROWS + m * MATRIX) * ROW + d * MATRIX, ROW);
          }
        }
      }
      workgroupBarrier();
    }

    var sum = Output();
    var state = Softmax(LOWEST, 0.0);
    var keys = Fetched();
    var values = Fetched();
    var turn = 0u;
    if begin < end {
      fetch_keys(&keys, thread, begin, k_first);
      place(&keys, thread, K_AT);
      fetch_values(&values, thread, begin, v_first);
      fetch_keys(&keys, thread, begin + TILE_N, k_first);
    }
    workgroupBarrier();
    for (var j0 = begin; j0 < end; j0 += TILE_N) {
      if working { multiply_keys(&query, part); }
      workgroupBarrier();
      let scores = row * SUMS_ROW + share;
      let weights = WEIGHTS_AT + row * WEIGHTS_ROW + share;
      var scale = 0.0;
      if is_masked(j0, plain, options) {
        scale = weigh_masked(&state, scores, weights, i0 + row, j0 + share);
      } else {
        scale = weigh(&state, scores, weights);
      }
      if share == 0u { factor[row] = scale; }
      if own_row && scale != 1.0 { atomicStore(&grown[turn], 1u); }
      place(&values, thread, V_AT);
      place(&keys, thread, K_AT);
      workgroupBarrier();
      fetch_values(&values, thread, j0 + TILE_N, v_first);
      fetch_keys(&keys, thread, j0 + 2u * TILE_N, k_first);
      if subgroupBroadcastFirst(atomicLoad(&grown[turn])) != 0u { scale_rows(&sum, thread, part, working); }
      turn = 1u - turn;
      if thread == 0u { atomicStore(&grown[turn], 0u); }
      if working { add_values(&sum, part); }
    }

    if own_row && share == 0u {
      store_statistics(i0 + row, state.reference, state.total);
      factor[row] = select(0.0, 1.0 / state.total, state.total > 0.0);
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
