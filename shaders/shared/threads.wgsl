// The entry point of kernels whose threads can be numbered along subgroups. The kernel defines
//   fn work(id: vec3<u32>, thread: u32)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) { work(id, thread); }
