// beam_candidates: the most probable tokens of every row, each with its log-probability
//
//   logits (B, V), bias (B or 1, V), banned (B or 1, V / 32), sequences (B, 8) -> candidates (B, K, 2): token, log-probability
//
// A workgroup serves a row. Its columns are dealt out to SEGMENTS segments, group of four by group of four, and of each segment the
// best one that was not taken yet stands in workgroup memory: K times the best of them all is taken, and the thread that has its
// segment looks for the next one there. So the row is read twice, for its largest logit and for the sum, and K segments of it
// once more.
// Sums have one order, whatever B is: four, the groups of a segment, a thread's segments, SHARE threads, SHARES.
// Loops: columns, K, constant. Workgroup memory: SEGMENTS · 8 + THREADS · 16 + SHARES · 16 + 16 bytes.

struct Params {
  columns: u32,
  batch: u32,
  count: u32,              // K
  flags: u32,
  share: u32,              // SHARE and SHARES once more, for loops that are not worth unrolling
  shares: u32,
  logits_row: u32,         // strides
  bias_row: u32,
  banned_row: u32,
  sequences_row: u32,
  candidates_row: u32,
  candidate_stride: u32,
  logits_offset: u32,
  bias_offset: u32,
  banned_offset: u32,
  sequences_offset: u32,
  candidates_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> logits: array<Bits>;            // (B, V)
@group(1) @binding(1) var<storage, read> bias: array<u32>;               // (B or 1, V), floats by their bits
@group(1) @binding(2) var<storage, read> banned: array<u32>;             // (B or 1, V / 32), a bit a token
@group(1) @binding(3) var<storage, read> sequences: array<u32>;          // (B, 8)
@group(1) @binding(4) var<storage, read_write> candidates: array<u32>;   // (B, K, 2): token, log-probability by its bits

// params.flags: what is bound, and whether probabilities are of the tokens that are not banned
const BIAS: u32 = 1u;
const BANNED: u32 = 2u;
const SEQUENCES: u32 = 4u;
const RENORMALIZED: u32 = 8u;

const SEGMENTS: u32 = 512u;
const SHARES: u32 = THREADS / SHARE;
const MOST: u32 = 64u;                  // candidates

const NO_TOKEN: u32 = 0xffffffffu;
const MINUS_INFINITY: u32 = 0xff800000u;
const DEEPEST: f32 = 104.0;             // e^−104 is 0 in f32

// Where a row begins.
struct Row { logits: u32, bias: u32, banned: u32 }

// The best of each segment that was not taken: key, complement of the column; a key of 0 is none.
var<workgroup> left: array<vec2<u32>, SEGMENTS>;
var<workgroup> of_thread: array<vec4<u32>, THREADS>;
var<workgroup> of_share: array<vec4<u32>, SHARES>;
var<workgroup> agreed: vec4<u32>;

// The model's logits c .. c + 3 with bias, without what is banned.
fn edit(row: Row, c: u32, keys: vec4<u32>) -> vec4<u32> {
  var possible = keys != vec4<u32>(0u);
  if (params.flags & BANNED) != 0u { possible = possible & !marked(banned[row.banned + c / 32u], c); }
  if (params.flags & BIAS) == 0u { return select(vec4<u32>(0u), keys, possible); }
  let x = add_bias(row.bias, c, limited(keys), &possible);
  return select(vec4<u32>(0u), order(bitcast<vec4<u32>>(x)), possible);
}

// Those that are summed up.
fn summed(row: Row, c: u32) -> vec4<u32> {
  let keys = own_logits(row.logits, c);
  if (params.flags & RENORMALIZED) != 0u { return edit(row, c, keys); }
  return keys;
}

// The best x with its y, and the largest z, over all threads; the same for all of them.
fn best(thread: u32, v: vec4<u32>) -> vec4<u32> {
  of_thread[thread] = v;
  workgroupBarrier();
  if thread % SHARE == 0u {
    var found = v;
    for (var i = 1u; i < min(params.share, SHARE); i++) { found = better(found, of_thread[thread + i]); }
    of_share[thread / SHARE] = found;
  }
  workgroupBarrier();
  if thread == 0u {
    var found = of_share[0];
    for (var s = 1u; s < min(params.shares, SHARES); s++) { found = better(found, of_share[s]); }
    agreed = found;
  }
  return workgroupUniformLoad(&agreed);
}

// The sum over all threads; the same for all of them.
fn add_up(thread: u32, v: f32) -> f32 {
  of_thread[thread].x = bitcast<u32>(v);
  workgroupBarrier();
  if thread % SHARE == 0u {
    var sum = v;
    for (var i = 1u; i < min(params.share, SHARE); i++) { sum += bitcast<f32>(of_thread[thread + i].x); }
    of_share[thread / SHARE].x = bitcast<u32>(sum);
  }
  workgroupBarrier();
  if thread == 0u {
    var sum = bitcast<f32>(of_share[0].x);
    for (var s = 1u; s < min(params.shares, SHARES); s++) { sum += bitcast<f32>(of_share[s].x); }
    agreed.x = bitcast<u32>(sum);
  }
  return bitcast<f32>(workgroupUniformLoad(&agreed).x);
}

// The best of a segment behind `taken`.
fn next_of(row: Row, segment: u32, taken: vec4<u32>) -> vec4<u32> {
  var found = vec4<u32>(0u);
  for (var c = segment * 4u; c < params.columns; c += SEGMENTS * 4u) {
    let keys = edit(row, c, own_logits(row.logits, c));
    for (var l = 0u; l < 4u; l++) {
      let other = vec4<u32>(keys[l], ~(c + l), 0u, 0u);
      if other.x != 0u && before(taken, other) && before(other, found) { found = other; }
    }
  }
  return found;
}

// The best of a thread's segments.
fn best_left(thread: u32) -> vec4<u32> {
  var found = vec4<u32>(0u);
  for (var s = thread; s < SEGMENTS; s += THREADS) { found = better(found, vec4<u32>(left[s], 0u, 0u)); }
  return found;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let b = workgroup_number(id);
  if b >= params.batch { return; }
  if (params.flags & SEQUENCES) != 0u {
    if thread == 0u { agreed = vec4<u32>(sequences[params.sequences_offset + b * params.sequences_row + 1u]); }
    if workgroupUniformLoad(&agreed).x == 0u { return; }
  }
  let row = Row(
    params.logits_offset + b * params.logits_row,
    params.bias_offset + b * params.bias_row,
    params.banned_offset + b * params.banned_row,
  );

  var largest = 0u;                       // of what is summed up
  for (var s = thread; s < SEGMENTS; s += THREADS) {
    var found = vec2<u32>(0u);
    for (var c = s * 4u; c < params.columns; c += SEGMENTS * 4u) {
      let own = own_logits(row.logits, c);
      let keys = edit(row, c, own);
      let counted = select(own, keys, (params.flags & RENORMALIZED) != 0u);
      largest = max(largest, max(max(counted.x, counted.y), max(counted.z, counted.w)));
      for (var l = 0u; l < 4u; l++) { found = select(found, vec2<u32>(keys[l], ~(c + l)), keys[l] > found.x); }
    }
    left[s] = found;
  }
  var mine = best_left(thread);
  let half_largest = 0.5 * number(vec4<u32>(best(thread, vec4<u32>(mine.xy, largest, 0u)).z)).x;

  var sum = 0.0;
  for (var s = thread; s < SEGMENTS; s += THREADS) {
    var part = 0.0;
    for (var c = s * 4u; c < params.columns; c += SEGMENTS * 4u) {
      let keys = summed(row, c);
      let depth = 2.0 * clamp(half_largest - 0.5 * number(keys), vec4<f32>(0.0), vec4<f32>(0.5 * DEEPEST));
      let weight = select(vec4<f32>(0.0), exp(-depth), keys != vec4<u32>(0u));
      part += (weight.x + weight.y) + (weight.z + weight.w);
    }
    sum += part;
  }
  let log_sum = log(max(add_up(thread, sum), 1.0));

  for (var k = 0u; k < min(params.count, MOST); k++) {
    let taken = best(thread, mine);
    if thread == 0u {
      let at = params.candidates_offset + b * params.candidates_row + k * params.candidate_stride;
      let half = max(0.5 * number(vec4<u32>(taken.x)).x - half_largest, -1.7014117e38);  // half of the lowest f32
      let log_prob = 2.0 * half - log_sum;
      candidates[at] = select(NO_TOKEN, ~taken.y, taken.x != 0u);
      candidates[at + 1u] = select(MINUS_INFINITY, bitcast<u32>(log_prob), taken.x != 0u);
    }
    if taken.x != 0u && taken.y == mine.y {
      let segment = ~taken.y / 4u % SEGMENTS;
      left[segment] = next_of(row, segment, taken).xy;
      mine = best_left(thread);
    }
  }
}
