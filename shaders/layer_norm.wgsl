// layer_norm: s = x + residual,  y = (s − mean) / √(variance + eps) · weight + bias
// rms_norm, where `centered` is 0: y = s / √(mean of s² + eps) · weight + bias
//
//   x (rows, columns), residual (rows, columns), weight (columns), bias (columns)
//     -> y (rows, columns), sum (rows, columns) = s, statistics (rows, 2) = mean and 1 / √(variance + eps)
//
// ROW_THREADS threads share a row and keep its first GROUPS · STEP columns in registers, so that they are read once; what a row
// has beyond is read in each pass. The row's first element is subtracted before the first sum and the variance takes a second pass,
// so that neither a large mean nor a constant row with a tiny eps loses digits. The second pass also sums what is left of the
// deviations, by which the mean was off: it is as large as rounding a far first element made it, and its digits would be missing
// where y is near 0. rms_norm has the mean 0. (Chan, Golub and LeVeque 1983: the corrected two-pass algorithm)
// Loops: columns. Entry point, workgroup memory: shared/rows.wgsl. (Ba et al., arXiv 1607.06450; Zhang and Sennrich, arXiv 1910.07467)

struct Params {
  rows: u32,
  columns: u32,
  x_row: u32,          // strides
  residual_row: u32,
  y_row: u32,
  sum_row: u32,
  statistics_row: u32,
  residual: u32,       // whether bound
  weight: u32,
  bias: u32,
  sum: u32,
  statistics: u32,
  centered: u32,       // whether the mean is subtracted
  eps: f32,
  x_offset: u32,
  residual_offset: u32,
  weight_offset: u32,
  bias_offset: u32,
  y_offset: u32,
  sum_offset: u32,
  statistics_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<Storage>;       // (columns)
@group(0) @binding(2) var<storage, read> bias: array<Storage>;         // (columns)
@group(1) @binding(0) var<storage, read> x: array<Storage>;            // (rows, columns)
@group(1) @binding(1) var<storage, read> residual: array<Storage>;     // (rows, columns)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;      // (rows, columns)

fn x4(row: u32, c: u32) -> vec4<f32> {
  let at = params.x_offset + row * params.x_row + c;
  return group4(x[at / LANES], x[(at + 1u) / LANES], x[(at + 2u) / LANES], x[(at + 3u) / LANES]);
}

fn residual4(row: u32, c: u32) -> vec4<f32> {
  let at = params.residual_offset + row * params.residual_row + c;
  return group4(residual[at / LANES], residual[(at + 1u) / LANES], residual[(at + 2u) / LANES], residual[(at + 3u) / LANES]);
}

fn weight4(c: u32) -> vec4<f32> {
  let at = params.weight_offset + c;
  return group4(weight[at / LANES], weight[(at + 1u) / LANES], weight[(at + 2u) / LANES], weight[(at + 3u) / LANES]);
}

fn bias4(c: u32) -> vec4<f32> {
  let at = params.bias_offset + c;
  return group4(bias[at / LANES], bias[(at + 1u) / LANES], bias[(at + 2u) / LANES], bias[(at + 3u) / LANES]);
}

// x + residual, columns c .. c + 3.
fn s4(row: u32, c: u32) -> vec4<f32> {
  var v = x4(row, c);
  if params.residual != 0u { v += residual4(row, c); }
  return v;
}

// d − rest · reciprocal, where d are deviations from a mean, rest their sum, and reciprocal 1 / columns.
fn centred(d: vec4<f32>, rest: f32, reciprocal: f32) -> vec4<f32> { return fma(vec4<f32>(-rest), vec4<f32>(reciprocal), d); }

fn store(row: u32, c: u32, v: vec4<f32>) {
  let at = params.y_offset + row * params.y_row + c;
  for (var l = 0u; l < 4u / LANES; l++) {
    if c + l * LANES < params.columns { y[at / LANES + l] = pick(v, l); }
  }
}

fn rows(id: vec3<u32>, thread: u32, subgroup: u32) {
  let first = workgroup_number(id) * ROWS;
  if first >= params.rows { return; }
  let row = min(first + thread / ROW_THREADS, params.rows - 1u);
  let live = first + thread / ROW_THREADS < params.rows;
  let start = thread % ROW_THREADS * 4u;
  let last = (params.columns - 1u) / 4u * 4u;
  let reciprocal = 1.0 / f32(params.columns);
  let shift = select(0.0, s4(row, 0u).x, params.centered != 0u);

  // All loads stand before the first use. Groups behind the last one load that again: cheaper than a branch each.
  var kept: array<vec4<f32>, GROUPS>;
  for (var g = 0u; g < GROUPS; g++) {
    if g * STEP < params.columns { kept[g] = x4(row, min(start + g * STEP, last)); }
  }
  if params.residual != 0u {
    for (var g = 0u; g < GROUPS; g++) { kept[g] += residual4(row, min(start + g * STEP, last)); }
  }

  var sum = vec4<f32>(0.0);
  for (var g = 0u; g < GROUPS; g++) {
    let c = start + g * STEP;
    if live && c < params.columns { store_sum(row, c, kept[g]); }
    sum += select(vec4<f32>(0.0), keep(kept[g] - shift, params.columns - c), c < params.columns);
  }
  for (var c = start + GROUPS * STEP; c < params.columns; c += STEP) {
    let s = s4(row, c);
    if live { store_sum(row, c, s); }
    sum += keep(s - shift, params.columns - c);
  }
  var mean = 0.0;
  if params.centered != 0u { mean = fma(row_sum(0u, thread, subgroup, (sum.x + sum.y) + (sum.z + sum.w)), reciprocal, shift); }

  var rests = vec4<f32>(0.0);
  var squares = vec4<f32>(0.0);
  for (var g = 0u; g < GROUPS; g++) {
    let c = start + g * STEP;
    kept[g] -= mean;
    let d = select(vec4<f32>(0.0), keep(kept[g], params.columns - c), c < params.columns);
    rests += d;
    squares = fma(d, d, squares);
  }
  for (var c = start + GROUPS * STEP; c < params.columns; c += STEP) {
    let d = keep(s4(row, c) - mean, params.columns - c);
    rests += d;
    squares = fma(d, d, squares);
  }
  // It stays a sum until it is taken off: a product that feeds an addition would not have the same bits in every form.
  var rest = 0.0;
  if params.centered != 0u { rest = row_sum(1u, thread, subgroup, (rests.x + rests.y) + (rests.z + rests.w)); }
  let square = row_sum(2u, thread, subgroup, (squares.x + squares.y) + (squares.z + squares.w));
  let spread = fma(fma(-rest * reciprocal, rest, square), reciprocal, params.eps);
  let inverse = select(0.0, inverse_root(spread), spread > 0.0);  // a constant row with eps 0 has no deviations to scale
  if live && start == 0u { store_statistics(row, fma(rest, reciprocal, mean), inverse); }
  for (var g = 0u; g < GROUPS; g++) { kept[g] = centred(kept[g], rest, reciprocal); }

  if params.bias == 0u {
    for (var g = 0u; g < GROUPS; g++) { kept[g] *= inverse; }
    if params.weight != 0u {
      for (var g = 0u; g < GROUPS; g++) { kept[g] *= weight4(min(start + g * STEP, last)); }
    }
  } else if params.weight == 0u {
    for (var g = 0u; g < GROUPS; g++) { kept[g] = fma(kept[g], vec4<f32>(inverse), bias4(min(start + g * STEP, last))); }
  } else {
    for (var g = 0u; g < GROUPS; g++) {
      let c = min(start + g * STEP, last);
      kept[g] = fma(kept[g] * inverse, weight4(c), bias4(c));
    }
  }
  for (var g = 0u; g < GROUPS; g++) {
    let c = start + g * STEP;
    if live && c < params.columns { store(row, c, kept[g]); }
  }
  for (var c = start + GROUPS * STEP; live && c < params.columns; c += STEP) {
    let d = centred(s4(row, c) - mean, rest, reciprocal);
    var gain = vec4<f32>(1.0);
    var offset = vec4<f32>(0.0);
    if params.weight != 0u { gain = weight4(c); }
    if params.bias != 0u { offset = bias4(c); }
    let v = fma(d * inverse, gain, offset);
    store(row, c, v);
  }
}
