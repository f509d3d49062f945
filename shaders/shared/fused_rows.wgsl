// The end of a row, in forms of attention that finish rows: out and statistics.

@group(1) @binding(6) var<storage, read_write> out: array<Storage>;          // (q_rows, NH, VS)
@group(1) @binding(7) var<storage, read_write> statistics: array<u32>;       // (B, NH, T) or (2, B, NH, T), by their bits

const LN_2: f32 = 0.6931471805599453;

// What is wanted of a row: the logarithm of its sum of exponentials, by its bits −∞ where nothing was summed and for a row that
// the sequence lacks, or the score that exponentials are relative to, its largest or one near it, and their sum.
fn store_statistics(i: u32, reference: f32, sum: f32) {
  if params.statistics == 0u || i >= params.longest_q { return; }
  let at = params.statistics_offset + batch_index * params.statistics_batch + head_index * params.statistics_head + i;
  let there = sum > 0.0 && i < current.q_len;
  if params.statistics == 1u {
    statistics[at] = select(MINUS_INFINITY, bitcast<u32>(fma(log2(sum), LN_2, reference)), there);
  } else {
    statistics[at] = bitcast<u32>(reference);
    statistics[at + params.statistics_kind] = bitcast<u32>(select(0.0, sum, there));
  }
}

// Columns d .. d + 3 of row i, as many of them as out has.
fn store(value: vec4<f32>, i: u32, d: u32) {
  if i >= current.q_len || d >= params.value_size { return; }
  let at = params.out_offset + (current.q_start + i) * params.out_row + head_index * params.out_head + d;
  for (var c = 0u; c < 4u / LANES; c++) {
    if d + c * LANES < params.value_size { out[at / LANES + c] = pick(value, c); }
  }
}
