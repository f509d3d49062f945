//! Key/value caches and the words of a decode step: what lies where, refused here where the host can know that it does not fit.

use std::collections::HashSet;

use super::layers::MultiHeadAttention;
use super::{BatchShape, SEQUENCE_WORDS, Sequence, Sequences};
use crate::error::{Error, Result};
use crate::shape::{Layout, nonzero};
use crate::tensor::Element;

/// The sizes of a layer's key/value cache, a tensor (2, slots, NH_kv, capacity, W) of the caller's.
///
/// Keys come first, values second; W is the wider of the two heads. A slot holds one text; nothing has to be cleared, as lengths alone say what counts.
#[doc(alias = "kv_cache")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheShape {
    /// How many texts there is room for.
    pub slots: usize,
    /// Key/value heads, NH_kv.
    pub n_kv_heads: usize,
    /// The most keys of a slot, S_max.
    pub capacity: usize,
    /// Columns of a key or a value, W.
    pub width: usize,
}

/// New rows of a text whose past is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedRows {
    /// The slot.
    pub slot: usize,
    /// Keys in the slot that count. To truncate a text is to give a smaller number, to reset it, 0.
    pub past: usize,
    /// New rows, whose keys follow them.
    pub new: usize,
}

impl CacheShape {
    /// The cache of an attention.
    #[must_use]
    pub fn of(attention: &MultiHeadAttention, slots: usize, capacity: usize) -> Self {
        let width = attention.head_size.max(attention.value_head_size);
        Self { slots, n_kv_heads: attention.n_kv_heads, capacity, width }
    }

    /// The layout without gaps.
    ///
    /// # Errors
    /// [`Error::Option`] for a size of 0, or more elements than a tensor can have.
    pub fn layout(&self) -> Result<Layout> {
        let &Self { slots, n_kv_heads, capacity, width } = self;
        for (name, size) in [("slots", slots), ("n_kv_heads", n_kv_heads), ("capacity", capacity), ("head size", width)] {
            nonzero(name, size)?;
        }
        Layout::contiguous(&[2, slots, n_kv_heads, capacity, width])
    }

    /// The largest batch of new rows over this cache, for [`Builder::batch`](crate::Builder::batch) in front of cached layers: up to
    /// `sequences` texts with `rows` new rows together and at most `longest` of one, over every key that a slot can hold. (The shape of one
    /// batch's [`Sequences`] is no substitute: texts grow, and keys beyond its longest would be lost.)
    ///
    /// ```
    /// use tileformer::layers::MultiHeadAttention;
    /// use tileformer::spec::cache::{CacheShape, CachedRows};
    /// let cache = CacheShape::of(&MultiHeadAttention::new(64, 4), 8, 1024);
    /// let shape = cache.batch(2, 32, 24);
    /// assert_eq!((shape.q_rows, shape.longest_k), (32, 1024));
    /// let rows = [CachedRows { slot: 7, past: 1000, new: 24 }, CachedRows { slot: 2, past: 0, new: 8 }];
    /// let words = cache.sequences(&rows)?.for_shape(&shape)?; // `words.words()` is what the buffer `sequences` holds
    /// # Ok::<(), tileformer::Error>(())
    /// ```
    #[must_use]
    pub fn batch(&self, sequences: usize, rows: usize, longest: usize) -> BatchShape {
        let &Self { slots, n_kv_heads, capacity, .. } = self;
        BatchShape {
            sequences,
            q_rows: rows,
            longest_q: longest,
            k_rows: key_rows(slots, n_kv_heads, capacity),
            longest_k: capacity,
        }
    }

    /// Bytes of one layer's cache.
    #[must_use]
    pub fn bytes(&self, element: Element) -> u64 {
        let elements = [2, self.slots, self.n_kv_heads, self.capacity, self.width];
        elements.iter().fold(element.size(), |n, &size| n.saturating_mul(size as u64))
    }

    /// The first key row of a slot, as [`Sequence::k_start`] counts them: rows of all heads.
    fn first_row(&self, slot: usize) -> Result<u32> {
        word("key rows of the slot", slot.saturating_mul(self.n_kv_heads).saturating_mul(self.capacity))
    }

    /// One sequence: `rows.new` query rows from `q_start` on, over the slot's past and themselves.
    ///
    /// # Errors
    /// [`Error::Option`] for a slot that there is not, or more keys than it holds.
    pub fn sequence(&self, q_start: usize, rows: &CachedRows) -> Result<Sequence> {
        let &CachedRows { slot, past, new } = rows;
        if slot >= self.slots {
            return Err(Error::option("slot", format!("below {}", self.slots), slot));
        }
        let keys = past.saturating_add(new);
        if keys > self.capacity {
            return Err(Error::option(format!("keys of slot {slot}"), format!("at most {}", self.capacity), keys));
        }
        Ok(Sequence {
            q_start: word("q_start", q_start)?,
            q_len: word("new rows", new)?,
            k_start: self.first_row(slot)?,
            k_len: word("keys", keys)?,
            offset: word("past", past)?.cast_signed(),
            reserved: [0; 3],
        })
    }

    /// A batch of new rows, packed one text behind the other.
    ///
    /// # Errors
    /// As [`CacheShape::sequence`]; also for two texts in one slot, and no text at all.
    pub fn sequences(&self, rows: &[CachedRows]) -> Result<Sequences> {
        let mut taken = HashSet::with_capacity(rows.len());
        let mut q_start = 0usize;
        let mut items = Vec::with_capacity(rows.len());
        for rows in rows {
            items.push(self.sequence(q_start, rows)?);
            if !taken.insert(rows.slot) {
                return Err(Error::option("slot", "one text a slot", format!("two in slot {}", rows.slot)));
            }
            q_start = q_start.saturating_add(rows.new);
        }
        Sequences::new(items)
    }
}

/// Rows of a cache's keys as [`Sequence::k_start`] counts them: those of a slot's first head begin where the slot does, and the other heads'
/// are reached from there.
pub(crate) fn key_rows(slots: usize, n_kv_heads: usize, capacity: usize) -> usize {
    slots.saturating_mul(n_kv_heads).saturating_sub(n_kv_heads.saturating_sub(1)).saturating_mul(capacity)
}

/// A number of rows, as [`Sequences`] take it.
fn word(what: &str, rows: usize) -> Result<u32> {
    u32::try_from(rows).ok().filter(|&rows| rows < 1 << 30).ok_or_else(|| Error::option(what, "below 2^30", rows))
}

/// A row of a decode step: a text that grows by one token a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRow {
    /// Where its keys and values are.
    pub slot: usize,
    /// Tokens that are in the cache. The next one, `id`, is not.
    pub past: usize,
    /// The token that the first step embeds: the last of a prompt, or the one that begins every text.
    pub id: u32,
    /// For cross-attention, the slot of the memory and how many rows it has there.
    pub memory: Option<(usize, usize)>,
}

/// Where a row of [`DecodeState`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeProgress {
    /// Tokens in the cache.
    pub past: usize,
    /// The token that the next step embeds; the last one of a text that has ended.
    pub id: u32,
    /// Steps that ran, those after its end included.
    pub steps: usize,
    /// Whether it rests: it ended, or never began.
    pub ended: bool,
    /// Whether it ended as its slot was full.
    pub full: bool,
}

/// The state of a batch that decodes, `u32` (rows, 8), which the GPU reads and advances by itself:
///
/// ```text
/// B rows    the sequences of self-attention: q_start = b, q_len = 1, or 0 for a row that rests
/// B rows    the sequences of cross-attention, where there is one
/// B rows    id, steps, flags (1: ended, 2: the cache was full), zeros
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeState {
    words: Vec<u32>,
    batch: usize,
    cross: bool,
}

/// How many `u32` a row of a [`DecodeState`] has.
pub const STATE_WORDS: usize = SEQUENCE_WORDS;

const ENDED: u32 = 1;
const FULL: u32 = 2;

impl DecodeState {
    /// A batch about to take its first step; `None` is a row that rests.
    ///
    /// # Errors
    /// [`Error::Option`] for no rows, as [`CacheShape::sequences`], and for a memory where `memory` is `None` or the other way round.
    pub fn new(cache: &CacheShape, memory: Option<&CacheShape>, rows: &[Option<DecodeRow>]) -> Result<Self> {
        nonzero("rows of the decode state", rows.len())?;
        let live: Vec<_> = rows.iter().flatten().map(|r| CachedRows { slot: r.slot, past: r.past, new: 1 }).collect();
        if !live.is_empty() {
            cache.sequences(&live)?;
        }
        let mut words = Vec::new();
        let resting = |b: usize| Sequence { q_start: b as u32, ..Sequence::default() };
        let mut push = |sequence: Sequence| words.extend_from_slice(bytemuck::cast_slice(&[sequence]));
        for (b, row) in rows.iter().enumerate() {
            push(match row {
                Some(r) => cache.sequence(b, &CachedRows { slot: r.slot, past: r.past, new: 1 })?,
                None => resting(b),
            });
        }
        for (b, row) in rows.iter().enumerate() {
            match (memory, row.as_ref().map(|r| r.memory)) {
                (Some(shape), Some(Some((slot, length)))) => {
                    let own = shape.sequence(b, &CachedRows { slot, past: length, new: 0 })?;
                    push(Sequence { q_len: 1, offset: 0, ..own });
                }
                (Some(_), None) => push(resting(b)),
                (None, None | Some(None)) => {}
                (_, found) => {
                    let expected = if memory.is_some() { "a slot of the memory's cache" } else { "none" };
                    return Err(Error::option(format!("memory of row {b}"), expected, format!("{found:?}")));
                }
            }
        }
        for row in rows {
            let flags = if row.is_some() { 0 } else { ENDED };
            words.extend([row.map_or(0, |r| r.id), 0, flags, 0, 0, 0, 0, 0]);
        }
        Ok(Self { words, batch: rows.len(), cross: memory.is_some() })
    }

    /// The state that a readback of its tensor holds.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of words.
    pub fn read(batch: usize, cross: bool, words: Vec<u32>) -> Result<Self> {
        let expected = Self::rows(batch, cross).saturating_mul(STATE_WORDS);
        if words.len() != expected {
            return Err(Error::shape("decode state", format!("{expected} words"), format!("{} words", words.len())));
        }
        Ok(Self { words, batch, cross })
    }

    /// Rows of 8 words that the state of `batch` texts has.
    #[must_use]
    pub fn rows(batch: usize, cross: bool) -> usize {
        batch.saturating_mul(if cross { 3 } else { 2 })
    }

    /// The words of the `u32` (rows, 8) tensor.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Where each row stands.
    #[must_use]
    pub fn progress(&self) -> Vec<DecodeProgress> {
        let last = Self::rows(self.batch, self.cross) - self.batch;
        let row = |at: usize| &self.words[at * STATE_WORDS..][..STATE_WORDS];
        let one = |b: usize| {
            let (sequence, own) = (row(b), row(last + b));
            let ended = own[2] & ENDED != 0;
            // A row that goes on has counted the key of its next token already.
            let past = if ended { sequence[3] } else { sequence[3].saturating_sub(1) };
            let (id, steps, full) = (own[0], own[1] as usize, own[2] & FULL != 0);
            DecodeProgress { past: past as usize, id, steps, ended, full }
        };
        (0..self.batch).map(one).collect()
    }
}
