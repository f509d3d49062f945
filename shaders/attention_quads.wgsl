// attention for CPU adapters: out = softmax(scores(q, k)) · v, each thread for queries of its own, which keys and values reach by broadcasts
//
//   q (q_rows, NH, HS), k (k_rows, NH_kv, HS), v (k_rows, NH_kv, VS) -> out (q_rows, NH, VS), statistics
//
// A workgroup is one vector of eight threads in quads (shared/threads_quads.wgsl). It makes TILE_M queries of one head of one sequence,
// THREADS · THREAD_QUERIES at a time, and walks over the keys that any of them can see by position, TILE_N at a time. The threads of a quad
// read every fourth key and value for each other, so that an element that is loaded serves THREAD_QUERIES products of four threads: such an
// adapter goes through memory one thread after the other. A row's softmax is one thread's, with no barrier; the scores of a
// tile, and then their weights, lie in its own places in workgroup memory (THREAD_QUERIES · TILE_N · 32 bytes), which a loop can go over.
// What holds of options, maxima, sums and hidden keys holds as in attention.wgsl, whose bits these are where it has TILE_N keys a tile.
// Products stand behind branches, for keys and columns that there are: Mesa 25 would move all of a loop behind all of its loads, into
// more registers than there are.
// Loops: keys up to k_len ≤ S, head_size. Parameters and bindings: shared/fused.wgsl.

const THREADS: u32 = 8u;                  // the vector of most CPU adapters
const TILE_M: u32 = 64u;                  // queries, as in attention.wgsl
const BLOCK: u32 = THREADS * THREAD_QUERIES;     // those at a time
const TILE_N: u32 = KEY_GROUPS * 4u;      // keys

const_assert TILE_M % BLOCK == 0u;
const_assert LANES == 4u;

// [group of keys][query of the thread][thread]
var<workgroup> places: array<vec4<f32>, KEY_GROUPS * THREAD_QUERIES * THREADS>;

fn place_of(keys: u32, query: u32, thread: u32) -> u32 { return (keys * THREAD_QUERIES + query) * THREADS + thread; }

// For the loads: set once, from uniform values (a private variable does not count as one itself).
var<private> q_first: u32;
var<private> k_first: u32;
var<private> v_first: u32;

fn q4(i: u32, d: u32) -> vec4<f32> {
  let at = q_first + min(i, current.q_len - 1u) * params.q_row + d;
  return keep(group4(q[at / LANES], q[(at + 1u) / LANES], q[(at + 2u) / LANES], q[(at + 3u) / LANES]), params.head_size - d);
}

fn k4(j: u32, d: u32) -> vec4<f32> {
  let at = k_first + min(j, current.k_len - 1u) * params.k_row + d;
  return keep(group4(k[at / LANES], k[(at + 1u) / LANES], k[(at + 2u) / LANES], k[(at + 3u) / LANES]), params.head_size - d);
}

fn v4(j: u32, d: u32) -> vec4<f32> {
  let at = v_first + min(j, current.k_len - 1u) * params.v_row + d;
  return group4(v[at / LANES], v[(at + 1u) / LANES], v[(at + 2u) / LANES], v[(at + 3u) / LANES]);
}

// A score that takes part in a maximum.
fn shown(score: vec4<f32>) -> vec4<f32> { return select(score, vec4<f32>(LOWEST), is_hidden(score)); }

// exp(score − top), 0 for a hidden one.
fn weight4(score: vec4<f32>, top: f32) -> vec4<f32> {
  return select(exp0(shown(score) - vec4<f32>(top)), vec4<f32>(0.0), is_hidden(score));
}

alias Sums = array<vec4<f32>, THREAD_QUERIES * VALUE_GROUPS>;   // [query of the thread][group of columns]
alias Totals = array<f32, THREAD_QUERIES * KEY_GROUPS>;         // [query][place in a tile]: what keys of that place add to a row's sum of weights
alias Largest = array<f32, THREAD_QUERIES>;                     // running maxima

// Places of the products of the thread's queries from i0 on with the keys from j0 on.
fn put_products(thread: u32, i0: u32, j0: u32) {
  var products = array<vec4<f32>, THREAD_QUERIES * KEY_GROUPS>();
  for (var d = 0u; d < params.head_size; d += 4u) {
    var query = array<vec4<f32>, THREAD_QUERIES>();
    for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
      query[n] = q4(i0 + n * THREADS + thread, d);
    }
    for (var g = 0u; g < KEY_GROUPS; g++) {  // unroll
      let mine = k4(j0 + g * 4u + place, d);
      let keys = transpose(mat4x4<f32>(quadBroadcast(mine, 0u), quadBroadcast(mine, 1u), quadBroadcast(mine, 2u), quadBroadcast(mine, 3u)));
      if j0 + g * 4u < current.k_len {
        for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
          for (var c = 0u; c < 4u; c++) {  // unroll
            products[n * KEY_GROUPS + g] = fma(vec4<f32>(query[n][c]), keys[c], products[n * KEY_GROUPS + g]);
          }
        }
      }
    }
  }
  for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
    for (var g = 0u; g < KEY_GROUPS; g++) {  // unroll
      places[place_of(g, n, thread)] = products[n * KEY_GROUPS + g];
    }
  }
}

// Scores in place of products, by the options.
fn finish_places(thread: u32, i0: u32, j0: u32) {
  for (var at = 0u; at < THREAD_QUERIES * KEY_GROUPS; at++) {
    let j = j0 + at / THREAD_QUERIES * 4u;
    let i = i0 + at % THREAD_QUERIES * THREADS + thread;
    let score = finish_scores(places[at * THREADS + thread], keys_exist(batch_index, current, j), batch_index, head_index, current, i, j);
    places[at * THREADS + thread] = bitcast<vec4<f32>>(score);
  }
}

// Weights in place of scores, or of products where no option is looked at, and what was summed before rescaled to them.
fn put_weights(sum: ptr<function, Sums>, total: ptr<function, Totals>, largest: ptr<function, Largest>, thread: u32, masked: bool) {
  for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
    var scores = array<vec4<f32>, KEY_GROUPS>();
    var top4 = vec4<f32>((*largest)[n]);
    for (var g = 0u; g < KEY_GROUPS; g++) {  // unroll
      let found = places[place_of(g, n, thread)];
      scores[g] = select(fma(vec4<f32>(params.attention.scale), found, vec4<f32>(0.0)), found, vec4<bool>(masked));
      top4 = max(top4, shown(scores[g]));
    }
    let top = max(max(top4.x, top4.y), max(top4.z, top4.w));
    let factor = exp0(vec4<f32>((*largest)[n] - top)).x;
    (*largest)[n] = top;
    for (var g = 0u; g < KEY_GROUPS; g++) {  // unroll
      let weights = weight4(scores[g], top);
      places[place_of(g, n, thread)] = weights;
      let at = n * KEY_GROUPS + g;
      (*total)[at] = fma((*total)[at], factor, (weights.x + weights.y) + (weights.z + weights.w));
    }
    for (var v = 0u; v < VALUE_GROUPS; v++) {  // unroll
      (*sum)[n * VALUE_GROUPS + v] *= factor;
    }
  }
}

// sum += weights · v, of `count` keys from j0 on.
fn add_values(sum: ptr<function, Sums>, thread: u32, j0: u32, count: u32, masked: bool) {
  for (var first = 0u; first < count; first += 4u) {
    var weights = array<vec4<f32>, THREAD_QUERIES>();
    for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
      weights[n] = places[place_of(first / 4u, n, thread)];
    }
    let j = j0 + first + place;
    let exists = !masked || key_exists(batch_index, current, j);
    for (var v = 0u; v < VALUE_GROUPS; v++) {  // unroll
      if v * 4u < params.value_size {
        let mine = select(vec4<f32>(0.0), v4(j, v * 4u), exists);
        for (var r = 0u; r < 4u; r++) {  // unroll
          let value = quadBroadcast(mine, r);
          for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
            (*sum)[n * VALUE_GROUPS + v] = fma(vec4<f32>(weights[n][r]), value, (*sum)[n * VALUE_GROUPS + v]);
          }
        }
      }
    }
  }
}

fn work(id: vec3<u32>, thread: u32) {
  let number = workgroup_number(id);
  if number >= params.tiles_m * params.n_heads * params.batch { return; }
  // Under a causal mask the last queries see the most keys: they start first.
  let first = (params.tiles_m - 1u - number % params.tiles_m) * TILE_M;
  let h = number / params.tiles_m % params.n_heads;
  let b = number / params.tiles_m / params.n_heads;
  let s = sequence(b, params.longest_q, params.longest_k);
  batch_index = b;
  head_index = h;
  current = s;
  q_first = params.q_offset + s.q_start * params.q_row + h * params.q_head;
  k_first = params.k_offset + s.k_start * params.k_row + h / params.heads_per_kv * params.k_head;
  v_first = params.v_offset + s.k_start * params.v_row + h / params.heads_per_kv * params.v_head;
  for (var i0 = first; i0 < first + TILE_M; i0 += BLOCK) {
    if i0 < s.q_len {
      finish_block(s, thread, i0);
    } else {
      for (var n = 0u; n < THREAD_QUERIES; n++) { store_statistics(i0 + n * THREADS + thread, 0.0, 0.0); }
    }
  }
}

// BLOCK queries of sequence `s` from i0 on.
fn finish_block(s: Sequence, thread: u32, i0: u32) {
  // All keys from seen.x to `end`, and without a look at options those from `plain.x` to `plain.y`.
  let count = min(BLOCK, s.q_len - i0);
  let seen = key_range(s, i0, count);
  let end = min(u32(max(seen.y + 1, 0)), s.k_len);
  let options = (params.attention.flags & (KEY_MASK | BOOLEAN_MASK | ADDITIVE_MASK | ALIBI | SOFTCAP)) != 0u;
  let plain = vec2<i32>(key_range(s, i0 + count - 1u, 1u).x, key_range(s, i0, 1u).y);

  var sum = Sums();
  var total = Totals();
  var largest = Largest();
  for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
    largest[n] = LOWEST;
  }
  for (var j0 = u32(seen.x) / TILE_N * TILE_N; j0 < end; j0 += TILE_N) {
    let masked = options || i32(j0) < plain.x || i32(j0 + TILE_N) > plain.y + 1;
    put_products(thread, i0, j0);
    if masked { finish_places(thread, i0, j0); }
    put_weights(&sum, &total, &largest, thread, masked);
    add_values(&sum, thread, j0, min(TILE_N, end - j0), masked);
  }

  for (var n = 0u; n < THREAD_QUERIES; n++) {  // unroll
    var all = 0.0;
    for (var g = 0u; g < KEY_GROUPS; g++) {  // unroll
      all += total[n * KEY_GROUPS + g];
    }
    let inverse = select(0.0, 1.0 / all, all > 0.0);
    let row = i0 + n * THREADS + thread;
    store_statistics(row, largest[n], all);
    if row < s.q_len {
      let at = params.out_offset + (s.q_start + row) * params.out_row + head_index * params.out_head;
      for (var v = 0u; v < VALUE_GROUPS; v++) {  // unroll
        if v * 4u < params.value_size { out[(at + v * 4u) / LANES] = pick(sum[n * VALUE_GROUPS + v] * inverse, 0u); }
      }
    }
  }
}
