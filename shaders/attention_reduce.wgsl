// attention_reduce: out from the parts that attention_split made
//
//   partial (splits, B, NH, T, VS / 4 + 1) of four floats each -> out (q_rows, NH, VS), statistics
//
// A thread makes four columns of one row: Σ part · exp(top of the part − top of all) / Σ sums, over the parts that the sequence's
// keys reach, in order, each read once. A row with no visible key gives zeros. Loops: splits.

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

  // Eight parts at a time, all of their loads under way at once; what went before is rescaled where they have a larger score.
  let splits = select(0u, min((s.k_len + KEYS - 1u) / KEYS, params.splits), i < s.q_len);
  let step = params.batch * params.n_heads * params.longest_q * (value_groups + 1u);
  let first = row * (value_groups + 1u);
  var top = LOWEST;
  var total = 0.0;
  var sum = vec4<f32>(0.0);
  for (var n = 0u; n < splits; n += 8u) {
    var ends = array<vec4<f32>, 8>();    // the largest score of a part, and the sum of its weights
    var values = array<vec4<f32>, 8>();
    var higher = top;
    for (var a = 0u; a < 8u; a++) {  // unroll
      let at = first + min(n + a, splits - 1u) * step;
      ends[a] = partial[at + value_groups];
      values[a] = partial[at + group];
    }
    for (var a = 0u; a < 8u; a++) {  // unroll
      higher = max(higher, select(LOWEST, ends[a].x, ends[a].y > 0.0));
    }
    let before = exp0(vec4<f32>(top - higher)).x;
    total *= before;
    sum *= before;
    top = higher;
    for (var a = 0u; a < 8u; a++) {  // unroll
      // A part that nothing is seen of has no sums.
      let there = n + a < splits && ends[a].y > 0.0;
      let factor = select(0.0, exp0(vec4<f32>(ends[a].x - top)).x, there);
      total = fma(ends[a].y, factor, total);
      sum = fma(select(vec4<f32>(0.0), values[a], there), vec4<f32>(factor), sum);
    }
  }
  if group == 0u { store_statistics(i, top, total); }
  store(select(vec4<f32>(0.0), sum / total, total > 0.0), i, group * 4u);
}
