// Tensors that are f32 whatever the storage (scores, probabilities), element by element: any offset, stride and inner size.

const WIDE_LANES: u32 = 1u;  // elements in a Wide
alias Wide = f32;
alias Bits = u32;            // an f32 by its bits, where an infinity must survive

fn wide4(a: Wide, b: Wide, c: Wide, d: Wide) -> vec4<f32> { return vec4<f32>(a, b, c, d); }
fn bits4(a: Bits, b: Bits, c: Bits, d: Bits) -> vec4<u32> { return vec4<u32>(a, b, c, d); }

fn pick_wide(v: vec4<f32>, i: u32) -> Wide { return v[i]; }
fn pick_bits(v: vec4<u32>, i: u32) -> Bits { return v[i]; }
