// shared/rows.wgsl for devices with subgroups of any size from 4 to 128: threads meet by shuffles, and by workgroup memory only
// where a row has more threads than a subgroup. Threads are numbered along subgroups, in which order WGSL does not promise
// local_invocation_index to run. The kernel defines
//   fn rows(id: vec3<u32>, thread: u32, subgroup: u32)
// Sums have the bits of shared/rows.wgsl, whatever the size. Workgroup memory: THREADS · 3 bytes.

const ROWS: u32 = THREADS / ROW_THREADS;
const STEP: u32 = ROW_THREADS * 4u;
const SUBGROUPS: u32 = THREADS / 4u;                       // of a workgroup, at most

var<workgroup> of_subgroup: array<u32, SUBGROUPS * 3u>;    // by their bits

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_size) subgroup: u32, @builtin(subgroup_id) number: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  rows(id, number * subgroup + lane, subgroup);
}

// Element i of the `count` from `first` on, 0 behind them: adding it changes no bits.
fn element(first: u32, count: u32, i: u32) -> f32 {
  return select(0.0, bitcast<f32>(of_subgroup[first + min(i, count - 1u)]), i < count);
}

fn sum_of_4(first: u32, count: u32, i: u32) -> f32 {
  return (element(first, count, i) + element(first, count, i + 1u))
       + (element(first, count, i + 2u) + element(first, count, i + 3u));
}

// The sum over the row's threads; a + b and b + a are the same bits, so that every lane of a butterfly gets the same.
fn row_sum(turn: u32, thread: u32, subgroup: u32, v: f32) -> f32 {
  var sum = v;
  for (var lanes = 1u; lanes < ROW_THREADS; lanes *= 2u) {
    if lanes < subgroup { sum += subgroupShuffleXor(sum, lanes); }
  }
  if subgroup >= ROW_THREADS { return sum; }
  if thread % subgroup == 0u { of_subgroup[turn * SUBGROUPS + thread / subgroup] = bitcast<u32>(sum); }
  workgroupBarrier();
  let count = ROW_THREADS / subgroup;                      // 2 to 32
  let first = turn * SUBGROUPS + thread / ROW_THREADS * count;
  sum = sum_of_4(first, count, 0u);
  if count > 4u { sum += sum_of_4(first, count, 4u); }
  if count > 8u { sum += sum_of_4(first, count, 8u) + sum_of_4(first, count, 12u); }
  if count > 16u {
    sum += (sum_of_4(first, count, 16u) + sum_of_4(first, count, 20u))
         + (sum_of_4(first, count, 24u) + sum_of_4(first, count, 28u));
  }
  return sum;
}

// The largest over the row's threads.
fn row_max(turn: u32, thread: u32, subgroup: u32, v: u32) -> u32 {
  var largest = v;
  for (var lanes = 1u; lanes < ROW_THREADS; lanes *= 2u) {
    if lanes < subgroup { largest = max(largest, subgroupShuffleXor(largest, lanes)); }
  }
  if subgroup >= ROW_THREADS { return largest; }
  if thread % subgroup == 0u { of_subgroup[turn * SUBGROUPS + thread / subgroup] = largest; }
  workgroupBarrier();
  let count = ROW_THREADS / subgroup;
  let first = turn * SUBGROUPS + thread / ROW_THREADS * count;
  for (var i = 0u; i < count; i++) { largest = max(largest, of_subgroup[first + i]); }
  return largest;
}
