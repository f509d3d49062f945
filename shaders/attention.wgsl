// attention: out = softmax(scores(q, k)) · v over tiles of keys, and statistics of each row's softmax
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> out (q_rows, NH, VS), statistics
//
// A workgroup makes TILE_M queries of one head of one sequence and walks over the keys that any of them can see by position,
// TILE_N at a time; scores are never stored. Thread (tx, ty) holds the groups of four rows ty + i · GROUPS_M, and of them
// SCORE_GROUPS groups of four scores and VALUE_SIZE / GROUPS_N columns of out in registers. A tile whose keys all its queries
// see looks at no option.
// Workgroup memory: (A_ROWS · TILE_M + B_ROWS · GROUP_KEYS) · 4 bytes. Tile A has rows of TILE_M / 4 groups: q or weights
// [depth][m / 4], or what threads found of rows [tx][m / 4]; tile B rows of GROUPS_N groups: k [depth · SCORE_GROUPS + g][tx]
// or v [key · VALUE_GROUPS + j][tx]. shared/fused_products.wgsl has them: a_at, put_a, b_at, put_b.
// Running maxima start at a finite value, and no infinity is computed with; keys past the length or hidden by the key mask are
// zeros in v, so that NaN in them never arrives. Each thread keeps its share of a row's sum until the end.
// Loops: keys up to k_len ≤ S, head_size. Parameters and bindings: shared/fused.wgsl. (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691)

const TILE_M: u32 = GROUPS_M * ROW_GROUPS * 4u;      // queries
const GROUP_KEYS: u32 = GROUPS_N * 4u;               // keys of one group of scores of all threads along them
const TILE_N: u32 = GROUP_KEYS * SCORE_GROUPS;       // keys
const TILE_P: u32 = WRITERS * 4u;                    // keys of a slice of weights, those of WRITERS values of tx
const VALUE_SIZE: u32 = GROUPS_N * VALUE_GROUPS * 4u;
const THREADS: u32 = GROUPS_M * GROUPS_N;
const A_ROWS: u32 = max(max(TILE_K, TILE_P + 1u), GROUPS_N);
const B_ROWS: u32 = max(TILE_K * SCORE_GROUPS, TILE_P * VALUE_GROUPS);
const PASSED: u32 = min(A_ROWS * TILE_M / 4u / THREADS, 4u);  // rows of a thread that pass through tile A at once

const_assert 4u % PASSED == 0u;

alias Scores = array<vec4<f32>, ROW_GROUPS * 4u * SCORE_GROUPS>;   // [row of the thread][group of keys: tx · 4 .. + 3, and GROUP_KEYS on]
alias Output = array<vec4<f32>, ROW_GROUPS * 4u * VALUE_GROUPS>;   // [row of the thread][group of columns]

// Threads that store at neighbouring depths at once meet in the same banks, unless the groups of each four depths have an order of their
// own: an exclusive or with what is below the largest power of two that divides their number, which is not all for 10 or 12 groups.
const ORDERS_A: u32 = min(TILE_M / 4u, 8u);
const ORDERS_B: u32 = min(GROUPS_N & (~GROUPS_N + 1u), 8u);
fn swizzle_a(group: u32, depth4: u32) -> u32 { return group ^ (depth4 * (32u / TILE_K) % ORDERS_A); }
fn swizzle_b(group: u32, depth4: u32) -> u32 { return group ^ (depth4 * (32u / TILE_K) % ORDERS_B); }

// For the loads: set once, from uniform values.
var<private> q_first: u32;
var<private> k_first: u32;
var<private> v_first: u32;

fn q4(i: u32, d: u32) -> vec4<f32> {
  if d >= params.head_size { return vec4<f32>(0.0); }
  let at = q_first + min(i, current.q_len - 1u) * params.q_row + d;
  return keep(group4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), params.head_size - d);
}

fn k4(j: u32, d: u32) -> vec4<f32> {
  if d >= params.head_size { return vec4<f32>(0.0); }
  let at = k_first + min(j, current.k_len - 1u) * params.k_row + d;
  return keep(group4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), params.head_size - d);
}

fn v4(j: u32, d: u32) -> vec4<f32> {
  if d >= params.value_size { return vec4<f32>(0.0); }
  let at = v_first + j * params.v_row + d;
  return group4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]);
}

fn load_scores(thread: u32, i0: u32, j0: u32, d0: u32) {
  for (var block = thread; block < TILE_M * TILE_K / 16u; block += THREADS) {
    let d = block % (TILE_K / 4u) * 4u;
    let m = block / (TILE_K / 4u);
    let i = i0 + m * 4u;
    let t = transpose(mat4x4<f32>(q4(i, d0 + d), q4(i + 1u, d0 + d), q4(i + 2u, d0 + d), q4(i + 3u, d0 + d)));
    let at = swizzle_a(m, d / 4u);
    put_a(d, at, t[0]);
    put_a(d + 1u, at, t[1]);
    put_a(d + 2u, at, t[2]);
    put_a(d + 3u, at, t[3]);
  }
  for (var block = thread; block < TILE_N * TILE_K / 16u; block += THREADS) {
    let d = block % (TILE_K / 4u) * 4u;
    let n = block / (TILE_K / 4u);
    let j = j0 + n * 4u;
    let t = transpose(mat4x4<f32>(k4(j, d0 + d), k4(j + 1u, d0 + d), k4(j + 2u, d0 + d), k4(j + 3u, d0 + d)));
    let at = swizzle_b(n % GROUPS_N, d / 4u);
    let row = d * SCORE_GROUPS + n / GROUPS_N;
    put_b(row, at, t[0]);
    put_b(row + SCORE_GROUPS, at, t[1]);
    put_b(row + SCORE_GROUPS * 2u, at, t[2]);
    put_b(row + SCORE_GROUPS * 3u, at, t[3]);
  }
}

// Values of the keys j0 .. j0 + TILE_P; `masked` where some of them may not exist.
fn load_values(thread: u32, j0: u32, masked: bool) {
  for (var item = thread; item < TILE_P * VALUE_SIZE / 4u; item += THREADS) {
    let j = j0 + item / (VALUE_SIZE / 4u);
    var found = vec4<f32>(0.0);
    if !masked || key_exists(batch_index, current, j) { found = v4(j, item % (VALUE_SIZE / 4u) * 4u); }
    put_b(item / GROUPS_N, item % GROUPS_N, found);
  }
}

// Place number `i` of tile A, whatever its rows.
fn passed(i: u32) -> vec4<f32> { return a_at(i / (TILE_M / 4u), i % (TILE_M / 4u)); }
fn pass_on(i: u32, v: vec4<f32>) { put_a(i / (TILE_M / 4u), i % (TILE_M / 4u), v); }

// Finishes the thread's scores of group `g`, of rows from `first` and keys j .. j + 3, by the bits of −∞ where one is hidden. They pass
// through workgroup memory, a few rows after the other: written out for all rows, what options need would take the registers of the loops.
fn finish_group(scores: ptr<function, Scores>, g: u32, thread: u32, first: u32, j: u32) {
  let exist = keys_exist(batch_index, current, j);
  for (var turn = 0u; turn < ROW_GROUPS * 4u / PASSED; turn++) {  // unroll
    let row = first + turn * PASSED / 4u * GROUPS_M * 4u + turn * PASSED % 4u;
    for (var r = 0u; r < PASSED; r++) {  // unroll
      pass_on(thread * PASSED + r, (*scores)[(turn * PASSED + r) * SCORE_GROUPS + g]);
    }
    // Rows that the sequence lacks are never stored.
    for (var r = 0u; r < min(PASSED, current.q_len - min(row, current.q_len)); r++) {
      let at = thread * PASSED + r;
      let score = finish_scores(passed(at), exist, batch_index, head_index, current, row + r, j);
      pass_on(at, bitcast<vec4<f32>>(score));
    }
    for (var r = 0u; r < PASSED; r++) {  // unroll
      (*scores)[(turn * PASSED + r) * SCORE_GROUPS + g] = passed(thread * PASSED + r);
    }
  }
}

// A score that takes part in a maximum.
fn shown(score: vec4<f32>) -> vec4<f32> { return select(score, vec4<f32>(LOWEST), is_hidden(score)); }

// exp(score − top), 0 for a hidden one.
fn weight4(score: vec4<f32>, top: f32) -> vec4<f32> {
  return select(exp0(shown(score) - vec4<f32>(top)), vec4<f32>(0.0), is_hidden(score));
}

fn work(id: vec3<u32>, thread: u32) {
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
  q_first = params.q_offset + s.q_start * params.q_row + h * params.q_head;
  k_first = params.k_offset + s.k_start * params.k_row + h / params.heads_per_kv * params.k_head;
  v_first = params.v_offset + s.k_start * params.v_row + h / params.heads_per_kv * params.v_head;

  // All keys from `first` to `end`, and without a look at options those from `plain.x` to `plain.y`.
  let count = min(TILE_M, s.q_len - i0);
  let seen = key_range(s, i0, count);
  let end = min(u32(max(seen.y + 1, 0)), s.k_len);
  let options = (params.attention.flags & (KEY_MASK | BOOLEAN_MASK | ADDITIVE_MASK | ALIBI | SOFTCAP)) != 0u;
  let plain = vec2<i32>(key_range(s, i0 + count - 1u, 1u).x, key_range(s, i0, 1u).y);

  let tx = thread % GROUPS_N;
  let ty = thread / GROUPS_N;
  var sum: Output;
  var largest: array<vec4<f32>, ROW_GROUPS>;  // running maxima of rows
  var total: array<vec4<f32>, ROW_GROUPS>;    // what this thread's keys add to the sum of a row
  for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
    largest[i] = vec4<f32>(LOWEST);
  }

  for (var j0 = u32(seen.x) / TILE_N * TILE_N; j0 < end; j0 += TILE_N) {
    let masked = options || i32(j0) < plain.x || i32(j0 + TILE_N) > plain.y + 1;
    var scores = Scores();
    for (var d0 = 0u; d0 < params.head_size; d0 += TILE_K) {
      load_scores(thread, i0, j0, d0);
      workgroupBarrier();
      add_scores(&scores, tx, ty, min(TILE_K, params.head_size - d0));
      workgroupBarrier();
    }
    if masked {
      for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
        finish_group(&scores, g, thread, i0 + ty * 4u, j0 + tx * 4u + g * GROUP_KEYS);
      }
      workgroupBarrier();
    }
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      var top = largest[i];
      for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
        let at = i * 4u * SCORE_GROUPS + g;
        if !masked {
          for (var r = 0u; r < 4u; r++) {  // unroll
            scores[at + r * SCORE_GROUPS] = fma(vec4<f32>(params.attention.scale), scores[at + r * SCORE_GROUPS], vec4<f32>(0.0));
          }
        }
        let t = transpose(mat4x4<f32>(shown(scores[at]), shown(scores[at + SCORE_GROUPS]), shown(scores[at + SCORE_GROUPS * 2u]),
                                      shown(scores[at + SCORE_GROUPS * 3u])));
        top = max(top, max(max(t[0], t[1]), max(t[2], t[3])));
      }
      put_a(tx, ty + i * GROUPS_M, top);
    }
    workgroupBarrier();
    if thread < TILE_M / 4u {
      var top = a_at(0u, thread);
      for (var t = 1u; t < GROUPS_N; t++) { top = max(top, a_at(t, thread)); }
      put_a(TILE_P, thread, top);  // of the same four rows, which no other thread looks at here
    }
    workgroupBarrier();
    for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
      let top = a_at(TILE_P, ty + i * GROUPS_M);
      let factor = exp0(largest[i] - top);
      largest[i] = top;
      var weights = vec4<f32>(0.0);
      for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
        let at = i * 4u * SCORE_GROUPS + g;
        let t = transpose(mat4x4<f32>(weight4(scores[at], top.x), weight4(scores[at + SCORE_GROUPS], top.y),
                                      weight4(scores[at + SCORE_GROUPS * 2u], top.z), weight4(scores[at + SCORE_GROUPS * 3u], top.w)));
        weights += (t[0] + t[1]) + (t[2] + t[3]);
        // From here on the four rows of a group are the components, ready to be stored.
        for (var r = 0u; r < 4u; r++) {  // unroll
          scores[at + r * SCORE_GROUPS] = t[r];
        }
      }
      total[i] = fma(total[i], factor, weights);
      for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
        let at = i * 4u * VALUE_GROUPS + j;
        sum[at] *= factor.x;
        sum[at + VALUE_GROUPS] *= factor.y;
        sum[at + VALUE_GROUPS * 2u] *= factor.z;
        sum[at + VALUE_GROUPS * 3u] *= factor.w;
      }
    }

    let keys = min(TILE_N, end - j0);
    for (var first = 0u; first < keys; first += TILE_P) {
      for (var g = 0u; g < SCORE_GROUPS; g++) {  // unroll
        if first / GROUP_KEYS == g && tx / WRITERS == first % GROUP_KEYS / TILE_P {
          for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
            let to = swizzle_a(ty + i * GROUPS_M, tx % WRITERS);
            for (var r = 0u; r < 4u; r++) {  // unroll
              put_a(tx % WRITERS * 4u + r, to, scores[(i * 4u + r) * SCORE_GROUPS + g]);
            }
          }
        }
      }
      load_values(thread, j0 + first, masked);
      workgroupBarrier();
      add_values(&sum, tx, ty, min(TILE_P, keys - first));
      workgroupBarrier();
    }
  }

  for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
    put_a(tx, ty + i * GROUPS_M, total[i]);
  }
  workgroupBarrier();
  if thread < TILE_M / 4u {
    var all = a_at(0u, thread);
    for (var t = 1u; t < GROUPS_N; t++) { all += a_at(t, thread); }
    put_a(0u, thread, all);
  }
  workgroupBarrier();
  for (var i = 0u; i < ROW_GROUPS; i++) {  // unroll
    let all = a_at(0u, ty + i * GROUPS_M);
    let inverse = select(vec4<f32>(0.0), 1.0 / all, all > vec4<f32>(0.0));
    let row = i0 + (ty + i * GROUPS_M) * 4u;
    if tx == 0u {
      let top = largest[i];
      for (var r = 0u; r < 4u; r++) { store_statistics(row + r, top[r], all[r]); }
    }
    for (var j = 0u; j < VALUE_GROUPS; j++) {  // unroll
      let at = i * 4u * VALUE_GROUPS + j;
      let d = (tx + j * GROUPS_N) * 4u;
      store(sum[at] * inverse.x, row, d);
      store(sum[at + VALUE_GROUPS] * inverse.y, row + 1u, d);
      store(sum[at + VALUE_GROUPS * 2u] * inverse.z, row + 2u, d);
      store(sum[at + VALUE_GROUPS * 3u] * inverse.w, row + 3u, d);
    }
  }
}
