// The passes of choose over a row, and what thread 0 makes of each: which depths and columns the next one is about.

const SEGMENTS: u32 = THREADS / SHARE;

const DEPTH: f32 = 16777216.0;        // what a logit, over the temperature, that lies 1 below the largest has
const DEEPEST: f32 = 104.0;           // e^−104 is 0 in f32
const LIMIT: u32 = 1744830464u;       // DEEPEST · DEPTH

// What a pass is for; those that a row needs follow in this order.
const TOP_K: u32 = 0u;
const TOP_P: u32 = 1u;
const SEGMENT: u32 = 2u;              // in which the draw falls, until few columns are left
const COLUMN: u32 = 3u;               // of these
const LOG_SUM: u32 = 4u;
const DONE: u32 = 5u;

struct Pass {
  goal: u32,
  low: u32,              // depths that count: from low on, below high
  high: u32,
  first: u32,            // columns
  count: u32,
}

// What thread 0 carries from pass to pass.
struct Walk {
  needed: f32,           // what is to be kept, and what above `low` is
  above: f32,
  left: f32,             // the weight from `first` up to the draw
  kept: u32,             // the depth that is no longer kept
  token: u32,
  log_sum: f32,
}

// Sums of a pass, by their bits those of segments.
var<workgroup> of_segment: array<array<vec4<u32>, 2>, SEGMENTS>;
var<workgroup> bins: array<vec4<f32>, 2>;

fn sum_of_4(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

// Columns of a segment, whole groups of four, when there are `count`.
fn segment_length(count: u32) -> u32 { return (count + SEGMENTS * 4u - 1u) / (SEGMENTS * 4u) * 4u; }

// How far depths are shifted to give a bin of a pass: all of them bin 0 where they are not narrowed.
fn bin_shift(now: Pass) -> u32 {
  return select(31u, 29u - min(countLeadingZeros(now.high - now.low - 1u), 29u), now.goal <= TOP_P);
}

// Keeps down to the first bin that reaches what is needed, or the last that holds anything; done once that can be one depth only.
// Equal tokens are kept or dropped together, and one is kept in any case.
fn narrow(now: Pass, share: f32, walk: ptr<function, Walk>) -> Pass {
  if now.low == 0u && (*walk).needed < 0.0 {
    (*walk).above = 0.0;
    (*walk).needed = select(share, share * (sum_of_4(bins[0]) + sum_of_4(bins[1])), now.goal == TOP_P);
  }
  var chosen = 0u;
  var held = 0.0;
  var found = false;
  for (var b = 0u; b < 8u; b++) {
    let amount = bins[b / 4u][b % 4u];
    if !found && amount > 0.0 {
      (*walk).above += held;
      held = amount;
      chosen = b;
      found = (*walk).above + held >= (*walk).needed;
    }
  }
  let shift = bin_shift(now);
  var next = now;
  next.low += chosen << shift;
  if chosen != (now.high - now.low - 1u) >> shift { next.high = next.low + (1u << shift); }
  // Less than two of the least that a token here can count is one token.
  let least = select(exp(-f32(next.high) / DEPTH), 1.0, now.goal == TOP_K);
  if next.high - next.low == 1u || held < 1.9 * least { next.goal = DONE; }
  return next;
}

// The segment in which the weights, added up in the order of columns, come to exceed `left`.
fn descend(now: Pass, walk: ptr<function, Walk>) -> Pass {
  let length = segment_length(now.count);
  var walked = 0.0;
  var chosen = 0u;
  var rest = (*walk).left;
  var found = false;
  for (var s = 0u; s < min(params.segments, SEGMENTS); s++) {
    let amount = bitcast<f32>(of_segment[s][0].x);
    if !found && amount > 0.0 {
      chosen = s;
      rest = (*walk).left - walked;
      walked += amount;
      found = walked > (*walk).left;
    }
  }
  (*walk).left = rest;
  return Pass(now.goal, now.low, now.high, now.first + chosen * length, min(length, now.count - chosen * length));
}

// The column in which they do, the last that has a weight if none.
fn drawn_column(now: Pass, walk: ptr<function, Walk>) {
  var walked = 0.0;
  var found = false;
  for (var b = 0u; b < 8u; b++) {
    let amount = bins[b / 4u][b % 4u];
    if !found && amount > 0.0 {
      (*walk).token = now.first + b;
      walked += amount;
      found = walked > (*walk).left;
    }
  }
}

// The first of the wanted goals, a bit each, behind `goal`.
fn goal_after(wanted: u32, goal: u32) -> u32 { return goal + 1u + countTrailingZeros(wanted >> (goal + 1u)); }

// What thread 0 makes of a pass: the next one. `share` is top-k or top-p.
fn after(now: Pass, wanted: u32, share: f32, random: f32, walk: ptr<function, Walk>) -> Pass {
  var next = now;
  if now.goal <= TOP_P {
    next = narrow(now, share, walk);
    if next.goal != DONE { return next; }
    (*walk).kept = next.high;
  } else if now.goal == SEGMENT {
    if now.count == params.columns { (*walk).left = random * (sum_of_4(bins[0]) + sum_of_4(bins[1])); }
    next = descend(now, walk);
    if next.count > 8u { return next; }
    next.goal = COLUMN;
    return next;
  } else if now.goal == COLUMN {
    drawn_column(now, walk);
  } else {
    (*walk).log_sum = log(max(bins[0].x, 1.0));
  }
  (*walk).needed = -1.0;
  let goal = goal_after(wanted, now.goal);
  return Pass(goal, 0u, select((*walk).kept, LIMIT, goal == LOG_SUM), 0u, params.columns);
}
