// What forms of attention that look at queries, keys and values read.

@group(1) @binding(0) var<storage, read> q: array<Storage>;                  // (q_rows, NH, HS)
@group(1) @binding(1) var<storage, read> k: array<Storage>;                  // (k_rows, NH_kv, HS)
@group(1) @binding(2) var<storage, read> v: array<Storage>;                  // (k_rows, NH_kv, VS)
@group(1) @binding(5) var<storage, read> mask: array<u32>;                   // (B, NH, T, S)
