// Cooperative matrices of MATRIX × MATRIX, 16 here: a subgroup holds one together, f16 operands A and B, f32 sums C. All of them
// are loaded from and stored to two arrays in workgroup memory, by places in elements that are multiples of four, or of eight for
// operands: these lie in pairs of groups, as compilers that know of 16 bytes take wider loads. The kernel says how long the arrays
// are (OPERANDS and SUMS elements). Whole subgroups call these functions, with the same arguments.

alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;

var<workgroup> operands: array<array<vec4<f16>, 2>, OPERANDS / 8u>;
var<workgroup> sums: array<vec4<f32>, SUMS / 4u>;

fn put_operands(at: u32, v: vec4<f16>) { operands[at / 8u][at / 4u % 2u] = v; }
fn get_operands(at: u32) -> vec4<f16> { return operands[at / 8u][at / 4u % 2u]; }
fn put_sums(at: u32, v: vec4<f32>) { sums[at / 4u] = v; }
fn get_sums(at: u32) -> vec4<f32> { return sums[at / 4u]; }

// Row r of A, or of B, begins at `at + r · stride`; of B's transpose for the last one.
fn load_a(at: u32, stride: u32) -> MatrixA { return coopLoadT<MatrixA>(&operands[at / 8u][0], stride / 4u); }
fn load_b(at: u32, stride: u32) -> MatrixB { return coopLoadT<MatrixB>(&operands[at / 8u][0], stride / 4u); }
fn load_b_transposed(at: u32, stride: u32) -> MatrixB { return coopLoad<MatrixB>(&operands[at / 8u][0], stride / 4u); }

fn load_c(at: u32, stride: u32) -> MatrixC { return coopLoadT<MatrixC>(&sums[at / 4u], stride / 4u); }
fn store_c(c: MatrixC, at: u32, stride: u32) {
  let group = at / 4u;  // named, or naga does not evaluate it before the store
  let groups = stride / 4u;
  coopStoreT(c, &sums[group], groups);
}

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC { return coopMultiplyAdd(a, b, c); }
fn add(c: MatrixC, d: MatrixC) -> MatrixC { return c + d; }
fn add_scaled(c: MatrixC, d: MatrixC, scale: f32) -> MatrixC { return c + d * scale; }
