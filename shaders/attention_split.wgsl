// attention_split: attention of one to a few queries over one part of the keys; attention_reduce puts the parts together
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> partial (splits, B, NH, T, VS / 4 + 1) of four floats each
//
// A workgroup takes QUERIES queries of one head over the keys split · KEYS up to (split + 1) · KEYS: parts of constant length from
// position 0, so that a row's bits do not depend on how long others are. Each thread scores KEYS / THREADS keys for all queries, each
// value row is read once by neighbours. A row of partial holds Σ weight · v, then the largest score and the sum of weights.
// Keys past the length or hidden by the key mask are never read. Loops: head_size, KEYS.
// Workgroup memory: QUERIES · 1 KiB of queries, later of sums, QUERIES · KEYS · 4 bytes of weights, THREADS · 4. (Dao et al., Flash-Decoding)

@group(1) @binding(6) var<storage, read_write> partial: array<vec4<f32>>;

const WIDEST: u32 = 64u;                       // groups of four in a head
const ROW_THREADS: u32 = THREADS / QUERIES;    // threads of a query, in the softmax

var<workgroup> shared4: array<vec4<f32>, QUERIES * WIDEST>;  // [query][d / 4], then [query][thread]
var<workgroup> weights: array<u32, QUERIES * KEYS>;          // [query][key], scores and then weights by their bits
var<workgroup> rows: array<f32, THREADS>;

fn q4(i: u32, d: u32) -> vec4<f32> {
  let row = current.q_start + min(i, current.q_len - 1u);
  let at = params.q_offset + row * params.q_row + head_index * params.q_head + d;
  return keep(group4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), params.head_size - d);
}

fn k4(at: u32, d: u32) -> vec4<f32> {
  return keep(group4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), params.head_size - d);
}

fn v4(at: u32, d: u32) -> vec4<f32> {
  return keep(group4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]), params.value_size - d);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.splits * params.tiles_m * params.n_heads * params.batch { return; }
  let split = number % params.splits;
  let i0 = number / params.splits % params.tiles_m * QUERIES;
  let h = number / params.splits / params.tiles_m % params.n_heads;
  let b = number / params.splits / params.tiles_m / params.n_heads;
  let s = sequence(b, params.longest_q, params.longest_k);
  let j0 = split * KEYS;
  if i0 >= s.q_len || j0 >= s.k_len { return; }
  batch_index = b;
  head_index = h;
  current = s;
  let kv_head = h / params.heads_per_kv;
  let count = min(KEYS, s.k_len - j0);
  let value_groups = (params.value_size + 3u) / 4u;
  let row0 = ((split * params.batch + b) * params.n_heads + h) * params.longest_q + i0;

  // A part that no query can see by position says so.
  let seen = key_range(s, i0, min(QUERIES, s.q_len - i0));
  if i32(j0) > seen.y || i32(j0 + KEYS) <= seen.x {
    if thread < QUERIES && i0 + thread < s.q_len {
      partial[(row0 + thread) * (value_groups + 1u) + value_groups] = vec4<f32>(LOWEST, 0.0, 0.0, 0.0);
    }
    return;
  }

  for (var item = thread; item < QUERIES * ((params.head_size + 3u) / 4u); item += THREADS) {
    let i = item % QUERIES;
    let group = min(item / QUERIES, WIDEST - 1u);
    shared4[i * WIDEST + group] = q4(i0 + i, group * 4u);
  }
  workgroupBarrier();

  for (var n = thread; n < KEYS; n += THREADS) {
    let j = j0 + n;
    let exists = key_exists(b, s, j);
    var sum: array<vec4<f32>, QUERIES>;
    if exists {
      let at = params.k_offset + (s.k_start + j) * params.k_row + kv_head * params.k_head;
      for (var d = 0u; d < params.head_size; d += 4u) {
        let key = k4(at + d, d);
        for (var i = 0u; i < QUERIES; i++) {  // unroll
          sum[i] = fma(shared4[i * WIDEST + d / 4u], key, sum[i]);
        }
      }
    }
    for (var i = 0u; i < QUERIES; i++) {  // unroll
      let score = (sum[i].x + sum[i].y) + (sum[i].z + sum[i].w);
      weights[i * KEYS + n] = finish_scores(vec4<f32>(score), vec4<bool>(exists), b, h, s, i0 + i, j).x;
    }
  }
  workgroupBarrier();

  // ROW_THREADS threads a query: the largest score, then weights relative to it and their sum.
  let row = thread / ROW_THREADS;
  var top = LOWEST;
  for (var n = thread % ROW_THREADS; n < KEYS; n += ROW_THREADS) {
    let bits = weights[row * KEYS + n];
    top = max(top, select(bitcast<f32>(bits), LOWEST, bits == MINUS_INFINITY));
  }
  rows[thread] = top;
  workgroupBarrier();
  for (var t = 0u; t < ROW_THREADS; t++) { top = max(top, rows[row * ROW_THREADS + t]); }
  workgroupBarrier();
  var total = 0.0;
  for (var n = thread % ROW_THREADS; n < KEYS; n += ROW_THREADS) {
    let bits = weights[row * KEYS + n];
    let hidden = bits == MINUS_INFINITY;
    let weight = select(exp0(vec4<f32>(select(bitcast<f32>(bits), LOWEST, hidden) - top)).x, 0.0, hidden);
    weights[row * KEYS + n] = bitcast<u32>(weight);
    total += weight;
  }
  rows[thread] = total;
  workgroupBarrier();
  total = 0.0;
  for (var t = 0u; t < ROW_THREADS; t++) { total += rows[row * ROW_THREADS + t]; }
  if thread % ROW_THREADS == 0u && i0 + row < s.q_len {
    partial[(row0 + row) * (value_groups + 1u) + value_groups] = vec4<f32>(top, total, 0.0, 0.0);
  }

  // Neighbours read neighbouring columns of a value row; what is left of the threads takes other rows.
  let group = thread % value_groups;
  let slices = THREADS / value_groups;
  let slice = thread / value_groups;
  var sum: array<vec4<f32>, QUERIES>;
  for (var n = slice; n < count && slice < slices; n += slices) {
    if !key_exists(b, s, j0 + n) { continue; }
    let value = v4(params.v_offset + (s.k_start + j0 + n) * params.v_row + kv_head * params.v_head + group * 4u, group * 4u);
    for (var i = 0u; i < QUERIES; i++) {  // unroll
      sum[i] = fma(vec4<f32>(bitcast<f32>(weights[i * KEYS + n])), value, sum[i]);
    }
  }
  for (var i = 0u; i < QUERIES; i++) {  // unroll
    shared4[i * WIDEST + thread] = sum[i];
  }
  workgroupBarrier();
  for (var item = thread; item < QUERIES * value_groups; item += THREADS) {
    let i = item / value_groups;
    let column = item % value_groups;
    var all = vec4<f32>(0.0);
    for (var t = 0u; t < slices; t++) { all += shared4[i * WIDEST + t * value_groups + column]; }
    if i0 + i < s.q_len { partial[(row0 + i) * (value_groups + 1u) + column] = all; }
  }
}
