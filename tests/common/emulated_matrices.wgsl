// What shaders/shared/matrix_16.wgsl gives, for devices without cooperative matrices: the same names on plain arrays, so that the
// text of the kernels runs anywhere, with matrices of any size. A lane of the subgroup holds the rows lane, lane + lanes, …;
// the test says how many those are at most.

const WIDE: u32 = MATRIX / 4u;               // groups of four in a row
const GROUPS_HELD: u32 = HELD * WIDE;

alias MatrixA = array<vec4<f32>, GROUPS_HELD>;
alias MatrixB = array<vec4<f32>, GROUPS_HELD>;
alias MatrixC = array<vec4<f32>, GROUPS_HELD>;

var<workgroup> operands: array<vec4<f16>, OPERANDS / 4u>;
var<workgroup> sums: array<vec4<f32>, SUMS / 4u>;

fn put_operands(at: u32, v: vec4<f16>) { operands[at / 4u] = v; }
fn put_sums(at: u32, v: vec4<f32>) { sums[at / 4u] = v; }
fn get_sums(at: u32) -> vec4<f32> { return sums[at / 4u]; }

fn load_a(at: u32, stride: u32) -> MatrixA {
  var a: MatrixA;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < GROUPS_HELD + (lanes >> 16u); i++) {
    let row = min(lane + i / WIDE * lanes, MATRIX - 1u);
    a[i] = vec4<f32>(operands[(at + row * stride) / 4u + i % WIDE]);
  }
  return a;
}

fn load_b(at: u32, stride: u32) -> MatrixB { return load_a(at, stride); }

fn load_b_transposed(at: u32, stride: u32) -> MatrixB {
  var b: MatrixB;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < GROUPS_HELD + (lanes >> 16u); i++) {
    let row = min(lane + i / WIDE * lanes, MATRIX - 1u);
    let n = at + i % WIDE * 4u * stride + row;
    let k = row % 4u;
    b[i] = vec4<f32>(f32(operands[n / 4u][k]), f32(operands[(n + stride) / 4u][k]),
                     f32(operands[(n + 2u * stride) / 4u][k]), f32(operands[(n + 3u * stride) / 4u][k]));
  }
  return b;
}

fn load_c(at: u32, stride: u32) -> MatrixC {
  var c: MatrixC;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < GROUPS_HELD + (lanes >> 16u); i++) {
    let row = min(lane + i / WIDE * lanes, MATRIX - 1u);
    c[i] = sums[(at + row * stride) / 4u + i % WIDE];
  }
  return c;
}

fn store_c(c: MatrixC, at: u32, stride: u32) {
  var all = c;
  let lane = subgroupExclusiveAdd(1u);
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < GROUPS_HELD + (lanes >> 16u); i++) {
    let row = lane + i / WIDE * lanes;
    if row < MATRIX { sums[(at + row * stride) / 4u + i % WIDE] = all[i]; }
  }
}

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
  var left = a;
  var right = b;
  var sum = c;
  let lanes = subgroupAdd(1u);
  for (var k = 0u; k < MATRIX + (lanes >> 16u); k++) {
    for (var g = 0u; g < WIDE + (lanes >> 16u); g++) {
      let row = subgroupShuffle(right[k / lanes * WIDE + g], k % lanes);
      for (var r = 0u; r < HELD + (lanes >> 16u); r++) {
        sum[r * WIDE + g] = fma(vec4<f32>(left[r * WIDE + k / 4u][k % 4u]), row, sum[r * WIDE + g]);
      }
    }
  }
  return sum;
}

fn add(c: MatrixC, d: MatrixC) -> MatrixC { return add_scaled(c, d, 1.0); }

fn add_scaled(c: MatrixC, d: MatrixC, scale: f32) -> MatrixC {
  var sum = c;
  var added = d;
  let lanes = subgroupAdd(1u);
  for (var i = 0u; i < GROUPS_HELD + (lanes >> 16u); i++) { sum[i] += added[i] * scale; }
  return sum;
}
