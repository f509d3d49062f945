// linear_append: [q | k | v] = norm(x) · Wᵀ + bias for one to a few rows; q is a result, k and v go into a key/value cache
//
//   x (rows, d_in), weight (NH·HS + NH_kv·(HS + VS), d_in), bias, norm_weight (d_in), norm_bias (d_in), sequences (B, 8)
//     -> y (rows, NH·HS), cache (2, slots, NH_kv, S, W)
//
// New row t of a sequence is its key number k_len − q_len + t, from k_start on; one that the slot has no room for is not written,
// and neither are rows that no sequence has. Workgroups, loops, parameters and bindings: shared/few.wgsl.

@group(1) @binding(1) var<storage, read_write> y: array<Storage>;       // (rows, NH·HS)
@group(1) @binding(2) var<storage, read_write> cache: array<Storage>;   // (2, slots, NH_kv, S, W)

const PASSES: u32 = 1u;

fn finish(r: u32, m: u32, owner: u32, n: u32, sum: vec4<f32>) {
  let row = m + r;
  let v = biased(sum, n, vec4<f32>(0.0));
  let s = params.sequences_offset + owner * params.sequence_stride;
  let key = sequences[s + 3u] - sequences[s + 1u] + (row - sequences[s]);  // wraps to more than any capacity where negative
  let key_row = min(sequences[s + 2u], params.key_rows) + key;  // a start past them all wraps to no other slot
  for (var c = 0u; c < 4u / LANES; c++) {
    let column = params.first_column + n + c * LANES;
    if n + c * LANES >= params.d_out {
      continue;
    } else if column < params.q_columns {
      y[(params.y_offset + row * params.y_row + column) / LANES] = pick(v, c);
    } else if key < params.capacity && key_row < params.key_rows {
      let k_columns = params.heads * params.head_size;
      let is_value = column - params.q_columns >= k_columns;
      let d = column - params.q_columns - select(0u, k_columns, is_value);
      let size = select(params.head_size, params.value_size, is_value);
      let at = params.cache_offset + select(0u, params.cache_kind, is_value) + key_row * params.cache_row
             + d / size * params.cache_head + d % size;
      cache[at / LANES] = pick(v, c);
    }
  }
}

fn conclude(m: u32, rows: u32, first: u32, thread: u32) {}
