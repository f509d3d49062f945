// rotary: each head's first columns turned, two and two, by angles of the row's position
//
//   x (rows, heads, size), table (P, turned) = cosines, then sines, of turned / 2 pairs -> y (rows, heads, size)
//
// Pair i is columns 2 i and 2 i + 1 where interleaved, else i and i + turned / 2; (a, b) becomes (a cos − b sin, b cos + a sin). What
// is behind `turned` is copied. A row's position is its id, or with sequences its place in its sequence plus the offset; one that the table
// lacks leaves its row as it is. A thread makes four neighbours of one head. Loops: constant. (Su et al., arXiv 2104.09864)

struct Params {
  groups: u32,             // of four columns, in a head
  workgroups: u32,
  batch: u32,
  longest: u32,            // rows of a sequence
  heads: u32,
  size: u32,
  turned: u32,
  interleaved: u32,
  positions: u32,          // rows of the table
  sequence_count: u32,     // 0: rows have ids
  sequence_stride: u32,    // strides
  id_stride: u32,
  x_row: u32,
  x_head: u32,
  y_row: u32,
  y_head: u32,
  table_row: u32,
  x_offset: u32,
  table_offset: u32,
  places_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;              // (P, turned)
@group(1) @binding(0) var<storage, read> x: array<Storage>;              // (rows, heads, size)
@group(1) @binding(1) var<storage, read> places: array<u32>;             // sequences (B, 8) or ids (rows)
@group(1) @binding(2) var<storage, read_write> y: array<Storage>;        // (rows, heads, size)

// Columns c .. c + 3 of the head that begins at element `at`.
fn x4(at: u32, c: u32) -> vec4<f32> {
  let i = at + c;
  return group4(x[i / LANES], x[(i + 1u) / LANES], x[(i + 2u) / LANES], x[(i + 3u) / LANES]);
}

// One column, wherever it stands.
fn x1(at: u32, c: u32) -> f32 {
  let first = (at + c) / LANES * LANES;
  return group4(x[first / LANES], x[(first + 1u) / LANES], x[(first + 2u) / LANES], x[(first + 3u) / LANES])[at + c - first];
}

// What the table has for pair i of position p.
fn turn(p: u32, i: u32) -> vec2<f32> {
  let at = params.table_offset + p * params.table_row + i;
  return vec2<f32>(table[at], table[at + params.turned / 2u]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let item = number * THREADS + thread;
  let c = item % params.groups * 4u;
  let head = item / params.groups % params.heads;
  let t = item / params.groups / params.heads % params.longest;
  let b = item / params.groups / params.heads / params.longest;
  if b >= params.batch { return; }
  var row = t;
  var position = 0;
  if params.sequence_count != 0u {
    let s = params.places_offset + b * params.sequence_stride;
    if t >= places[s + 1u] { return; }
    row = places[s] + t;
    position = bitcast<i32>(places[s + 4u]) + i32(t);
  } else {
    position = bitcast<i32>(places[params.places_offset + t * params.id_stride]);
  }
  let at = params.x_offset + row * params.x_row + head * params.x_head;
  let four = x4(at, c);
  var v = four;
  if position >= 0 && u32(position) < params.positions {
    let p = u32(position);
    let half = params.turned / 2u;
    for (var l = 0u; l < 4u; l++) {
      let column = c + l;
      if column >= params.turned { continue; }
      let pair = select(column % half, column / 2u, params.interleaved != 0u);
      let second = select(column >= half, column % 2u == 1u, params.interleaved != 0u);
      let far = select(half, 1u, params.interleaved != 0u);
      let other = x1(at, select(column + far, column - far, second));
      let angle = turn(p, pair);
      v[l] = fma(four[l], angle.x, select(-other, other, second) * angle.y);
    }
  }
  let to = params.y_offset + row * params.y_row + head * params.y_head + c;
  for (var l = 0u; l < 4u / LANES; l++) {
    if c + l * LANES < params.size { y[to / LANES + l] = pick(v, l); }
  }
}
