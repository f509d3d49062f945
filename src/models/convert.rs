//! The numbers of a checkpoint as a program stores them.

use std::ops::Range;

use half::f16;

use super::source::Resolved;
use crate::error::{Error, Result};
use crate::spec::blocks;
use crate::tensor::Element;

/// From here on numbers round to infinity in f16.
const F16_LIMIT: f32 = 65520.0;

/// Elements that are converted at a time.
const PIECE: usize = 1 << 14;

impl Resolved<'_> {
    /// How many elements it has once it is stored as `element`: words, for weights in [`blocks`].
    #[must_use]
    pub fn len_as(&self, element: Element) -> usize {
        match self.sizes().last() {
            Some(&columns) if element.block_bits().is_some() && columns > 0 => {
                (self.len() / columns).saturating_mul(blocks::row_words(element, columns))
            }
            _ => self.len(),
        }
    }

    /// Converts to `element`, of which `range` are the elements that are wanted, whole rows of blocks, and gives the bytes, piece by piece, to `write`,
    /// together with where in the range they belong, in bytes: into memory that the GPU reads, without a copy of all of them.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a finite number that f16 cannot hold, and one that is not finite in blocks, by its tensor's name;
    /// [`Error::Element`] for `u32`; [`Error::Option`] for a part of a row of blocks.
    pub fn convert(&self, element: Element, range: Range<usize>, mut write: impl FnMut(usize, &[u8])) -> Result<()> {
        if element == Element::U32 {
            return Err(Error::Element { tensor: self.name(), expected: "f32, f16 or blocks", found: element.name() });
        }
        if element.block_bits().is_some() {
            return self.convert_blocks(element, range, write);
        }
        let range = range.start.min(self.len())..range.end.min(self.len());
        let mut floats = vec![0.0f32; PIECE.min(range.len())];
        let mut halves = vec![f16::ZERO; if element == Element::F16 { floats.len() } else { 0 }];
        for first in range.clone().step_by(PIECE) {
            let piece = first..range.end.min(first.saturating_add(PIECE));
            let (at, floats) = (piece.start - range.start, &mut floats[..piece.len()]);
            self.read(piece.start, floats);
            if element == Element::F32 {
                write(4 * at, bytemuck::cast_slice(floats));
                continue;
            }
            if let Some(i) = floats.iter().position(|x| x.is_finite() && x.abs() >= F16_LIMIT) {
                return Err(self.too_large(piece.start + i, floats[i]));
            }
            let halves = &mut halves[..piece.len()];
            halves.iter_mut().zip(floats.iter()).for_each(|(h, &x)| *h = f16::from_f32(x));
            write(2 * at, bytemuck::cast_slice(half::slice::HalfFloatSliceExt::reinterpret_cast(&*halves)));
        }
        Ok(())
    }

    fn too_large(&self, at: usize, found: f32) -> Error {
        let (name, place) = self.place(at);
        Error::checkpoint(name, format!("element {place}, {found}, does not fit f16, which ends at ±65504"))
    }

    fn convert_blocks(&self, element: Element, range: Range<usize>, mut write: impl FnMut(usize, &[u8])) -> Result<()> {
        let range = range.start.min(self.len_as(element))..range.end.min(self.len_as(element));
        let columns = self.sizes().last().copied().unwrap_or(0).max(1);
        let row = blocks::row_words(element, columns);
        if !(range.start.is_multiple_of(row) && range.end.is_multiple_of(row)) {
            let expected = format!("whole rows of {row} words");
            return Err(Error::option(format!("range of {}", self.name()), expected, format!("{range:?}")));
        }
        let rows = range.start / row..range.end / row;
        let at_once = (PIECE / columns).max(1);
        let mut floats = vec![0.0f32; columns.saturating_mul(at_once.min(rows.len()))];
        for first in rows.clone().step_by(at_once) {
            let piece = &mut floats[..columns * at_once.min(rows.end - first)];
            self.read(first * columns, piece);
            if let Some(at) = blocks::misfit(piece) {
                let (name, place) = self.place(first * columns + at);
                let problem = format!("element {place}, {}, does not fit {}", piece[at], element.name());
                return Err(Error::checkpoint(name, problem));
            }
            let words = blocks::pack(element, columns, piece)?;
            write(4 * row * (first - rows.start), bytemuck::cast_slice(&words));
        }
        Ok(())
    }

    /// The tensor that an element comes from, and its number there.
    fn place(&self, at: usize) -> (String, usize) {
        let mut place = (self.name(), at);
        self.each_part(at..at + 1, |_, part, range| place = (part.name.to_owned(), range.start));
        place
    }
}
