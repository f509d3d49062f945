// shared/few_meet.wgsl for one row in groups of four whose k all threads share, on devices with subgroups of any size from 4 to 128:
// threads meet by shuffles, and once in workgroup memory where there are more of them than a subgroup has. Threads are numbered along
// subgroups, in which order WGSL does not promise local_invocation_index to run. Sums have the bits of shared/few_meet.wgsl, whatever
// the size. Workgroup memory: THREADS · 8 bytes.
//
// A thread has AHEAD groups of k under way: the first ones while the norm is made, those of the next pass while sums meet, and the rest
// AHEAD at a time. They stay as they are stored until they are used, as what converts them would wait for them.

const SUBGROUPS: u32 = THREADS / 4u;                            // of a workgroup, at most
const STEP: u32 = THREADS;                                      // between two groups of a thread

var<workgroup> of_subgroup: array<vec4<f32>, 2u * SUBGROUPS>;   // by turns, so that one barrier is enough

// A row that nobody has is not concluded.
fn is_live(r: u32) -> bool { return true; }

fn sum_of_4(at: u32) -> vec4<f32> {
  return (of_subgroup[at] + of_subgroup[at + 1u]) + (of_subgroup[at + 2u] + of_subgroup[at + 3u]);
}

// The sum over all threads; a + b and b + a are the same bits, so that every lane of a butterfly gets the same.
fn meet(v: vec4<f32>, turn: u32, thread: u32, subgroup: u32) -> vec4<f32> {
  var sum = v;
  for (var lanes = 1u; lanes < THREADS; lanes *= 2u) {
    if lanes < subgroup { sum += subgroupShuffleXor(sum, lanes); }
  }
  if subgroup >= THREADS { return sum; }
  let at = turn % 2u * SUBGROUPS;
  if thread % subgroup == 0u { of_subgroup[at + thread / subgroup] = sum; }
  workgroupBarrier();
  let count = THREADS / subgroup;                               // 2 to 16
  sum = of_subgroup[at] + of_subgroup[at + 1u];
  if count > 2u { sum += of_subgroup[at + 2u] + of_subgroup[at + 3u]; }
  if count > 4u { sum += sum_of_4(at + 4u); }
  if count > 8u { sum += sum_of_4(at + 8u) + sum_of_4(at + 12u); }
  return sum;
}

fn widened(v: Storage) -> vec4<f32> { return group4(v, v, v, v); }

// AHEAD groups of x from group `first` on.
fn x_of(start: u32, first: u32) -> array<Storage, AHEAD> {
  var all: array<Storage, AHEAD>;
  for (var a = 0u; a < AHEAD; a++) {  // unroll
    all[a] = x[start + min(first + a * STEP, params.d_in / LANES - 1u)];
  }
  return all;
}

// Four k of x and of the norm's vectors, as they are stored.
struct Part { x: Storage, gain: Storage, offset: Storage }

fn parts_of(start: u32, first: u32) -> array<Part, AHEAD> {
  var all: array<Part, AHEAD>;
  for (var a = 0u; a < AHEAD; a++) {  // unroll
    let group = min(first + a * STEP, params.d_in / LANES - 1u);
    all[a].x = x[start + group];
    if params.norm_weight != 0u { all[a].gain = norm_weight[params.norm_weight_offset / LANES + group]; }
    if params.norm_bias != 0u { all[a].offset = norm_bias[params.norm_bias_offset / LANES + group]; }
  }
  return all;
}

// Four k of four columns' weights.
struct Weights { a: Storage, b: Storage, c: Storage, d: Storage }

fn weights_of(starts: vec4<u32>, first: u32) -> array<Weights, AHEAD> {
  var all: array<Weights, AHEAD>;
  for (var a = 0u; a < AHEAD; a++) {  // unroll
    let at = starts + min(first + a * STEP, params.d_in / LANES - 1u);
    all[a] = Weights(weight[at.x], weight[at.y], weight[at.z], weight[at.w]);
  }
  return all;
}

fn matrix_of(w: Weights) -> mat4x4<f32> { return transpose(mat4x4<f32>(widened(w.a), widened(w.b), widened(w.c), widened(w.d))); }

// norm(x) of a part, given the row's norm.
fn normed_part(part: Part, norm: vec4<f32>) -> vec4<f32> {
  let gain = select(vec4<f32>(1.0), widened(part.gain), params.norm_weight != 0u);
  return normed(widened(part.x), norm, Affine(gain, widened(part.offset)));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_size) subgroup: u32, @builtin(subgroup_id) number: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  let tiles_n = (params.d_out + COLUMNS - 1u) / COLUMNS;
  let tile = workgroup_number(id);
  if tile >= params.rows * tiles_n { return; }
  let m = tile % params.rows;
  let thread = number * subgroup + lane;
  let first = tile / params.rows * COLUMNS;
  let owner = owner_of(m);
  let live = owner != NOBODY;
  let turns = min(PASSES, select(0u, (params.d_out - first + 3u) / 4u, live));
  let start = x_start(m);

  // Compilers move loads down to where they are used, but not out of a branch. What the norm waits for comes first: some GPUs return
  // loads in the order in which they were asked for.
  var parts: array<Part, AHEAD>;
  var ahead: array<Weights, AHEAD>;
  if live {
    parts = parts_of(start, thread);
    ahead = weights_of(weight_starts(first), thread);
  }

  let rest = thread + AHEAD * STEP;                             // what goes beyond, AHEAD groups at a time
  let groups = params.d_in / LANES;
  var norm = norm_at(0.0);
  if params.norm == 1u { norm.x = widened(x[start]).x; }
  for (var stage = select(2u, params.norm - 1u, live); stage < 2u; stage++) {
    var moments = Moments();
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      let k = (thread + a * STEP) * LANES;
      if k < params.d_in { moments = with_deviation(moments, widened(parts[a].x), k, norm); }
    }
    for (var group = rest; group < groups; group += AHEAD * STEP) {
      let more = x_of(start, group);
      for (var a = 0u; a < AHEAD; a++) {  // unroll
        let k = (group + a * STEP) * LANES;
        if k < params.d_in { moments = with_deviation(moments, widened(more[a]), k, norm); }
      }
    }
    norm = norm_of(norm, stage, meet(halves(moments), stage, thread, subgroup));
  }

  var kept: array<vec4<f32>, AHEAD>;
  for (var a = 0u; a < AHEAD; a++) {  // unroll
    kept[a] = normed_part(parts[a], norm);
  }
  for (var turn = 0u; turn < turns; turn++) {
    let n = first + turn * 4u;
    let starts = weight_starts(n);
    var sum = vec4<f32>(0.0);
    for (var a = 0u; a < AHEAD; a++) {  // unroll
      if thread + a * STEP < groups { sum = product(kept[a], matrix_of(ahead[a]), sum); }
    }
    for (var group = rest; group < groups; group += AHEAD * STEP) {
      let more = parts_of(start, group);
      let weights = weights_of(starts, group);
      for (var a = 0u; a < AHEAD; a++) {  // unroll
        if group + a * STEP < groups { sum = product(normed_part(more[a], norm), matrix_of(weights[a]), sum); }
      }
    }
    if PASSES > 1u && turn + 1u < turns { ahead = weights_of(weight_starts(n + 4u), thread); }
    sum = meet(sum, turn, thread, subgroup);
    if thread == 0u { finish(0u, m, owner, n, sum); }
  }
  if live { conclude(m, 1u, first, thread); }
}
