//! Weights as integers in blocks, for 0.56 or 0.31 of the memory of f16 where rows are whole blocks.
//!
//! A row of a weight (d_out, d_in) is cut into blocks of [`BLOCK`] columns, the last one filled up with zeros. A block is four scales in
//! f32, one for 32 weights each, and then its integers in two's complement, 8 bits each ([`Element::Int8`]) or 4 ([`Element::Int4`]), the
//! lowest bits of each little-endian word first: 36 or 20 words. A weight is its integer times its scale, the nearest there is to the
//! number that it was made from. (Such blocks of 32 with a scale are Q8_0 and Q4_0 of ggml.)
//!
//! Scales are |largest| / 127 for 8 bits; for 4 bits the largest / −8, so that the number that is furthest from zero is met.
//!
//! ```
//! use tileformer::Element;
//! use tileformer::spec::blocks;
//! let weight: Vec<f32> = (0..2 * 100).map(|i| (i as f32 * 0.1).sin()).collect();
//! let words = blocks::pack(Element::Int8, 100, &weight)?;
//! assert_eq!(words.len(), 2 * blocks::row_words(Element::Int8, 100));
//! let found = blocks::unpack(Element::Int8, 100, &words)?;
//! assert!(weight.iter().zip(found).all(|(w, f)| (w - f).abs() <= 0.5 / 127.0));
//! # Ok::<(), tileformer::Error>(())
//! ```

use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::tensor::Element;

/// Columns of a block.
pub const BLOCK: usize = 128;

/// Columns that share a scale.
const SCALED: usize = 32;

/// Scales of a block, a word each.
const SCALES: usize = BLOCK / SCALED;

fn bits_of(element: Element) -> Result<usize> {
    let bits = element.block_bits().map(|bits| bits as usize);
    bits.ok_or_else(|| Error::option("element of blocks", "int8 or int4", element.name()))
}

/// Words of a row of `columns` weights; 0 for an element that is in no blocks.
#[must_use]
pub fn row_words(element: Element, columns: usize) -> usize {
    let bits = element.block_bits().unwrap_or(0) as usize;
    if bits == 0 { 0 } else { columns.div_ceil(BLOCK).saturating_mul(SCALES + BLOCK * bits / 32) }
}

/// The sizes that a tensor of `sizes` has once it is stored as `element`: a row of blocks counts its words.
#[must_use]
pub fn stored_sizes(element: Element, sizes: &[usize]) -> Vec<usize> {
    let mut stored = sizes.to_vec();
    if let (Some(_), Some(columns)) = (element.block_bits(), stored.last_mut()) {
        *columns = row_words(element, *columns);
    }
    stored
}

/// Rows of `columns` numbers each as blocks.
///
/// # Errors
/// [`Error::Option`] for an element that is in no blocks, no columns, or a number that is not finite or beyond f16, by its place;
/// [`Error::Shape`] for numbers that are no whole rows.
pub fn pack(element: Element, columns: usize, rows: &[f32]) -> Result<Vec<u32>> {
    let bits = bits_of(element)?;
    nonzero("columns", columns)?;
    if !rows.len().is_multiple_of(columns) {
        return Err(Error::shape("rows", format!("rows of {columns}"), format!("{} numbers", rows.len())));
    }
    if let Some(at) = misfit(rows) {
        return Err(Error::option(format!("number {at} of blocks"), "a number within ±65504, as f16 has them", rows[at]));
    }
    let mut words = Vec::with_capacity(rows.len() / columns * row_words(element, columns));
    for row in rows.chunks_exact(columns) {
        for block in row.chunks(BLOCK) {
            let first = words.len();
            words.resize(first + SCALES + BLOCK * bits / 32, 0);
            let (scales, integers) = words[first..].split_at_mut(SCALES);
            for (number, part) in block.chunks(SCALED).enumerate() {
                let scale = scale_of(bits, part);
                scales[number] = scale.to_bits();
                for (place, &weight) in (number * SCALED..).zip(part) {
                    let integer = integer_of(bits, scale, weight) as u32 & ((1 << bits) - 1);
                    integers[place * bits / 32] |= integer << (place * bits % 32);
                }
            }
        }
    }
    Ok(words)
}

/// From here on numbers round to infinity in f16.
const F16_LIMIT: f32 = 65520.0;

/// The first number that blocks cannot hold: one that is not finite, or beyond f16, into which they may be unpacked.
pub(crate) fn misfit(rows: &[f32]) -> Option<usize> {
    rows.iter().position(|number| !number.is_finite() || number.abs() >= F16_LIMIT)
}

/// What one step of the integers stands for.
fn scale_of(bits: usize, part: &[f32]) -> f32 {
    let furthest = part.iter().copied().fold(0.0f32, |most, weight| if weight.abs() > most.abs() { weight } else { most });
    if bits == 8 { furthest.abs() / 127.0 } else { furthest / -8.0 }
}

fn integer_of(bits: usize, scale: f32, weight: f32) -> i32 {
    let most = (1 << (bits - 1)) as f32;
    // A scale that is 0, or too small to divide by, stands for zeros.
    let steps = f64::from(weight) / f64::from(scale);
    if steps.is_finite() { steps.round().clamp(f64::from(-most), f64::from(most - 1.0)) as i32 } else { 0 }
}

/// The numbers that blocks stand for, row by row.
///
/// # Errors
/// [`Error::Option`] for an element that is in no blocks or no columns, [`Error::Shape`] for words that are no whole rows.
pub fn unpack(element: Element, columns: usize, words: &[u32]) -> Result<Vec<f32>> {
    let bits = bits_of(element)?;
    nonzero("columns", columns)?;
    let row_words = row_words(element, columns);
    if !words.len().is_multiple_of(row_words) {
        return Err(Error::shape("words", format!("rows of {row_words}"), format!("{} words", words.len())));
    }
    let block_words = SCALES + BLOCK * bits / 32;
    let of_row = |row: &[u32], column: usize| {
        let (block, place) = (&row[column / BLOCK * block_words..], column % BLOCK);
        let word = block[SCALES + place * bits / 32];
        let integer = ((word << (32 - bits - place * bits % 32)) as i32) >> (32 - bits);
        f32::from_bits(block[place / SCALED]) * integer as f32
    };
    Ok(words.chunks_exact(row_words).flat_map(|row| (0..columns).map(move |column| of_row(row, column))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked case: one block of which three columns are there.
    #[test]
    fn words_are_as_described() -> Result<()> {
        let words = pack(Element::Int8, 3, &[-127.0, 63.4, 0.6])?;
        assert_eq!((words.len(), words[0], &words[1..4]), (36, 1.0f32.to_bits(), &[0; 3][..]));
        assert_eq!((words[4], &words[5..]), (0x0001_3f81, &[0; 31][..]));
        // −4 is furthest from zero: steps of 0.5, and 3.5 lies beyond the last.
        let words = pack(Element::Int4, 3, &[-4.0, 3.8, 1.0])?;
        assert_eq!((words.len(), f32::from_bits(words[0]), words[4]), (20, 0.5, 0x278));
        assert_eq!(unpack(Element::Int4, 3, &words)?, [-4.0, 3.5, 1.0]);
        assert_eq!(unpack(Element::Int4, 3, &pack(Element::Int4, 3, &[4.0, 0.0, -3.7])?)?, [4.0, 0.0, -3.5]);
        Ok(())
    }

    /// No weight is further off than half a step, whatever the number of columns; zeros stay zeros.
    #[test]
    fn weights_are_the_nearest() -> Result<()> {
        for (element, off) in [(Element::Int8, 0.5 / 127.0), (Element::Int4, 1.0 / 8.0)] {
            for columns in [1, 31, 32, 33, 127, 128, 129, 300] {
                let mut rows: Vec<f32> = (0..3 * columns).map(|i| (i * i % 1009) as f32 / 500.0 - 1.0).collect();
                rows[..columns].fill(0.0);
                let found = unpack(element, columns, &pack(element, columns, &rows)?)?;
                assert_eq!(found[..columns], rows[..columns]);
                for (row, (want, found)) in rows.chunks(columns).zip(found.chunks(columns)).enumerate() {
                    for (part, found) in want.chunks(SCALED).zip(found.chunks(SCALED)) {
                        let most = part.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                        let near = part.iter().zip(found).all(|(w, f)| (w - f).abs() <= most * off * 1.000_01);
                        assert!(near, "{element:?}, {columns} columns, row {row}");
                    }
                }
            }
        }
        let tiny = [1e-44f32, -1e-45, 0.0, f32::MIN_POSITIVE];
        assert!(
            unpack(Element::Int8, 4, &pack(Element::Int8, 4, &tiny)?)?.iter().all(|w| w.abs() <= 2.0 * f32::MIN_POSITIVE)
        );
        Ok(())
    }

    #[test]
    fn what_fits_no_block_is_refused() {
        assert!(pack(Element::F16, 4, &[0.0; 4]).is_err());
        assert!(pack(Element::Int8, 0, &[]).is_err());
        assert!(pack(Element::Int8, 3, &[0.0; 4]).is_err());
        let infinite = pack(Element::Int4, 2, &[0.0, 1.0, f32::INFINITY, 0.0]).map_err(|e| e.to_string());
        assert_eq!(infinite, Err("number 2 of blocks: expected a number within ±65504, as f16 has them, found inf".into()));
        assert!(unpack(Element::Int8, 3, &[0; 35]).is_err());
        assert_eq!((row_words(Element::F32, 7), row_words(Element::Int4, 129)), (0, 40));
    }
}
