//! Batches: which rows are whose, on the GPU and on the host.

#[cfg(doc)]
use super::cache;
use crate::error::{Error, Result};

/// Where one sequence of a batch lies: its query rows, its key rows, and the position of its first query.
///
/// A `Sequences` tensor is `u32` (B, 8): these fields in this order, on the GPU, so that one plan serves every batch up to
/// its [`BatchShape`].
///
/// Lengths past the longest of the shape are clamped to it. The rows of two sequences must not overlap where they are written, and
/// must lie inside the tensors: rows behind the end are neither checked nor defined. Whatever stands here, kernels end and write
/// nothing outside the output's binding, which reaches from the last multiple of `min_storage_buffer_offset_alignment` before the
/// view to the view's last element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sequence {
    /// The first query row.
    pub q_start: u32,
    /// How many query rows there are.
    pub q_len: u32,
    /// The first key row.
    pub k_start: u32,
    /// How many key rows there are; keys behind them are never read into a result.
    pub k_len: u32,
    /// The position of query 0 among the keys: 0 is PyTorch's rule, the length of the past that of a cache, `S − T` FlashAttention's.
    pub offset: i32,
    /// Zeros.
    pub reserved: [u32; 3],
}

/// How many `u32` a [`Sequence`] has in a `Sequences` tensor.
pub const SEQUENCE_WORDS: usize = size_of::<Sequence>() / 4;

/// The sizes that a batch may reach: what a program is made for.
///
/// A batch that is smaller runs on the same plan, and a later one may be larger again. The tensor `sequences` has as many entries as the
/// shape has sequences all the while: [`Sequences::for_shape`] fills a smaller batch up with empty ones, so that nothing of the batch before
/// it stays behind.
///
/// ```
/// use tileformer::{BatchShape, Sequences};
/// let shape = BatchShape { sequences: 4, q_rows: 100, longest_q: 40, k_rows: 100, longest_k: 40 };
/// let small = Sequences::packed(&[30, 7])?.for_shape(&shape)?;
/// assert_eq!(small.words().len(), 4 * 8);
/// assert!(Sequences::packed(&[41])?.for_shape(&shape).is_err());
/// # Ok::<(), tileformer::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Sequences, B.
    pub sequences: usize,
    /// Query rows of all sequences together (B·T where they are padded).
    pub q_rows: usize,
    /// The longest query, T.
    pub longest_q: usize,
    /// Key rows of all sequences together (B·S where they are padded).
    pub k_rows: usize,
    /// The longest key range, S.
    pub longest_k: usize,
}

impl BatchShape {
    /// B padded sequences of T rows that attend to themselves.
    #[must_use]
    pub fn padded(sequences: usize, longest: usize) -> Self {
        Self::cross(sequences, longest, longest)
    }

    /// B padded sequences of T query rows and S key rows.
    #[must_use]
    pub fn cross(sequences: usize, longest_q: usize, longest_k: usize) -> Self {
        Self {
            sequences,
            q_rows: sequences.saturating_mul(longest_q),
            longest_q,
            k_rows: sequences.saturating_mul(longest_k),
            longest_k,
        }
    }

    /// The shape that holds exactly these sequences.
    #[must_use]
    pub fn of(sequences: &[Sequence]) -> Self {
        let end = |start: u32, len: u32| (start as usize).saturating_add(len as usize);
        let max = |f: &dyn Fn(&Sequence) -> usize| sequences.iter().map(f).max().unwrap_or(0);
        Self {
            sequences: sequences.len(),
            q_rows: max(&|s| end(s.q_start, s.q_len)),
            longest_q: max(&|s| s.q_len as usize),
            k_rows: max(&|s| end(s.k_start, s.k_len)),
            longest_k: max(&|s| s.k_len as usize),
        }
    }

    /// The shape for attention over the batch's own rows: as many key rows as query rows.
    #[must_use]
    pub fn to_self(self) -> Self {
        let (rows, longest) = (self.q_rows.max(self.k_rows), self.longest_q.max(self.longest_k));
        Self { q_rows: rows, longest_q: longest, k_rows: rows, longest_k: longest, ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, size) in [
            ("sequences", self.sequences),
            ("q_rows", self.q_rows),
            ("longest_q", self.longest_q),
            ("k_rows", self.k_rows),
            ("longest_k", self.longest_k),
        ] {
            crate::shape::nonzero(name, size)?;
        }
        if self.longest_q > self.q_rows {
            return Err(Error::option("longest_q", format!("at most q_rows, {}", self.q_rows), self.longest_q));
        }
        if self.longest_k > self.k_rows {
            return Err(Error::option("longest_k", format!("at most k_rows, {}", self.k_rows), self.longest_k));
        }
        Ok(())
    }
}

/// A batch's sequences as the host sees them: built here, uploaded as a `u32` (B, 8) tensor.
///
/// ```
/// use tileformer::Sequences;
/// let padded = Sequences::padded(&[3, 5], 8)?; // two sequences in rows 0..8 and 8..16
/// assert_eq!((padded.as_slice()[1].q_start, padded.as_slice()[1].k_len), (8, 5));
/// let packed = Sequences::packed(&[3, 5])?; // rows 0..3 and 3..8, no padding at all
/// assert_eq!(packed.shape().q_rows, 8);
/// # Ok::<(), tileformer::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    items: Vec<Sequence>,
}

impl Sequences {
    /// Sequences as given.
    ///
    /// # Errors
    /// [`Error::Option`] for none, or row numbers of 2³⁰ and more.
    pub fn new(items: Vec<Sequence>) -> Result<Self> {
        if items.is_empty() {
            return Err(Error::option("sequences", "at least 1", 0));
        }
        let far =
            |s: &Sequence| [s.q_start, s.q_len, s.k_start, s.k_len, s.offset.unsigned_abs()].iter().any(|&v| v >= 1 << 30);
        if let Some(s) = items.iter().find(|s| far(s)) {
            return Err(Error::option("sequences", "rows and offsets below 2^30", format!("{s:?}")));
        }
        Ok(Self { items })
    }

    /// A padded batch that attends to itself: sequence b fills rows b·T .. b·T + T, and `lengths[b]` of them are keys. All T
    /// rows are computed as queries, padding rows like any other.
    ///
    /// # Errors
    /// [`Error::Option`] for a length past `longest`, and as [`Sequences::new`].
    pub fn padded(lengths: &[usize], longest: usize) -> Result<Self> {
        Self::cross(lengths.len(), longest, lengths, longest)
    }

    /// A packed batch that attends to itself: the sequences follow each other without padding.
    ///
    /// # Errors
    /// As [`Sequences::new`].
    pub fn packed(lengths: &[usize]) -> Result<Self> {
        let mut start = 0usize;
        let mut items = Vec::with_capacity(lengths.len());
        for &len in lengths {
            let (at, rows) = (to_u32("sequences", start)?, to_u32("sequences", len)?);
            items.push(Sequence { q_start: at, q_len: rows, k_start: at, k_len: rows, ..Sequence::default() });
            start = start.saturating_add(len);
        }
        Self::new(items)
    }

    /// A padded batch of queries (B, T) over padded keys (B, S), of which `k_lengths[b]` count.
    ///
    /// # Errors
    /// [`Error::Option`] for another number of lengths than sequences, a length past `longest_k`, and as [`Sequences::new`].
    pub fn cross(sequences: usize, longest_q: usize, k_lengths: &[usize], longest_k: usize) -> Result<Self> {
        if k_lengths.len() != sequences {
            return Err(Error::option("lengths", format!("one for each of {sequences} sequences"), k_lengths.len()));
        }
        let mut items = Vec::with_capacity(sequences);
        for (b, &k_len) in k_lengths.iter().enumerate() {
            if k_len > longest_k {
                return Err(Error::option(format!("lengths[{b}]"), format!("at most {longest_k}"), k_len));
            }
            items.push(Sequence {
                q_start: to_u32("sequences", b.saturating_mul(longest_q))?,
                q_len: to_u32("longest_q", longest_q)?,
                k_start: to_u32("sequences", b.saturating_mul(longest_k))?,
                k_len: to_u32("lengths", k_len)?,
                ..Sequence::default()
            });
        }
        Self::new(items)
    }

    /// The queries of this batch over the keys of another: cross-attention of rows that are laid out in different ways.
    ///
    /// # Errors
    /// [`Error::Option`] for another number of sequences.
    pub fn over(&self, memory: &Self) -> Result<Self> {
        let (count, found) = (self.items.len(), memory.items.len());
        if count != found {
            return Err(Error::option("memory", format!("{count} sequences"), found));
        }
        let pair = |(q, k): (&Sequence, &Sequence)| Sequence { k_start: k.k_start, k_len: k.k_len, ..*q };
        Ok(Self { items: self.items.iter().zip(&memory.items).map(pair).collect() })
    }

    /// The same batch with every sequence's position offset set.
    #[must_use]
    pub fn with_offset(mut self, offset: i32) -> Self {
        self.items.iter_mut().for_each(|s| s.offset = offset);
        self
    }

    /// This batch for a plan of `shape`, with empty sequences behind it up to `shape.sequences`: what to write into a `sequences` tensor
    /// where batches differ from run to run. Kernels write nothing for an empty sequence.
    ///
    /// Where the keys are the batch's own rows, `shape` is [`BatchShape::to_self`] of the one in [`Inputs`](crate::layers::Inputs), and
    /// [`CacheShape::batch`](cache::CacheShape::batch) where they are in a cache.
    ///
    /// # Errors
    /// [`Error::Option`] for more sequences than the shape has, and for one that is longer than the shape's longest or ends behind its rows,
    /// by its number.
    pub fn for_shape(mut self, shape: &BatchShape) -> Result<Self> {
        let most = shape.sequences;
        if self.items.len() > most {
            return Err(Error::option("sequences", format!("at most {most}, as the shape has"), self.items.len()));
        }
        for (b, s) in self.items.iter().enumerate() {
            for (kind, start, len, longest, rows) in [
                ("query", s.q_start, s.q_len, shape.longest_q, shape.q_rows),
                ("key", s.k_start, s.k_len, shape.longest_k, shape.k_rows),
            ] {
                let (start, len) = (start as usize, len as usize);
                if len > longest {
                    return Err(Error::option(format!("{kind} rows of sequence {b}"), format!("at most {longest}"), len));
                }
                if len > 0 && start + len > rows {
                    let found = format!("rows {start}..{}", start + len);
                    return Err(Error::option(format!("{kind} rows of sequence {b}"), format!("rows below {rows}"), found));
                }
            }
        }
        self.items.resize(most, Sequence::default());
        Ok(self)
    }

    /// The sequences.
    #[must_use]
    pub fn as_slice(&self) -> &[Sequence] {
        &self.items
    }

    /// The sequences as the words of a `u32` (B, 8) tensor.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        bytemuck::cast_slice(&self.items)
    }

    /// The smallest shape that holds this batch. Self-attention needs [`BatchShape::to_self`] of it: in a padded batch the last
    /// sequence's keys may end before its rows do.
    #[must_use]
    pub fn shape(&self) -> BatchShape {
        BatchShape::of(&self.items)
    }
}

fn to_u32(name: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::option(name, "below 2^30", value))
}
