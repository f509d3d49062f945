//! The table of variants: which compiled form of a kernel serves which shape, and why.

/// How many elements a shader loads at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lanes {
    /// Any offset, stride and inner size.
    One,
    /// Offsets, strides and inner sizes that are multiples of four.
    Four,
}

impl Lanes {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "f32",
            Self::Four => "f32x4",
        }
    }

    pub(crate) fn all_four(aligned: bool) -> Self {
        if aligned { Self::Four } else { Self::One }
    }
}

/// One way to cut an operation into workgroups: constants that head the shader.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(crate) constants: &'static [(&'static str, u32)],
}

impl Class {
    /// The constant `name`; every class of a kernel has the same ones.
    pub(crate) fn get(&self, name: &str) -> u32 {
        self.constants.iter().find(|(n, _)| *n == name).map_or(1, |(_, value)| *value)
    }
}

/// 64×64 outputs a workgroup of 64 threads, 8×8 each: 120 registers and no spill on RDNA3; the most multiply-adds a load and
/// a barrier, which is what CPU adapters reward too.
pub(crate) const TILE_64: Class = Class {
    name: "64x64x16",
    constants: &[("TILE_M", 64), ("TILE_N", 64), ("TILE_K", 16), ("THREAD_M", 8), ("THREAD_N", 8)],
};

/// 32×32 outputs, 4×4 a thread: four times the workgroups, for outputs that would leave most of a 64×64 tile or of the device
/// empty.
pub(crate) const TILE_32: Class = Class {
    name: "32x32x16",
    constants: &[("TILE_M", 32), ("TILE_N", 32), ("TILE_K", 16), ("THREAD_M", 4), ("THREAD_N", 4)],
};

/// 8×64 outputs, 4×4 a thread, 32 threads: attention of one to a few queries, of which a larger tile would be mostly empty.
pub(crate) const TILE_8: Class =
    Class { name: "8x64x8", constants: &[("TILE_M", 8), ("TILE_N", 64), ("TILE_K", 8), ("THREAD_M", 4), ("THREAD_N", 4)] };

/// Up to four rows at once, 16 threads along k for every four columns.
pub(crate) const FEW_4: Class = Class { name: "4x16", constants: &[("THREADS", 64), ("K_THREADS", 16), ("ROWS", 4)] };

/// One row.
pub(crate) const FEW_1: Class = Class { name: "1x16", constants: &[("THREADS", 64), ("K_THREADS", 16), ("ROWS", 1)] };

/// Eight threads a row, eight rows a workgroup: short rows.
pub(crate) const ROWS_SHORT: Class = Class { name: "rows8", constants: &[("THREADS", 64), ("ROW_THREADS", 8)] };

/// 64 threads a row: long rows.
pub(crate) const ROWS_LONG: Class = Class { name: "row64", constants: &[("THREADS", 64), ("ROW_THREADS", 64)] };

/// One element group a thread.
pub(crate) const FLAT: Class = Class { name: "flat", constants: &[("THREADS", 64)] };

/// Rows up to which a projection takes the few-row form, and attention the tile for few queries.
const FEW_ROWS: usize = 8;

/// The tile of a product with `rows` × `columns` outputs. In batch-invariant mode only the columns decide: rows are what a
/// batch changes.
pub(crate) fn tile(rows: usize, columns: usize, batch_invariant: bool) -> &'static Class {
    match rows {
        ..=FEW_ROWS if !batch_invariant => &TILE_8,
        ..=32 if !batch_invariant => &TILE_32,
        _ if columns <= 32 => &TILE_32,
        _ => &TILE_64,
    }
}

/// The few-row path of a projection, where it is better than a tile run nearly empty.
pub(crate) fn few(rows: usize, batch_invariant: bool) -> Option<&'static Class> {
    match rows {
        _ if batch_invariant => None,
        1 => Some(&FEW_1),
        2..=FEW_ROWS => Some(&FEW_4),
        _ => None,
    }
}

/// How many threads share a row of `columns`. The columns of scores are a batch's longest key range, so that batch-invariant
/// softmax (`by_columns` false) always takes the short class.
pub(crate) fn rows(columns: usize, by_columns: bool) -> &'static Class {
    if by_columns && columns > 1024 { &ROWS_LONG } else { &ROWS_SHORT }
}
