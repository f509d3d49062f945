// Workgroups are numbered in one line, folded over two grid dimensions where one is too short.
fn workgroup_number(id: vec3<u32>) -> u32 { return id.x + id.y * GRID_FOLD; }
