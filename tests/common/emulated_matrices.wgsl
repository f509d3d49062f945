// What shaders/shared/matrix_16.wgsl gives, for devices without cooperative matrices: the same names on plain arrays, so that the
// text of the kernels runs anywhere, with matrices of any size. A lane of the subgroup holds the rows lane, lane + lanes, …; the
// test says how many lanes there are at least. The kernels call these functions dozens of times and compilers copy them into each
// place, so they are small: loops over single elements, which `lanes >> 16` (it is 0) keeps compilers from writing out. They must not be
// many: Mesa before 23 leaves every loop once a thread has been around 65535 times.

const HELD: u32 = (MATRIX + SMALLEST_SUBGROUP - 1u) / SMALLEST_SUBGROUP;  // rows
const ELEMENTS: u32 = HELD * MATRIX;

// 0, which no compiler knows: it is added to the bounds of the kernel's loops. The test sets it at the head of the entry point.
var<private> nothing: u32;

alias MatrixA = array<f32, ELEMENTS>;
alias MatrixB = array<f32, ELEMENTS>;
alias MatrixC = array<f32, ELEMENTS>;

var<workgroup> operands: array<vec4<f16>, OPERANDS / 4u>;
var<workgroup> sums: array<f32, SUMS>;

fn put_operands(at: u32, v: vec4<f16>) { operands[at / 4u] = v; }
fn get_operands(at: u32) -> vec4<f16> { return operands[at / 4u]; }

fn put_sums(at: u32, v: vec4<f32>) {
  sums[at] = v.x;
  sums[at + 1u] = v.y;
  sums[at + 2u] = v.z;
  sums[at + 3u] = v.w;
}

fn get_sums(at: u32) -> vec4<f32> { return vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]); }

// Element (r, c) lies at `at + r · down + c · along`. Lanes that hold fewer rows repeat the last one.
fn load(at: u32, down: u32, along: u32) -> MatrixA {
  var m: MatrixA;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < ELEMENTS + (lanes >> 16u); i++) {
    let row = min(lane + i / MATRIX * lanes, MATRIX - 1u);
    let n = at + row * down + i % MATRIX * along;
    m[i] = f32(operands[n / 4u][n % 4u]);
  }
  return m;
}

// Operands begin at multiples of eight, as matrix units load them.
fn load_a(at: u32, stride: u32) -> MatrixA { return load(at / 8u * 8u, stride, 1u); }
fn load_b(at: u32, stride: u32) -> MatrixB { return load(at / 8u * 8u, stride, 1u); }
fn load_b_transposed(at: u32, stride: u32) -> MatrixB { return load(at / 8u * 8u, 1u, stride); }

fn load_c(at: u32, stride: u32) -> MatrixC {
  var c: MatrixC;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < ELEMENTS + (lanes >> 16u); i++) {
    let row = min(lane + i / MATRIX * lanes, MATRIX - 1u);
    c[i] = sums[at + row * stride + i % MATRIX];
  }
  return c;
}

fn store_c(c: MatrixC, at: u32, stride: u32) {
  var all = c;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < ELEMENTS + (lanes >> 16u); i++) {
    let row = lane + i / MATRIX * lanes;
    if row < MATRIX { sums[at + row * stride + i % MATRIX] = all[i]; }
  }
}

// Lane k % lanes has row k of b, which is shown to all, an element at a time.
fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
  var left = a;
  var right = b;
  var sum = c;
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < MATRIX * MATRIX + (lanes >> 16u); i++) {
    let k = i / MATRIX;
    let n = i % MATRIX;
    let factor = subgroupShuffle(right[k / lanes * MATRIX + n], k % lanes);
    for (var row = 0u; row < ELEMENTS; row += MATRIX) {
      sum[row + n] = fma(left[row + k], factor, sum[row + n]);
    }
  }
  return sum;
}

fn add(c: MatrixC, d: MatrixC) -> MatrixC { return add_scaled(c, d, 1.0); }

fn add_scaled(c: MatrixC, d: MatrixC, scale: f32) -> MatrixC {
  var sum = c;
  var added = d;
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < ELEMENTS + (lanes >> 16u); i++) { sum[i] += added[i] * scale; }
  return sum;
}
