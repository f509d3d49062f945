// attention_reduce: out from the parts that attention_split made
//
//   partial (splits, B, NH, T, VS / 4 + 1) of four floats each -> out (q_rows, NH, VS), statistics
//
// A thread makes four columns of one row: Σ part · exp(top of the part − top of all) / Σ sums, over the parts that the sequence's
// keys reach, in order. A row with no visible key gives zeros. Loops: splits.

@group(1) @binding(0) var<storage, read> partial: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let value_groups = (params.value_size + 3u) / 4u;
  let number = workgroup_number(id) * THREADS + thread;
  let row = number / value_groups;
  if row >= params.longest_q * params.n_heads * params.batch { return; }
  let group = number % value_groups;
  let i = row % params.longest_q;
  let b = row / params.longest_q / params.n_heads;
  let s = sequence(b, params.longest_q, params.longest_k);
  batch_index = b;
  head_index = row / params.longest_q % params.n_heads;
  current = s;

  let splits = min((s.k_len + KEYS - 1u) / KEYS, params.splits);
  let step = params.batch * params.n_heads * params.longest_q * (value_groups + 1u);
  let first = row * (value_groups + 1u);
  var top = LOWEST;
  var total = 0.0;
  var sum = vec4<f32>(0.0);
  if i < s.q_len {
    for (var n = 0u; n < splits; n++) {
      let part = partial[first + n * step + value_groups];
      if part.y > 0.0 { top = max(top, part.x); }
    }
    for (var n = 0u; n < splits; n++) {
      let part = partial[first + n * step + value_groups];
      if part.y > 0.0 {
        let factor = exp0(vec4<f32>(part.x - top));
        total = fma(part.y, factor.x, total);
        sum = fma(partial[first + n * step + group], factor, sum);
      }
    }
  }
  if group == 0u { store_statistics(i, top, total); }
  store(select(vec4<f32>(0.0), sum / total, total > 0.0), i, group * 4u);
}
