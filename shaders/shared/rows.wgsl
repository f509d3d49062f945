// ROW_THREADS threads work on one row, ROWS rows in a workgroup. A reduction costs two barriers and ROW_THREADS reads a
// thread; every thread of the row gets the same bits. Workgroup memory: THREADS · 4 bytes.

const ROWS: u32 = THREADS / ROW_THREADS;

var<workgroup> partial: array<f32, THREADS>;

fn row_sum(thread: u32, v: f32) -> f32 {
  workgroupBarrier();
  partial[thread] = v;
  workgroupBarrier();
  let first = thread / ROW_THREADS * ROW_THREADS;
  var sum = partial[first];
  for (var i = 1u; i < ROW_THREADS; i++) { sum += partial[first + i]; }
  return sum;
}

fn row_max(thread: u32, v: f32) -> f32 {
  workgroupBarrier();
  partial[thread] = v;
  workgroupBarrier();
  let first = thread / ROW_THREADS * ROW_THREADS;
  var largest = partial[first];
  for (var i = 1u; i < ROW_THREADS; i++) { largest = max(largest, partial[first + i]); }
  return largest;
}
