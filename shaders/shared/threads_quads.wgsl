// shared/threads.wgsl for devices with subgroups of any size from 4 to 128: threads are numbered along subgroups, in which order WGSL
// does not promise local_invocation_index to run, so that threads 4 i .. 4 i + 3 are a quad.

var<private> place: u32;  // of the thread in its quad

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_size) subgroup: u32, @builtin(subgroup_id) number: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  place = lane % 4u;
  work(id, number * subgroup + lane);
}
