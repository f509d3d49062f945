// Finishes the products of query i with keys j .. j + 3 and stores them in `scores` (B, NH, T, S).
fn store_scores(products: vec4<f32>, b: u32, h: u32, s: Sequence, i: u32, j: u32) {
  if i >= params.longest_q || j >= params.longest_k { return; }
  let bits = finish_scores(products, keys_exist(b, s, j), b, h, s, i, j);
  let at = params.scores_offset + b * params.scores_batch + h * params.scores_head + i * params.scores_row + j;
  for (var c = 0u; c < 4u / WIDE_LANES; c++) {
    if j + c * WIDE_LANES < params.longest_k { scores[at / WIDE_LANES + c] = pick_bits(bits, c); }
  }
}
