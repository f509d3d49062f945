// attention_split: attention of one to a few queries over one part of the keys; attention_reduce puts the parts together
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> partial (splits, B, NH, T, VS / 4 + 1) of four floats each
//
// A workgroup takes QUERIES queries of one head over the keys split · KEYS up to (split + 1) · KEYS: parts of constant length from
// position 0, so that a row's bits do not depend on how long others are. KEY_THREADS neighbours read each key row, and those of a
// value row each value row, once for all queries. A row of partial holds Σ weight · v, then the largest score and the sum of weights.
// What counts is how many loads are under way: a thread has AHEAD of keys, then as many of values. Keys past the length are never read,
// and those that the key mask hides reach no sum. Loops: head_size, KEYS.
// Workgroup memory: QUERIES · PLACES · 16 bytes of queries, later of sums, KEY_THREADS · (QUERIES · KEYS + 4) · 4 of scores and
// weights, QUERIES · ROW_THREADS · 8. (Dao et al., Flash-Decoding)

@group(1) @binding(6) var<storage, read_write> partial: array<vec4<f32>>;

const WIDEST: u32 = 64u;                                // groups of four in a head
const KEYS_AHEAD: u32 = KEYS * KEY_THREADS / THREADS;   // keys of a thread
const AHEAD: u32 = KEYS_AHEAD * GROUPS_AHEAD;           // loads of a thread under way
const ROW_THREADS: u32 = min(THREADS / QUERIES, KEYS / 4u);  // threads of a query, in the softmax
const PLACES: u32 = max(WIDEST, THREADS);               // of a query, then of its sums
const LANE_SCORES: u32 = QUERIES * KEYS + 4u;           // of one of KEY_THREADS; neighbours write to different banks

var<workgroup> shared4: array<vec4<f32>, QUERIES * PLACES>;           // [query][d / 4], then [query][thread]
var<workgroup> weights: array<u32, KEY_THREADS * LANE_SCORES>;        // [thread of a key][query][place of a key], by their bits: shares
                                                                      // of products, then at the first thread's scores, then weights
var<workgroup> rows: array<f32, 2u * QUERIES * ROW_THREADS>;          // largest scores, sums of weights

// Where a key stands: those who finish scores take four neighbours, and read side by side.
fn place(n: u32) -> u32 { return n % 4u * (KEYS / 4u) + n / 4u; }

fn q4(i: u32, d: u32) -> vec4<f32> {
  let row = current.q_start + min(i, current.q_len - 1u);
  let at = params.q_offset + row * params.q_row + head_index * params.q_head + d;
  return keep(group4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), params.head_size - d);
}

// Of the workgroup's queries: one that every thread needs little of is not worth a barrier.
fn query4(i0: u32, i: u32, group: u32) -> vec4<f32> {
  if QUERIES == 1u { return q4(i0, group * 4u); }
  return shared4[i * PLACES + min(group, WIDEST - 1u)];
}

fn k4(row: u32, d: u32) -> vec4<f32> {
  let at = row + d;
  return keep(group4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), params.head_size - d);
}

fn v4(row: u32, d: u32) -> vec4<f32> {
  let at = row + d;
  return keep(group4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]), params.value_size - d);
}

// Four neighbours of the first thread's scores or weights, given the place of the first.
fn four(at: u32) -> vec4<u32> {
  return vec4<u32>(weights[at], weights[at + KEYS / 4u], weights[at + KEYS / 2u], weights[at + KEYS / 4u * 3u]);
}

fn store_four(at: u32, bits: vec4<u32>) {
  weights[at] = bits.x;
  weights[at + KEYS / 4u] = bits.y;
  weights[at + KEYS / 2u] = bits.z;
  weights[at + KEYS / 4u * 3u] = bits.w;
}

fn scores_of(bits: vec4<u32>) -> vec4<f32> {
  return select(bitcast<vec4<f32>>(bits), vec4<f32>(LOWEST), bits == vec4<u32>(MINUS_INFINITY));
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

  let groups = (params.head_size + 3u) / 4u;
  if QUERIES > 1u {
    for (var item = thread; item < QUERIES * groups; item += THREADS) {
      let i = item % QUERIES;
      let group = min(item / QUERIES, WIDEST - 1u);
      shared4[i * PLACES + group] = q4(i0 + i, group * 4u);
    }
    workgroupBarrier();
  }

  // A thread's share of products with KEYS_AHEAD keys that lie together: every KEY_THREADS-th group of them.
  let lane = thread % KEY_THREADS;
  let n0 = thread / KEY_THREADS * KEYS_AHEAD;
  if n0 < count {
    let first = params.k_offset + (s.k_start + j0) * params.k_row + kv_head * params.k_head;
    var sum: array<vec4<f32>, QUERIES * KEYS_AHEAD>;
    for (var g = lane; g < groups; g += KEY_THREADS * GROUPS_AHEAD) {
      var keys = array<vec4<f32>, AHEAD>();
      for (var a = 0u; a < KEYS_AHEAD; a++) {  // unroll
        let row = first + min(n0 + a, count - 1u) * params.k_row;
        for (var c = 0u; c < GROUPS_AHEAD; c++) {  // unroll
          keys[a * GROUPS_AHEAD + c] = k4(row, min(g + c * KEY_THREADS, groups - 1u) * 4u);
        }
      }
      for (var c = 0u; c < GROUPS_AHEAD; c++) {  // unroll
        let group = g + c * KEY_THREADS;
        if group < groups {
          for (var i = 0u; i < QUERIES; i++) {  // unroll
            let query = query4(i0, i, group);
            for (var a = 0u; a < KEYS_AHEAD; a++) {  // unroll
              sum[i * KEYS_AHEAD + a] = fma(query, keys[a * GROUPS_AHEAD + c], sum[i * KEYS_AHEAD + a]);
            }
          }
        }
      }
    }
    for (var i = 0u; i < QUERIES; i++) {  // unroll
      for (var a = 0u; a < KEYS_AHEAD; a++) {  // unroll
        let all = sum[i * KEYS_AHEAD + a];
        weights[lane * LANE_SCORES + i * KEYS + place(n0 + a)] = bitcast<u32>((all.x + all.y) + (all.z + all.w));
      }
    }
  }
  workgroupBarrier();

  // ROW_THREADS threads a query, four keys at a time: scores and the largest, then weights relative to it and their sum.
  let row = thread / ROW_THREADS;
  let own = thread % ROW_THREADS;
  var top = LOWEST;
  if row < QUERIES {
    for (var n = own * 4u; n < KEYS; n += ROW_THREADS * 4u) {
      let at = row * KEYS + n / 4u;
      var sum = vec4<f32>(0.0);
      for (var l = 0u; l < KEY_THREADS; l++) {  // unroll
        sum += bitcast<vec4<f32>>(four(l * LANE_SCORES + at));
      }
      let bits = finish_scores(sum, keys_exist(b, s, j0 + n), b, h, s, i0 + row, j0 + n);
      store_four(at, bits);
      let scores = scores_of(bits);
      top = max(top, max(max(scores.x, scores.y), max(scores.z, scores.w)));
    }
    rows[thread] = top;
  }
  workgroupBarrier();
  if row < QUERIES {
    for (var t = 0u; t < ROW_THREADS; t++) {  // unroll
      top = max(top, rows[row * ROW_THREADS + t]);
    }
    var total = vec4<f32>(0.0);
    for (var n = own * 4u; n < KEYS; n += ROW_THREADS * 4u) {
      let at = row * KEYS + n / 4u;
      let bits = four(at);
      let weight = select(exp0(scores_of(bits) - top), vec4<f32>(0.0), bits == vec4<u32>(MINUS_INFINITY));
      store_four(at, bitcast<vec4<u32>>(weight));
      total += weight;
    }
    rows[QUERIES * ROW_THREADS + thread] = (total.x + total.y) + (total.z + total.w);
  }
  workgroupBarrier();

  // Neighbours read neighbouring columns of a value row; what is left of the threads takes other rows, AHEAD that lie together.
  let group = thread % value_groups;
  let slices = min(THREADS / value_groups, KEYS / AHEAD);
  let slice = thread / value_groups;
  let first = params.v_offset + (s.k_start + j0) * params.v_row + kv_head * params.v_head;
  var sum: array<vec4<f32>, QUERIES>;
  for (var n = select(count, slice * AHEAD, slice < slices); n < count; n += slices * AHEAD) {
    var values = array<vec4<f32>, AHEAD>();
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      values[a] = v4(first + min(n + a, count - 1u) * params.v_row, group * 4u);
    }
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      var bits = array<u32, QUERIES>();
      var any = 0u;
      for (var i = 0u; i < QUERIES; i++) {  // unroll
        bits[i] = weights[i * KEYS + place(n + a)];
        any |= bits[i];
      }
      // What nobody sees may be NaN.
      let value = select(vec4<f32>(0.0), values[a], any != 0u);
      for (var i = 0u; i < QUERIES; i++) {  // unroll
        sum[i] = fma(vec4<f32>(bitcast<f32>(bits[i])), value, sum[i]);
      }
    }
  }
  for (var i = 0u; i < QUERIES; i++) {  // unroll
    shared4[i * PLACES + thread] = sum[i];
  }
  if own == 0u && row < QUERIES && i0 + row < s.q_len {
    var total = 0.0;
    for (var t = 0u; t < ROW_THREADS; t++) {  // unroll
      total += rows[(QUERIES + row) * ROW_THREADS + t];
    }
    partial[(row0 + row) * (value_groups + 1u) + value_groups] = vec4<f32>(top, total, 0.0, 0.0);
  }
  workgroupBarrier();
  for (var item = thread; item < QUERIES * value_groups; item += THREADS) {
    let i = item / value_groups;
    let column = item % value_groups;
    var all = vec4<f32>(0.0);
    for (var t = 0u; t < slices; t += 4u) {
      for (var u = 0u; u < 4u; u++) {  // unroll
        let part = shared4[i * PLACES + min(t + u, slices - 1u) * value_groups + column];
        all += select(vec4<f32>(0.0), part, t + u < slices);
      }
    }
    if i0 + i < s.q_len { partial[(row0 + i) * (value_groups + 1u) + column] = all; }
  }
}
