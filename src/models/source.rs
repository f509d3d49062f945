//! From the tensors of a checkpoint to a weight of a program.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::checkpoint::{Checkpoint, Stored};
use crate::error::{Error, Result};

/// Where a weight comes from: a tensor of a checkpoint, or several of them put together.
///
/// ```
/// use tileformer::models::Source;
/// // q, k and v of one attention under each other, as `in_proj_weight` has them
/// let stacked = Source::rows(["query", "key", "value"].map(|name| Source::tensor(format!("attention.self.{name}.weight"))));
/// // GPT-2's weights are (in, out); a tied head stands under either name
/// let turned = Source::tensor("h.0.mlp.c_fc.weight").transposed();
/// let head = Source::tensor("lm_head.weight").or("transformer.wte.weight");
/// # drop((stacked, turned, head));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Source(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// The first of these that the checkpoint has.
    Named(Vec<String>),
    Rows(Vec<Source>),
    Transposed(Box<Source>),
    Reshaped(Box<Source>, Vec<usize>),
    Gathered(Box<Source>, Arc<[u32]>),
    Scaled(Box<Source>, f32),
    Values(Vec<usize>, Vec<f32>),
}

impl Source {
    /// The tensor `name`, spelled as [`Checkpoint::sizes`] allows.
    #[must_use]
    pub fn tensor(name: impl Into<String>) -> Self {
        Self(Kind::Named(vec![name.into()]))
    }

    /// The tensor `name` where the checkpoint has none of those before it. What is no single tensor stays as it is.
    #[must_use]
    pub fn or(mut self, name: impl Into<String>) -> Self {
        if let Kind::Named(names) = &mut self.0 {
            names.push(name.into());
        }
        self
    }

    /// Several one behind the other along their first dimension.
    #[must_use]
    pub fn rows(parts: impl IntoIterator<Item = Self>) -> Self {
        Self(Kind::Rows(parts.into_iter().collect()))
    }

    /// (a, b) as (b, a).
    #[must_use]
    pub fn transposed(self) -> Self {
        Self(Kind::Transposed(Box::new(self)))
    }

    /// The same elements under other sizes.
    #[must_use]
    pub fn reshaped(self, sizes: &[usize]) -> Self {
        Self(Kind::Reshaped(Box::new(self), sizes.to_vec()))
    }

    /// Of one matrix these rows, each as often as it is named.
    #[must_use]
    pub fn gathered(self, rows: impl Into<Arc<[u32]>>) -> Self {
        Self(Kind::Gathered(Box::new(self), rows.into()))
    }

    /// Every element times `factor`.
    #[must_use]
    pub fn scaled(self, factor: f32) -> Self {
        Self(Kind::Scaled(Box::new(self), factor))
    }

    /// Numbers that are no checkpoint's: a table of sinusoidal positions, say.
    #[must_use]
    pub fn values(sizes: &[usize], values: Vec<f32>) -> Self {
        Self(Kind::Values(sizes.to_vec(), values))
    }

    /// Finds the tensors in a checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a tensor that is missing or whose elements are no f32, f16 or bf16; [`Error::Shape`] for sizes that
    /// do not go together; each names the tensor.
    pub fn resolve<'a>(&'a self, checkpoint: &'a Checkpoint) -> Result<Resolved<'a>> {
        match &self.0 {
            Kind::Named(names) => {
                let Some(stored) = names.iter().find_map(|name| checkpoint.find(name)) else {
                    let name = names.first().map_or("", String::as_str);
                    let others = names.get(1..).unwrap_or_default().iter().map(|n| format!(", and none named {n}"));
                    let others: String = others.collect();
                    return Err(Error::checkpoint(name, format!("the checkpoint has no tensor of this name{others}")));
                };
                Resolved::stored(stored)
            }
            Kind::Values(sizes, values) => {
                let count = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
                if count != Some(values.len()) {
                    return Err(Error::shape("values", format!("{sizes:?}"), format!("{} elements", values.len())));
                }
                let part = Part::new("values", Data::Values(values), [1, values.len()]);
                Ok(Resolved { sizes: sizes.clone(), parts: vec![part] })
            }
            Kind::Rows(sources) => Resolved::rows(sources, checkpoint),
            Kind::Transposed(source) => source.resolve(checkpoint)?.transposed(),
            Kind::Reshaped(source, sizes) => source.resolve(checkpoint)?.reshaped(sizes),
            Kind::Gathered(source, rows) => source.resolve(checkpoint)?.gathered(rows),
            Kind::Scaled(source, factor) => Ok(source.resolve(checkpoint)?.scaled(*factor)),
        }
    }
}

/// A source that was found: its sizes, and its elements where they lie.
#[derive(Clone, Debug)]
pub struct Resolved<'a> {
    sizes: Vec<usize>,
    /// One behind the other.
    parts: Vec<Part<'a>>,
}

/// A matrix (rows, columns) in row-major order, or its transpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    data: Data<'a>,
    rows: usize,
    columns: usize,
    /// Whether its elements come column by column.
    turned: bool,
    /// The rows of `data` that it has, where those are not all of them.
    gathered: Option<&'a [u32]>,
    scale: f32,
}

#[derive(Clone, Copy, Debug)]
enum Data<'a> {
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
    Values(&'a [f32]),
}

impl Data<'_> {
    fn copy(&self, from: usize, step: usize, out: &mut [f32]) {
        fn each<T: Copy>(data: &[T], from: usize, step: usize, out: &mut [f32], read: impl Fn(T) -> f32) {
            let data = data.get(from..).unwrap_or_default().iter().step_by(step.max(1));
            out.iter_mut().zip(data).for_each(|(o, &value)| *o = read(value));
        }
        match *self {
            Self::F32(data) => each(data, from, step, out, f32::from_le_bytes),
            Self::F16(data) => each(data, from, step, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16(data) => each(data, from, step, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Values(data) => each(data, from, step, out, |v| v),
        }
    }
}

impl<'a> Part<'a> {
    fn new(name: &'a str, data: Data<'a>, [rows, columns]: [usize; 2]) -> Self {
        Self { name, data, rows, columns, turned: false, gathered: None, scale: 1.0 }
    }

    fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Elements from `first` on.
    fn read(&self, first: usize, out: &mut [f32]) {
        self.read_unscaled(first, out);
        if self.scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= self.scale);
        }
    }

    fn read_unscaled(&self, first: usize, out: &mut [f32]) {
        if let Some(gathered) = self.gathered {
            for (at, out) in (first..).zip(out) {
                let (row, column) =
                    if self.turned { (at % self.rows, at / self.rows) } else { (at / self.columns, at % self.columns) };
                let row = gathered.get(row).map_or(0, |&row| row as usize);
                self.data.copy(row * self.columns + column, 1, std::slice::from_mut(out));
            }
            return;
        }
        if !self.turned {
            return self.data.copy(first, 1, out);
        }
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (column, row) = (at / self.rows, at % self.rows);
            let count = rest.len().min(self.rows - row);
            let (now, later) = rest.split_at_mut(count);
            self.data.copy(row * self.columns + column, self.columns, now);
            (at, rest) = (at + count, later);
        }
    }
}

impl<'a> Resolved<'a> {
    fn stored(stored: Stored<'a>) -> Result<Self> {
        let Stored { name, dtype, sizes, bytes } = stored;
        let data = match dtype {
            Dtype::F32 => Data::F32(bytes.as_chunks().0),
            Dtype::F16 => Data::F16(bytes.as_chunks().0),
            Dtype::BF16 => Data::Bf16(bytes.as_chunks().0),
            other => {
                return Err(Error::checkpoint(name, format!("expected elements of type f32, f16 or bf16, found {other:?}")));
            }
        };
        let columns = sizes.last().copied().unwrap_or(1);
        // A header whose sizes overflow is refused, but for one with a 0 in front.
        let rows = if sizes.contains(&0) { 0 } else { sizes.iter().rev().skip(1).product() };
        Ok(Self { sizes: sizes.to_vec(), parts: vec![Part::new(name, data, [rows, columns])] })
    }

    fn rows(sources: &'a [Source], checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut all: Option<Self> = None;
        for source in sources {
            let next = source.resolve(checkpoint)?;
            let Some(sum) = &mut all else {
                all = Some(next);
                continue;
            };
            match (sum.sizes.split_first_mut(), next.sizes.split_first()) {
                (Some((rows, inner)), Some((more, other))) if *inner == *other => {
                    *rows = rows.saturating_add(*more);
                    sum.parts.extend(next.parts);
                }
                _ => {
                    let expected = format!("rows of the same sizes as {}, {:?}", sum.name(), sum.sizes);
                    return Err(Error::shape(next.name(), expected, format!("{:?}", next.sizes)));
                }
            }
        }
        all.ok_or_else(|| Error::option("rows", "at least one source", 0))
    }

    fn transposed(mut self) -> Result<Self> {
        match (self.sizes.as_slice(), self.parts.as_mut_slice()) {
            // One that is turned lies so under the sizes that it was turned to alone.
            // Rows that are gathered are those of a matrix as it is.
            (sizes, [part]) if part.gathered.is_some() && !part.turned && *sizes != [part.rows, part.columns] => {
                Err(Error::shape(self.name(), "rows as they were gathered, to be transposed", format!("{:?}", self.sizes)))
            }
            (&[rows, columns], [part]) if !part.turned || [rows, columns] == [part.columns, part.rows] => {
                if part.turned {
                    part.turned = false;
                } else {
                    *part = Part { rows, columns, turned: true, ..*part };
                }
                self.sizes = vec![columns, rows];
                Ok(self)
            }
            _ => Err(Error::shape(self.name(), "one matrix, to be transposed", format!("{:?}", self.sizes))),
        }
    }

    fn gathered(mut self, gathered: &'a [u32]) -> Result<Self> {
        match (self.sizes.as_slice(), self.parts.as_mut_slice()) {
            (&[rows, columns], [part]) if !part.turned && part.gathered.is_none() => {
                if let Some(row) = gathered.iter().find(|&&row| row as usize >= rows) {
                    return Err(Error::option(format!("rows of {}", part.name), format!("rows below {rows}"), row));
                }
                *part = Part { rows: gathered.len(), columns, gathered: Some(gathered), ..*part };
                self.sizes = vec![gathered.len(), columns];
                Ok(self)
            }
            _ => {
                let expected = "one matrix that is neither turned nor gathered, to take rows of";
                Err(Error::shape(self.name(), expected, format!("{:?}", self.sizes)))
            }
        }
    }

    fn scaled(mut self, factor: f32) -> Self {
        self.parts.iter_mut().for_each(|part| part.scale *= factor);
        self
    }

    fn reshaped(self, sizes: &[usize]) -> Result<Self> {
        if sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)) == Some(self.len()) {
            return Ok(Self { sizes: sizes.to_vec(), ..self });
        }
        Err(Error::shape(self.name(), format!("elements for {sizes:?}"), format!("{:?}", self.sizes)))
    }

    /// The name of the first tensor.
    pub(super) fn name(&self) -> String {
        self.parts.first().map_or("", |p| p.name).to_owned()
    }

    /// Its sizes.
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements from `first` on, in row-major order, until `out` is full or there are no more.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        self.each_part(first..first.saturating_add(out.len()), |at, part, range| {
            if let Some(out) = out.get_mut(at..at + range.len()) {
                part.read(range.start, out);
            }
        });
    }

    /// Parts and the ranges of their elements that make up `range`; each with where it begins in it.
    pub(super) fn each_part<'p>(&'p self, range: Range<usize>, mut visit: impl FnMut(usize, &'p Part<'a>, Range<usize>)) {
        let mut begin = 0;
        for part in &self.parts {
            let end = begin + part.len();
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                visit(from - range.start, part, from - begin..to - begin);
            }
            begin = end;
        }
    }
}
