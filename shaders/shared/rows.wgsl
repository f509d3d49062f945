// ROW_THREADS threads work on one row, ROWS rows in a workgroup; a thread takes groups of four columns, STEP apart, so that
// neighbours read neighbouring groups. The kernel defines
//   fn rows(id: vec3<u32>, thread: u32, subgroup: u32)
// and calls each of its up to three reductions with a number of its own, `turn` 0 to 2: no memory serves twice, so that one barrier
// is enough, or two for rows of more than 32 threads. Every thread of the row gets the same bits, and the same as
// shared/rows_subgroups.wgsl gives: the sum of neighbours, then of neighbouring sums. Workgroup memory: up to THREADS · 14 bytes.

const ROWS: u32 = THREADS / ROW_THREADS;
const STEP: u32 = ROW_THREADS * 4u;
const CLUSTER: u32 = min(ROW_THREADS, 32u);            // 8 or 32
const CLUSTERS: u32 = THREADS / CLUSTER;
const ROW_CLUSTERS: u32 = ROW_THREADS / CLUSTER;       // 1 or 4

var<workgroup> of_thread: array<u32, THREADS * 3u>;    // by their bits
var<workgroup> of_cluster: array<u32, CLUSTERS * 3u>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  rows(id, thread, 1u);
}

fn sum_of_2(at: u32) -> f32 { return bitcast<f32>(of_thread[at]) + bitcast<f32>(of_thread[at + 1u]); }
fn sum_of_8(at: u32) -> f32 { return (sum_of_2(at) + sum_of_2(at + 2u)) + (sum_of_2(at + 4u) + sum_of_2(at + 6u)); }

// The sum over the row's threads.
fn row_sum(turn: u32, thread: u32, subgroup: u32, v: f32) -> f32 {
  of_thread[turn * THREADS + thread] = bitcast<u32>(v);
  workgroupBarrier();
  let first = turn * THREADS + thread / CLUSTER * CLUSTER;
  var sum = sum_of_8(first);
  if CLUSTER > 8u { sum = (sum + sum_of_8(first + 8u)) + (sum_of_8(first + 16u) + sum_of_8(first + 24u)); }
  if ROW_CLUSTERS == 1u { return sum; }
  if thread % CLUSTER == 0u { of_cluster[turn * CLUSTERS + thread / CLUSTER] = bitcast<u32>(sum); }
  workgroupBarrier();
  let at = turn * CLUSTERS + thread / ROW_THREADS * ROW_CLUSTERS;
  let half = bitcast<f32>(of_cluster[at]) + bitcast<f32>(of_cluster[at + 1u]);
  return half + (bitcast<f32>(of_cluster[at + 2u]) + bitcast<f32>(of_cluster[at + 3u]));
}

// The largest over the row's threads.
fn row_max(turn: u32, thread: u32, subgroup: u32, v: u32) -> u32 {
  of_thread[turn * THREADS + thread] = v;
  workgroupBarrier();
  let first = turn * THREADS + thread / CLUSTER * CLUSTER;
  var largest = 0u;
  for (var i = 0u; i < CLUSTER; i++) { largest = max(largest, of_thread[first + i]); }
  if ROW_CLUSTERS == 1u { return largest; }
  if thread % CLUSTER == 0u { of_cluster[turn * CLUSTERS + thread / CLUSTER] = largest; }
  workgroupBarrier();
  let at = turn * CLUSTERS + thread / ROW_THREADS * ROW_CLUSTERS;
  for (var i = 0u; i < ROW_CLUSTERS; i++) { largest = max(largest, of_cluster[at + i]); }
  return largest;
}
