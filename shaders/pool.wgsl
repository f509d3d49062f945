// pool: y = one row of each sequence: its first row, or the mean of its rows; then, if asked for, to length 1
//
//   x (rows, columns), sequences (B, 8) -> y (B, columns)
//
// A workgroup makes one sequence, a thread every THREADS-th group of four columns. The rows of a sequence are those of its keys: padding is
// not among them. Four rows are under way at a time. For the length, Σ y², means are made twice rather than stored between. A sequence
// without rows gives zeros; a length below 1e-12 counts as 1e-12.
// Loops: columns, longest sequence. Workgroup memory: THREADS · 4 bytes. (Reimers and Gurevych, arXiv 1908.10084)

struct Params {
  sequences: u32,
  longest: u32,            // rows of a sequence
  columns: u32,
  only_first: u32,
  normalize: u32,
  x_row: u32,              // strides
  sequence_stride: u32,
  y_row: u32,
  x_offset: u32,
  sequences_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(1) @binding(0) var<storage, read> x: array<Storage>;            // (rows, columns)
@group(1) @binding(1) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;      // (B, columns)

const AT_ONCE: u32 = 4u;

var<workgroup> squares: array<f32, THREADS>;

fn x4(row: u32, c: u32) -> vec4<f32> {
  let at = params.x_offset + row * params.x_row + c;
  return group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]);
}

// The mean of rows first .. first + count, columns c .. c + 3, zeros behind the last column.
fn mean4(first: u32, count: u32, c: u32) -> vec4<f32> {
  if count == 0u { return vec4<f32>(0.0); }
  var sums: array<vec4<f32>, AT_ONCE>;
  for (var t = 0u; t < count; t += AT_ONCE) {
    for (var i = 0u; i < AT_ONCE; i++) {
      sums[i] += select(vec4<f32>(0.0), x4(first + min(t + i, count - 1u), c), t + i < count);
    }
  }
  return keep(((sums[0] + sums[1]) + (sums[2] + sums[3])) / f32(count), params.columns - c);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let b = workgroup_number(id);
  if b >= params.sequences { return; }
  let at = params.sequences_offset + b * params.sequence_stride;
  let first = sequences[at + 2u];
  let count = min(sequences[at + 3u], select(params.longest, 1u, params.only_first != 0u));

  var scale = 1.0;
  if params.normalize != 0u {
    var sum = vec4<f32>(0.0);
    for (var c = thread * 4u; c < params.columns; c += THREADS * 4u) {
      let v = mean4(first, count, c);
      sum = fma(v, v, sum);
    }
    squares[thread] = (sum.x + sum.y) + (sum.z + sum.w);
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < THREADS; i++) { total += squares[i]; }
    scale = inverse_root(max(total, 1e-24));
  }
  for (var c = thread * 4u; c < params.columns; c += THREADS * 4u) {
    let v = mean4(first, count, c) * scale;
    let to = params.y_offset + b * params.y_row + c;
    for (var l = 0u; l < 4u / LANES; l++) {
      if c + l * LANES < params.columns { y[to / LANES + l] = pick(v, l); }
    }
  }
}
