// Few rows whose threads meet in workgroup memory: THREADS · ROWS · 16 + ROWS · 20 + 4 · CHUNK bytes. All threads share k, or none do.
//
// Where K_THREADS is 1 no sums meet, and without a norm (NORMED 0) there is no barrier before the products. Sums are those of
// neighbours, then of neighbouring sums, as subgroups add them up.

const SHARES: u32 = THREADS / 8u;                          // sums of eight threads that a row has, 1 or 8
const MEETING: bool = K_THREADS > 1u || NORMED == 1u;      // whether threads know of each other

var<workgroup> partial: array<vec4<f32>, THREADS * ROWS>;  // [row][place of a thread]
var<workgroup> norms: array<vec4<f32>, ROWS>;              // what is known of each row's
var<workgroup> owners: array<u32, ROWS>;
var<workgroup> staged: array<vec4<f32>, max(CHUNK / 4u, 1u)>;  // norm(x) of one row, as far as there is room

alias Sums = array<vec4<f32>, ROWS>;        // [row], four columns

fn is_live(r: u32) -> bool { return owners[r] != NOBODY; }

// Where a thread's sum stands: eight neighbours a stride apart, so that those who add them up read side by side.
fn place(thread: u32) -> u32 {
  if SHARES == 1u { return thread; }
  return thread % 8u * SHARES + thread / 8u;
}

fn sum_of_8(at: u32, step: u32) -> vec4<f32> {
  return ((partial[at] + partial[at + step]) + (partial[at + 2u * step] + partial[at + 3u * step]))
       + ((partial[at + 4u * step] + partial[at + 5u * step]) + (partial[at + 6u * step] + partial[at + 7u * step]));
}

// The sums of eight threads take the places of the first of each.
fn fold(rows: u32, thread: u32) {
  let at = thread / SHARES * THREADS + thread % SHARES;
  if thread < rows * SHARES { partial[at] = sum_of_8(at, SHARES); }
}

// One of the two passes of each row's norm, over all threads.
fn statistics(m: u32, rows: u32, pass_number: u32, thread: u32) {
  for (var r = 0u; r < rows; r++) {
    let start = x_start(m + r);
    var moments = Moments();
    for (var k = thread * 4u; k < params.d_in; k += THREADS * 4u) { moments = with_deviation(moments, x4(start, k), k, norms[r]); }
    partial[r * THREADS + place(thread)] = halves(moments);
  }
  workgroupBarrier();
  if SHARES > 1u {
    fold(rows, thread);
    workgroupBarrier();
  }
  for (var r = thread; r < rows; r += THREADS) { norms[r] = norm_of(norms[r], pass_number, sum_of_8(r * THREADS, 1u)); }
  workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tiles_m = (params.rows + ROWS - 1u) / ROWS;
  let tiles_n = (params.d_out + COLUMNS - 1u) / COLUMNS;
  let tile = workgroup_number(id);
  if tile >= tiles_m * tiles_n { return; }
  let m = tile % tiles_m * ROWS;
  let rows = min(ROWS, params.rows - m);
  let first = tile / tiles_m * COLUMNS;
  let turns = min(PASSES, (params.d_out - first + 4u * GROUPS - 1u) / (4u * GROUPS));

  var live = false;
  if MEETING {
    for (var r = thread; r < ROWS; r += THREADS) {
      owners[r] = owner_of(m + r);
      if NORMED == 1u { norms[r] = norm_at(select(0.0, x4(x_start(m + r), 0u).x, params.norm == 1u)); }
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) { live = live || owners[r] != NOBODY; }
  } else {
    for (var r = 0u; r < rows; r++) { live = live || owner_of(m + r) != NOBODY; }
  }

  var staged_k = 0u;  // before which norm(x) is ready
  if NORMED == 1u && params.norm != 0u {
    let live_rows = select(0u, rows, live);
    if params.norm == 1u { statistics(m, live_rows, 0u, thread); }
    statistics(m, live_rows, 1u, thread);
    if CHUNK > 0u {
      staged_k = min(params.d_in, CHUNK);
      for (var k = thread * 4u; live && k < staged_k; k += THREADS * 4u) { staged[k / 4u] = normed4(m, k, norms[0], norm_affine(k)); }
      workgroupBarrier();
    }
  }

  var known: array<vec4<f32>, ROWS>;
  for (var r = 0u; r < ROWS; r++) {  // unroll
    if NORMED == 1u { known[r] = norms[r]; }
  }
  let own = thread % K_THREADS;
  for (var turn = 0u; turn < turns; turn++) {
    let n = first + (turn * GROUPS + thread / K_THREADS) * 4u;
    let weights = weight_starts(n);
    let end = select(0u, params.d_in, live && n < params.d_out);
    var sums = Sums();
    var k = own * 4u;
    if CHUNK > 0u {
      for (; k < min(staged_k, end); k += K_THREADS * 4u) { sums[0] = product(staged[k / 4u], weights4x4(weights, k), sums[0]); }
    }
    for (; k < end; k += K_THREADS * 4u) {
      let w = weights4x4(weights, k);
      let affine = norm_affine(k);
      for (var r = 0u; r < ROWS; r++) {  // unroll
        sums[r] = product(normed4(m + r, k, known[r], affine), w, sums[r]);
      }
    }
    for (var r = 0u; r < ROWS; r++) {  // unroll
      partial[r * THREADS + place(thread)] = sums[r];
    }
    if K_THREADS > 1u {
      workgroupBarrier();
      fold(rows, thread);
      workgroupBarrier();
    }
    for (var r = own; r < rows && n < params.d_out; r += K_THREADS) {
      var owner = NOBODY;
      if MEETING { owner = owners[r]; } else { owner = owner_of(m + r); }
      if owner != NOBODY {
        var sum = partial[r * THREADS + thread];
        if K_THREADS > 1u { sum = sum_of_8(r * THREADS, 1u); }
        finish(r, m, owner, n, sum);
      }
    }
    if K_THREADS > 1u { workgroupBarrier(); }
  }
  conclude(m, rows, first, thread);
}
