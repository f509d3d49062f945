// choose: the next token of every row, and the row's state behind it
//
//   logits (B, V), maxima (B, groups, 2), bias (B or 1, V), seen (B, V / 32), sampling (B, 16), state (2 B or 3 B, 8)
//     -> tokens (steps, B), log_probs (steps, B), seen, state
//
// A workgroup chooses for one row. A greedy row whose logits are taken as they are reads their maxima alone. Else the first pass
// finds the largest processed logit, and all that follows is about depths below it: (largest − logit) / temperature in units of
// 2⁻²⁴, integers from 0 up to LIMIT, at which e^−depth is 0. Every other pass adds up counts or weights in eight bins: top-k and
// top-p are the depth that is no longer kept, narrowed eight times a pass; the draw narrows columns instead, SEGMENTS times a
// pass; log-probabilities are one pass over the model's own logits. One loop makes them all, as copies of it would be most of
// the code.
// Sums have one order, whatever B is: four, BLOCK columns of a thread, the thread's blocks, SHARE threads, SEGMENTS.
// A thread's columns: segment thread / SHARE of those of the pass, every SHARE-th group of four.
// Loops: columns, groups, constant. Workgroup memory: THREADS · 32 + SEGMENTS · 32 + 52 bytes.

struct Params {
  columns: u32,
  batch: u32,
  groups: u32,             // of maxima, in a row
  steps: u32,
  padding: u32,            // the token of a row that rests
  capacity: u32,           // keys that a slot of the cache holds
  flags: u32,
  share: u32,              // SHARE and SEGMENTS once more, for loops that are not worth unrolling
  segments: u32,
  logits_row: u32,         // strides
  maxima_row: u32,
  maxima_group: u32,
  state_row: u32,
  tokens_row: u32,
  log_probs_row: u32,
  bias_row: u32,
  seen_row: u32,
  sampling_row: u32,
  logits_offset: u32,
  maxima_offset: u32,
  state_offset: u32,
  tokens_offset: u32,
  log_probs_offset: u32,
  bias_offset: u32,
  seen_offset: u32,
  sampling_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> logits: array<Bits>;           // (B, V)
@group(1) @binding(1) var<storage, read> maxima: array<u32>;            // (B, groups, 2): key, column
@group(1) @binding(2) var<storage, read> bias: array<u32>;              // (B or 1, V), floats by their bits
@group(1) @binding(3) var<storage, read> sampling: array<u32>;          // (B, 16)
@group(1) @binding(4) var<storage, read_write> state: array<u32>;       // B sequences, B of cross-attention, B of id, step, flags
@group(1) @binding(5) var<storage, read_write> tokens: array<u32>;      // (steps, B)
@group(1) @binding(6) var<storage, read_write> log_probs: array<f32>;   // (steps, B)
@group(1) @binding(7) var<storage, read_write> seen: array<u32>;        // (B, V / 32), a bit a token

// params.flags: what is bound
const MAXIMA: u32 = 1u;
const BIAS: u32 = 2u;
const SEEN: u32 = 4u;
const LOG_PROBS: u32 = 8u;
const CROSS: u32 = 16u;

// flags of a row's state
const ENDED: u32 = 1u;
const FULL: u32 = 2u;
const NO_CHOICE: u32 = 4u;

const STOPS: u32 = 8u;
const NO_STOP: u32 = 0xffffffffu;

const STEP: u32 = SHARE * 4u;
const BLOCK: u32 = 64u * STEP;        // columns whose weights are added before they join the thread's

const NONE: u32 = 0xffffffffu;        // deeper than any: a token that cannot be chosen

// What the threads of a workgroup agree on.
struct Row {
  logits: u32,           // where the row begins
  bias: u32,
  seen: u32,
  penalty: f32,
  penalised: bool,
  edited: bool,          // whether the processed logits are others than the model's
  half_largest: f32,     // half the largest processed logit
  rate: f32,             // 2 / temperature
}

var<workgroup> of_thread: array<array<vec4<u32>, 2>, THREADS>;
var<workgroup> agreed: Pass;

// The model's logits c .. c + 3 with bias and penalty.
fn edit(row: Row, c: u32, keys: vec4<u32>) -> vec4<u32> {
  if !row.edited { return keys; }
  var possible = keys != vec4<u32>(0u);
  var x = limited(keys);
  if (params.flags & BIAS) != 0u { x = add_bias(row.bias, c, x, &possible); }
  if row.penalised {
    let penalised = select(x * row.penalty, x / row.penalty, x > vec4<f32>(0.0));
    x = select(x, penalised, marked(seen[row.seen + c / 32u], c));
  }
  return select(vec4<u32>(0u), order(bitcast<vec4<u32>>(x)), possible);
}

// How deep the processed logits c .. c + 3 lie below the largest.
fn depths(row: Row, c: u32) -> vec4<u32> {
  let keys = edit(row, c, own_logits(row.logits, c));
  let below = clamp(row.half_largest - 0.5 * number(keys), vec4<f32>(0.0), vec4<f32>(1.0e12)) * row.rate;
  return select(vec4<u32>(NONE), vec4<u32>(min(below, vec4<f32>(DEEPEST)) * DEPTH), keys != vec4<u32>(0u));
}

// The best x with its y, and the largest z, over all threads; the same for all of them.
fn best(thread: u32, v: vec4<u32>) -> vec3<u32> {
  of_thread[thread][0] = v;
  workgroupBarrier();
  if thread % SHARE == 0u {
    var found = v;
    for (var i = 1u; i < min(params.share, SHARE); i++) { found = better(found, of_thread[thread + i][0]); }
    of_segment[thread / SHARE][0] = found;
  }
  workgroupBarrier();
  if thread == 0u {
    var found = of_segment[0][0];
    for (var s = 1u; s < min(params.segments, SEGMENTS); s++) { found = better(found, of_segment[s][0]); }
    agreed = Pass(0u, found.x, found.y, found.z, 0u);
  }
  let found = workgroupUniformLoad(&agreed);
  return vec3<u32>(found.low, found.high, found.first);
}

// Adds up the bins of all threads: thread 0 finds the sums in `bins`, and those of segments in `of_segment`.
fn add_up(thread: u32, low: vec4<f32>, high: vec4<f32>) {
  of_thread[thread] = array<vec4<u32>, 2>(bitcast<vec4<u32>>(low), bitcast<vec4<u32>>(high));
  workgroupBarrier();
  if thread % SHARE == 0u {
    var a = low;
    var b = high;
    for (var i = 1u; i < min(params.share, SHARE); i++) {
      a += bitcast<vec4<f32>>(of_thread[thread + i][0]);
      b += bitcast<vec4<f32>>(of_thread[thread + i][1]);
    }
    of_segment[thread / SHARE] = array<vec4<u32>, 2>(bitcast<vec4<u32>>(a), bitcast<vec4<u32>>(b));
  }
  workgroupBarrier();
  if thread == 0u {
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    for (var s = 0u; s < min(params.segments, SEGMENTS); s++) {
      a += bitcast<vec4<f32>>(of_segment[s][0]);
      b += bitcast<vec4<f32>>(of_segment[s][1]);
    }
    bins[0] = a;
    bins[1] = b;
  }
}

// A pass over the row: counts or weights of what counts, in bins of depths or, at last, of columns.
fn add_bins(row: Row, thread: u32, now: Pass) {
  let length = segment_length(now.count);
  let begin = now.first + thread / SHARE * length;
  let end = min(begin + length, now.first + now.count);
  let shift = bin_shift(now);
  var low = vec4<f32>(0.0);
  var high = vec4<f32>(0.0);
  for (var block = begin + thread % SHARE * 4u; block < end; block += BLOCK) {
    var part_low = vec4<f32>(0.0);
    var part_high = vec4<f32>(0.0);
    for (var c = block; c < min(block + BLOCK, end); c += STEP) {
      let depth = depths(row, c);
      let into = depth - now.low;             // wraps for what is above
      let inside = into < vec4<u32>(now.high - now.low);
      if any(inside) {
        let weight = exp(-vec4<f32>(min(depth, vec4<u32>(LIMIT))) / DEPTH);
        let amount = select(vec4<f32>(0.0), select(weight, vec4<f32>(1.0), now.goal == TOP_K), inside);
        let columns = c - now.first + vec4<u32>(0u, 1u, 2u, 3u);
        let bin = select(into >> vec4<u32>(shift), columns, now.goal == COLUMN);
        if shift == 31u && now.goal != COLUMN {
          part_low.x += sum_of_4(amount);
        } else {
          for (var l = 0u; l < 4u; l++) {
            part_low += select(vec4<f32>(0.0), vec4<f32>(amount[l]), vec4<u32>(bin[l]) == vec4<u32>(0u, 1u, 2u, 3u));
            part_high += select(vec4<f32>(0.0), vec4<f32>(amount[l]), vec4<u32>(bin[l]) == vec4<u32>(4u, 5u, 6u, 7u));
          }
        }
      }
    }
    low += part_low;
    high += part_high;
  }
  add_up(thread, low, high);
}

// Where the rows of a row's state begin: its sequences, and id, step, flags.
fn sequence_at(b: u32) -> u32 { return params.state_offset + b * params.state_row; }
fn own_at(b: u32) -> u32 { return sequence_at(b + params.batch * select(1u, 2u, (params.flags & CROSS) != 0u)); }

// Hands a step's token out and counts the step.
fn hand_out(b: u32, token: u32, log_prob: f32) {
  let step = state[own_at(b) + 1u];
  if step < params.steps {
    tokens[params.tokens_offset + step * params.tokens_row + b] = token;
    if (params.flags & LOG_PROBS) != 0u { log_probs[params.log_probs_offset + step * params.log_probs_row + b] = log_prob; }
  }
  state[own_at(b) + 1u] = step + 1u;
}

// Moves a row on by the token that was chosen, or ends it.
fn advance(b: u32, options: u32, token: u32, chosen: bool) {
  let sequence = sequence_at(b);
  let keys = state[sequence + 3u];
  var stopped = false;
  for (var i = 0u; i < STOPS; i++) {
    let stop = sampling[options + 8u + i];
    stopped = stopped || (stop == token && stop != NO_STOP);
  }
  let full = keys >= params.capacity;
  state[own_at(b)] = token;
  if chosen && !stopped && !full && keys < sampling[options + 6u] {
    state[sequence + 3u] = keys + 1u;
    state[sequence + 4u] += 1u;
    return;
  }
  state[sequence + 1u] = 0u;
  if (params.flags & CROSS) != 0u { state[sequence_at(b + params.batch) + 1u] = 0u; }
  state[own_at(b) + 2u] |= ENDED | select(0u, FULL, chosen && !stopped && full) | select(NO_CHOICE, 0u, chosen);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let b = workgroup_number(id);
  if b >= params.batch { return; }
  if thread == 0u { agreed = Pass(0u, state[sequence_at(b) + 1u], state[sequence_at(b) + 4u], 0u, 0u); }
  let sequence = workgroupUniformLoad(&agreed);
  if sequence.low == 0u {
    if thread == 0u { hand_out(b, params.padding, 0.0); }
    return;
  }

  // Options out of range are taken to its ends, by their bits; negative ones and NaN are above it.
  let options = params.sampling_offset + b * params.sampling_row;
  let temperature = sampling[options];
  let greedy = (temperature & 0x7fffffffu) == 0u;
  let penalty = clamp(sampling[options + 3u], 0x3a800000u, 0x44800000u); // 2⁻¹⁰ to 2¹⁰
  let penalised = (params.flags & SEEN) != 0u && penalty != 0x3f800000u;
  var row: Row;
  row.logits = params.logits_offset + b * params.logits_row;
  row.bias = params.bias_offset + b * params.bias_row;
  row.seen = params.seen_offset + b * params.seen_row;
  row.penalty = bitcast<f32>(penalty);
  row.penalised = penalised;
  row.edited = penalised || (params.flags & BIAS) != 0u;
  row.rate = 2.0 / bitcast<f32>(clamp(temperature, 0x358637bdu, 0x49742400u)); // 10⁻⁶ to 10⁶

  var found = vec4<u32>(0u);                  // key, complement of the column, key of the model's own
  if greedy && !row.edited && (params.flags & (MAXIMA | LOG_PROBS)) == MAXIMA {
    // Four under way at once; one that counts twice changes nothing.
    let first = params.maxima_offset + b * params.maxima_row;
    for (var group = thread; group < params.groups; group += THREADS * 4u) {
      var most = array<vec2<u32>, 4>();
      for (var a = 0u; a < 4u; a++) {  // unroll
        let at = first + min(group + a * THREADS, params.groups - 1u) * params.maxima_group;
        most[a] = vec2<u32>(maxima[at], maxima[at + 1u]);
      }
      for (var a = 0u; a < 4u; a++) {  // unroll
        let key = select(0u, most[a].x, most[a].x > KEY_OF_MINUS_INFINITY);
        found = better(found, vec4<u32>(key, ~most[a].y, 0u, 0u));
      }
    }
  } else {
    for (var c = thread * 4u; c < params.columns; c += THREADS * 4u) {
      let own = own_logits(row.logits, c);
      let keys = edit(row, c, own);
      for (var l = 0u; l < 4u; l++) {
        let more = keys[l] > found.x;
        found = vec4<u32>(select(found.x, keys[l], more), select(found.y, ~(c + l), more), max(found.z, own[l]), 0u);
      }
    }
  }
  let largest = best(thread, found);
  if largest.x == 0u {
    if thread == 0u {
      hand_out(b, params.padding, 0.0);
      advance(b, options, params.padding, false);
    }
    return;
  }

  var wanted = 1u << DONE;
  let top_k = sampling[options + 1u];
  let top_p = sampling[options + 2u];
  if !greedy {
    wanted |= 1u << SEGMENT;
    wanted |= select(0u, 1u << TOP_K, top_k != 0u && top_k < params.columns);
    wanted |= select(0u, 1u << TOP_P, top_p < 0x3f800000u);
  }
  if (params.flags & LOG_PROBS) != 0u { wanted |= 1u << LOG_SUM; }
  row.half_largest = 0.5 * number(vec4<u32>(largest.x)).x;
  let words = philox(vec4<u32>(sequence.high, 0u, 0u, 0u), vec2<u32>(sampling[options + 4u], sampling[options + 5u]));
  let random = f32(words.x >> 8u) / 16777216.0;
  var walk = Walk(-1.0, 0.0, 0.0, LIMIT, ~largest.y, 0.0);
  var now = Pass(countTrailingZeros(wanted), 0u, LIMIT, 0u, params.columns);
  // At most 11 passes for each of top-k and top-p, 9 for the draw.
  for (var n = 0u; n < 40u && now.goal != DONE; n++) {
    if now.goal == LOG_SUM {
      row.edited = false;
      row.rate = 2.0;
      row.half_largest = 0.5 * number(vec4<u32>(largest.z)).x;
    }
    add_bins(row, thread, now);
    if thread == 0u { agreed = after(now, wanted, select(f32(top_k), bitcast<f32>(top_p), now.goal == TOP_P), random, &walk); }
    now = workgroupUniformLoad(&agreed);
  }
  if thread == 0u {
    var log_prob = 0.0;
    if (params.flags & LOG_PROBS) != 0u {
      let own = number(vec4<u32>(own_logits(row.logits, walk.token / 4u * 4u)[walk.token % 4u], largest.z, 0u, 0u));
      log_prob = 2.0 * max(0.5 * own.x - 0.5 * own.y, -1.7014117e38) - walk.log_sum;  // half of the lowest f32
    }
    hand_out(b, walk.token, log_prob);
    if (params.flags & SEEN) != 0u { seen[row.seen + walk.token / 32u] |= 1u << (walk.token % 32u); }
    advance(b, options, walk.token, true);
  }
}
