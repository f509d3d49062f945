// Cooperative matrices of 8 × 8, as shared/matrix_16.wgsl has those of 16 × 16. The arrays are of scalars: Metal loads matrices
// from nothing else.

alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;

var<workgroup> operands: array<f16, OPERANDS>;
var<workgroup> sums: array<f32, SUMS>;

fn put_operands(at: u32, v: vec4<f16>) {
  operands[at] = v.x;
  operands[at + 1u] = v.y;
  operands[at + 2u] = v.z;
  operands[at + 3u] = v.w;
}

fn get_operands(at: u32) -> vec4<f16> {
  return vec4<f16>(operands[at], operands[at + 1u], operands[at + 2u], operands[at + 3u]);
}

fn put_sums(at: u32, v: vec4<f32>) {
  sums[at] = v.x;
  sums[at + 1u] = v.y;
  sums[at + 2u] = v.z;
  sums[at + 3u] = v.w;
}

fn get_sums(at: u32) -> vec4<f32> { return vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]); }

// Row r of A, or of B, begins at `at + r · stride`; of B's transpose for the last one.
fn load_a(at: u32, stride: u32) -> MatrixA { return coopLoadT<MatrixA>(&operands[at], stride); }
fn load_b(at: u32, stride: u32) -> MatrixB { return coopLoadT<MatrixB>(&operands[at], stride); }
fn load_b_transposed(at: u32, stride: u32) -> MatrixB { return coopLoad<MatrixB>(&operands[at], stride); }

fn load_c(at: u32, stride: u32) -> MatrixC { return coopLoadT<MatrixC>(&sums[at], stride); }
fn store_c(c: MatrixC, at: u32, stride: u32) { coopStoreT(c, &sums[at], stride); }

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC { return coopMultiplyAdd(a, b, c); }
fn add(c: MatrixC, d: MatrixC) -> MatrixC { return c + d; }
fn add_scaled(c: MatrixC, d: MatrixC, scale: f32) -> MatrixC { return c + d * scale; }
