// A part of k for a workgroup of linear_matrix, and its sums into partial (splits, rows, d_out), rows in multiples of four: linear_sum
// adds the parts.

@group(1) @binding(2) var<storage, read_write> y: array<Wide>;

var<private> part_number: u32;

fn parts_of_k() -> u32 { return params.splits; }
fn begin_part(number: u32) { part_number = number; }
fn first_k() -> u32 { return part_number * params.split; }
fn last_k() -> u32 { return min((part_number + 1u) * params.split, params.d_in); }

fn store(m: u32, n: u32, v: vec4<f32>) {
  if m >= params.rows || n >= params.d_out { return; }
  let at = params.y_offset + (part_number * params.rows + m) * params.y_row + n;
  for (var c = 0u; c < 4u / WIDE_LANES; c++) { y[at / WIDE_LANES + c] = pick_wide(v, c); }
}
