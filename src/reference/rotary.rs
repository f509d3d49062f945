//! Rotary positions (Su et al., arXiv 2104.09864).

use super::{Real, expect_len};
use crate::error::{Error, Result};
use crate::spec::RotaryOrder;

/// The first `turned` columns of each head of x (rows, heads, size), turned in pairs by angles of the row's position.
///
/// `table` (P, turned) has cosines, then sines; a row whose position it lacks is copied.
///
/// ```text
/// (a, b) becomes (a cos − b sin, b cos + a sin)
/// ```
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for `turned` that is odd or wider than a head.
pub fn rotary<T: Real>(
    x: &[T],
    [rows, heads, size]: [usize; 3],
    (table, turned): (&[T], usize),
    order: RotaryOrder,
    positions: &[i64],
) -> Result<Vec<T>> {
    expect_len("x", &[rows, heads, size], x.len())?;
    expect_len("positions", &[rows], positions.len())?;
    if turned > size || !turned.is_multiple_of(2) {
        return Err(Error::option("turned columns", format!("an even number up to {size}"), turned));
    }
    let table_rows = table.len() / turned.max(1);
    expect_len("table", &[table_rows, turned], table.len())?;
    let mut y = x.to_vec();
    for (row, &position) in positions.iter().enumerate() {
        let Some(angles) = usize::try_from(position).ok().and_then(|p| table.chunks_exact(turned.max(1)).nth(p)) else {
            continue;
        };
        for head in 0..heads {
            let first = (row * heads + head) * size;
            for pair in 0..turned / 2 {
                let (a, b) = match order {
                    RotaryOrder::Interleaved => (first + 2 * pair, first + 2 * pair + 1),
                    RotaryOrder::Halves => (first + pair, first + pair + turned / 2),
                };
                let (cos, sin) = (angles[pair], angles[pair + turned / 2]);
                y[a] = x[a] * cos - x[b] * sin;
                y[b] = x[b] * cos + x[a] * sin;
            }
        }
    }
    Ok(y)
}
