//! Key/value caches: new keys and values in, slots from one cache to another.

use super::expect_len;
use crate::error::{Error, Result};
use crate::spec::Sequence;
use crate::spec::cache::CacheShape;

/// `k` (rows, NH_kv, HS) and `v` (rows, NH_kv, VS) into `cache` (2, slots, NH_kv, S, W).
///
/// New row t of a sequence is key number `k_len − q_len + t` of its slot. A key that there is no room for is left out.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0, heads wider than the cache, and a sequence that
/// leaves the rows or the cache.
pub fn cache_append<T: Copy>(
    shape: &CacheShape,
    (k, head_size): (&[T], usize),
    (v, value_head_size): (&[T], usize),
    sequences: &[Sequence],
    cache: &mut [T],
) -> Result<()> {
    let &CacheShape { slots, n_kv_heads, capacity, width } = shape;
    shape.layout()?;
    let rows = k.len() / n_kv_heads.saturating_mul(head_size).max(1);
    expect_len("k", &[rows, n_kv_heads, head_size], k.len())?;
    expect_len("v", &[rows, n_kv_heads, value_head_size], v.len())?;
    expect_len("cache", &[2, slots, n_kv_heads, capacity, width], cache.len())?;
    if head_size.max(value_head_size) > width {
        return Err(Error::option("head size", format!("at most {width}"), head_size.max(value_head_size)));
    }
    for (b, s) in sequences.iter().enumerate() {
        for t in 0..s.q_len {
            let key = i64::from(s.k_len) - i64::from(s.q_len) + i64::from(t);
            if key < 0 || key >= capacity as i64 {
                continue;
            }
            let row = s.q_start as usize + t as usize;
            let last = s.k_start as usize + key as usize + (n_kv_heads - 1) * capacity;
            if row >= rows || last >= slots * n_kv_heads * capacity {
                let expected = format!("rows of {rows}, and keys of {slots} slots");
                return Err(Error::option(format!("sequences[{b}]"), expected, format!("{s:?}")));
            }
            for (kind, (from, size)) in [(k, head_size), (v, value_head_size)].into_iter().enumerate() {
                for head in 0..n_kv_heads {
                    let first = s.k_start as usize + key as usize + head * capacity;
                    let to = (kind * slots * n_kv_heads * capacity + first) * width;
                    let at = (row * n_kv_heads + head) * size;
                    cache[to..to + size].copy_from_slice(&from[at..at + size]);
                }
            }
        }
    }
    Ok(())
}

/// Slot i of `to` becomes slot `parents[i]` of `from`, its first `lengths[i]` keys and values, or all that both have room for. A parent
/// that there is not leaves its slot as it is.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, and for more parents than `to` has slots, [`Error::Option`] for a size of 0.
pub fn cache_gather<T: Copy>(
    (from_shape, from): (&CacheShape, &[T]),
    parents: &[u32],
    lengths: Option<&[u32]>,
    (to_shape, to): (&CacheShape, &mut [T]),
) -> Result<()> {
    let &CacheShape { slots, n_kv_heads, capacity, width } = from_shape;
    from_shape.layout()?;
    to_shape.layout()?;
    expect_len("from", &[2, slots, n_kv_heads, capacity, width], from.len())?;
    expect_len("to", &[2, to_shape.slots, n_kv_heads, to_shape.capacity, width], to.len())?;
    if parents.len() > to_shape.slots {
        return Err(Error::shape(
            "parents",
            format!("at most {} slots", to_shape.slots),
            format!("{} slots", parents.len()),
        ));
    }
    expect_len("lengths", &[parents.len()], lengths.map_or(parents.len(), <[u32]>::len))?;
    for (slot, &parent) in parents.iter().enumerate().filter(|(_, parent)| (**parent as usize) < slots) {
        let most = capacity.min(to_shape.capacity);
        let keys = lengths.map_or(most, |l| (l[slot] as usize).min(most));
        for kind in 0..2 {
            for head in 0..n_kv_heads {
                let first = |shape: &CacheShape, slot: usize| {
                    ((kind * shape.slots + slot) * n_kv_heads + head) * shape.capacity * width
                };
                let (at, into) = (first(from_shape, parent as usize), first(to_shape, slot));
                to[into..into + keys * width].copy_from_slice(&from[at..at + keys * width]);
            }
        }
    }
    Ok(())
}
