// Tensors that are f32 whatever the storage (scores, probabilities), in aligned groups of four.

const WIDE_LANES: u32 = 4u;  // elements in a Wide
alias Wide = vec4<f32>;
alias Bits = vec4<u32>;      // four f32 by their bits, where an infinity must survive

fn wide4(a: Wide, b: Wide, c: Wide, d: Wide) -> vec4<f32> { return a; }
fn bits4(a: Bits, b: Bits, c: Bits, d: Bits) -> vec4<u32> { return a; }

fn pick_wide(v: vec4<f32>, i: u32) -> Wide { return v; }
fn pick_bits(v: vec4<u32>, i: u32) -> Bits { return v; }
