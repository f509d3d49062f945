// embedding: y = scale · token[id] + position[p] + segment[segment id] + add
//
//   ids (rows), segment_ids (rows), add (rows, columns), token (V, columns), position (P, columns), segment (G, columns)
//     -> y (rows, columns)
//
// A thread makes four columns of one row. With sequences a row is row t of sequence b and p = first_position + t + offset; rows
// that no sequence has are not written. An id, position or segment outside its table gives zeros. A token table larger than
// one binding comes in parts, a dispatch each: every row is written by the part that has its token, or by the first.
// Loops: constant.

struct Params {
  groups: u32,             // of four columns, in a row
  workgroups: u32,
  batch: u32,
  longest: u32,            // rows of a sequence
  columns: u32,
  scale: f32,
  first_position: u32,
  vocabulary: u32,         // rows of the whole token table; 0 for no tokens
  part_first: u32,         // rows of the part that is bound
  part_rows: u32,
  positions: u32,          // rows; 0 for none
  segments: u32,
  add: u32,                // whether bound
  sequence_count: u32,     // 0: no `sequences` is bound, and rows are one sequence
  sequence_stride: u32,
  id_stride: u32,
  segment_id_stride: u32,
  token_row: u32,          // strides
  position_row: u32,
  segment_row: u32,
  add_row: u32,
  y_row: u32,
  token_offset: u32,
  position_offset: u32,
  segment_offset: u32,
  ids_offset: u32,
  segment_ids_offset: u32,
  sequences_offset: u32,
  add_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> token: array<Storage>;        // (part_rows, columns)
@group(0) @binding(2) var<storage, read> position: array<Storage>;     // (P, columns)
@group(0) @binding(3) var<storage, read> segment: array<Storage>;      // (G, columns)
@group(1) @binding(0) var<storage, read> ids: array<u32>;              // (rows)
@group(1) @binding(1) var<storage, read> segment_ids: array<u32>;      // (rows)
@group(1) @binding(2) var<storage, read> sequences: array<u32>;        // (B, 8)
@group(1) @binding(3) var<storage, read> add: array<Storage>;          // (rows, columns)
@group(1) @binding(4) var<storage, read_write> y: array<Storage>;      // (rows, columns)

fn token4(at: u32) -> vec4<f32> { return group4(token[at / LANES], token[(at + 1u) / LANES], token[(at + 2u) / LANES], token[(at + 3u) / LANES]); }
fn position4(at: u32) -> vec4<f32> {
  return group4(position[at / LANES], position[(at + 1u) / LANES], position[(at + 2u) / LANES], position[(at + 3u) / LANES]);
}
fn segment4(at: u32) -> vec4<f32> {
  return group4(segment[at / LANES], segment[(at + 1u) / LANES], segment[(at + 2u) / LANES], segment[(at + 3u) / LANES]);
}
fn add4(at: u32) -> vec4<f32> { return group4(add[at / LANES], add[(at + 1u) / LANES], add[(at + 2u) / LANES], add[(at + 3u) / LANES]); }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let number = workgroup_number(id);
  if number >= params.workgroups { return; }
  let group = number * THREADS + thread;
  let c = group % params.groups * 4u;
  let t = group / params.groups % params.longest;
  let b = group / params.groups / params.longest;
  if b >= params.batch { return; }

  var row = t;
  var p = i32(params.first_position + t);
  if params.sequence_count != 0u {
    let at = params.sequences_offset + b * params.sequence_stride;
    if t >= sequences[at + 1u] { return; }
    row = sequences[at] + t;
    p += bitcast<i32>(sequences[at + 4u]);
  }

  var v = vec4<f32>(0.0);
  var known = true;
  // Positions are known before tokens are.
  let inside = p >= 0 && u32(p) < params.positions;
  var placed = vec4<f32>(0.0);
  if inside { placed = position4(params.position_offset + u32(p) * params.position_row + c); }
  if params.vocabulary != 0u {
    let token_id = ids[params.ids_offset + row * params.id_stride];
    let here = token_id >= params.part_first && token_id - params.part_first < params.part_rows;
    known = token_id < params.vocabulary;
    if !here && (known || params.part_first != 0u) { return; }
    if here { v = token4(params.token_offset + (token_id - params.part_first) * params.token_row + c); }
  }
  known = known && (inside || params.positions == 0u);
  v = fma(vec4<f32>(params.scale), v, placed);
  if params.segments != 0u {
    let segment_id = segment_ids[params.segment_ids_offset + row * params.segment_id_stride];
    known = known && segment_id < params.segments;
    v += segment4(params.segment_offset + min(segment_id, params.segments - 1u) * params.segment_row + c);
  }
  if params.add != 0u { v += add4(params.add_offset + row * params.add_row + c); }
  v = select(vec4<f32>(0.0), v, known);
  let at = params.y_offset + row * params.y_row + c;
  for (var l = 0u; l < 4u / LANES; l++) {
    if c + l * LANES < params.columns { y[at / LANES + l] = pick(v, l); }
  }
}
