//! Seeded data: the same in every run, on every machine, in whatever order the tests run.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A generator seeded by a test's name and a case number.
pub fn seeded(name: &str, case: u64) -> StdRng {
    // FNV-1a
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    StdRng::seed_from_u64(hash ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// `len` floats of low .. high.
pub fn uniform(rng: &mut StdRng, len: usize, low: f32, high: f32) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(low..high)).collect()
}

/// `len` floats of −1 .. 1.
pub fn floats(rng: &mut StdRng, len: usize) -> Vec<f32> {
    uniform(rng, len, -1.0, 1.0)
}

/// One of `of`.
pub fn pick<T: Clone>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())].clone()
}

/// Sizes at which a tile breaks: one, around the tile, two tiles and a bit.
pub fn sizes(tile: usize) -> Vec<usize> {
    let mut sizes = vec![1, tile - 1, tile, tile + 1, 2 * tile + 3];
    sizes.retain(|&s| s > 0);
    sizes.dedup();
    sizes
}

/// Sizes that divide nothing.
pub fn primes() -> [usize; 5] {
    [2, 7, 23, 61, 97]
}
