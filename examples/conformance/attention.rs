//! Attention over heads that are projected already, kernel by kernel; masks and sequences for all attentions of the runner.

use tileformer::kernels::{AttentionScores, AttentionValues, MaskedSoftmax, Visibility};
use tileformer::{AttentionOptions, BatchShape, Layout, Mask, Sequences};

use super::gpu::{Feeds, Session};
use super::host::Array;
use super::judge::{Outcome, failed, unsupported};
use super::kernels::{input, output, wide_output};

/// A mask over (B, NH, T, S), of which any dimension may have size 1.
#[derive(Clone, Debug)]
pub(crate) enum MaskValues {
    /// True = attended.
    Boolean(Array<bool>),
    Additive(Array<f32>),
}

/// Which keys a query sees: the crate's options with the values that they speak of.
#[derive(Clone, Debug)]
pub(crate) struct Visible {
    /// `key_mask` and `mask` are set from what there is below.
    options: AttentionOptions,
    pub(crate) sequences: Sequences,
    key_mask: Option<Array<bool>>,
    mask: Option<MaskValues>,
}

impl Visible {
    /// All T queries see all S keys, as far as the options say.
    pub(crate) fn all([batch, queries, keys]: [usize; 3], options: AttentionOptions) -> Outcome<Self> {
        let sequences = Sequences::cross(batch, queries, &vec![keys; batch], keys)?;
        Ok(Self { options, sequences, key_mask: None, mask: None })
    }

    pub(crate) fn with_sequences(self, sequences: Sequences) -> Self {
        Self { sequences, ..self }
    }

    /// With a mask (B, NH, T, S).
    pub(crate) fn with_mask(mut self, mask: Option<MaskValues>) -> Self {
        self.options.mask = mask.as_ref().map(|mask| match mask {
            MaskValues::Boolean(_) => Mask::Boolean,
            MaskValues::Additive(_) => Mask::Additive,
        });
        Self { mask, ..self }
    }

    /// With a mask (B, S), true = attended.
    pub(crate) fn with_key_mask(mut self, key_mask: Option<Array<bool>>) -> Self {
        self.options.key_mask = key_mask.is_some();
        Self { key_mask, ..self }
    }

    pub(crate) fn options(&self) -> AttentionOptions {
        self.options.clone()
    }

    pub(crate) fn mask_layout(&self) -> Outcome<Option<Layout>> {
        let sizes = match &self.mask {
            None => return Ok(None),
            Some(MaskValues::Boolean(mask)) => mask.sizes(),
            Some(MaskValues::Additive(mask)) => mask.sizes(),
        };
        Ok(Some(Layout::contiguous(sizes)?))
    }

    /// Whether masks and causal order hide every key from some query of (B, NH, T, S).
    pub(crate) fn hides_all(&self, sizes: [usize; 4]) -> Outcome<bool> {
        let [batch, _, queries, keys] = sizes;
        let attended = match &self.mask {
            None => Array::new(&[1, 1, 1, 1], vec![true])?,
            Some(MaskValues::Boolean(mask)) => mask.clone(),
            Some(MaskValues::Additive(mask)) => mask.map(|added| added != f32::NEG_INFINITY),
        };
        let attended = attended.broadcast(&sizes)?;
        let by_key = match &self.key_mask {
            None => Array::new(&[1, 1, 1, 1], vec![true])?,
            Some(mask) => mask.clone().reshape(&[batch, 1, 1, keys])?,
        };
        let by_key = by_key.broadcast(&sizes)?;
        let mut rows = std::iter::zip(attended.values().chunks(keys), by_key.values().chunks(keys)).enumerate();
        Ok(rows.any(|(row, (attended, by_key))| {
            let last = if self.options.causal { row % queries } else { keys - 1 };
            !std::iter::zip(attended, by_key).take(last + 1).any(|(&a, &b)| a && b)
        }))
    }

    /// Provides `sequences`, `key_mask` and `mask` under names that begin with `prefix`.
    pub(crate) fn feed<'a>(&'a self, feeds: &mut Feeds<'a>, prefix: &str) {
        let words = |mask: &Array<bool>| mask.values().iter().map(|&v| u32::from(v)).collect();
        feeds.u32(&format!("{prefix}sequences"), self.sequences.words().to_vec());
        if let Some(mask) = &self.key_mask {
            feeds.u32(&format!("{prefix}key_mask"), words(mask));
        }
        match &self.mask {
            Some(MaskValues::Boolean(mask)) => feeds.u32(&format!("{prefix}mask"), words(mask)),
            Some(MaskValues::Additive(mask)) => feeds.f32(&format!("{prefix}mask"), mask),
            None => feeds,
        };
    }
}

/// Projected heads.
pub(crate) struct Heads {
    /// (B, T, NH, HS)
    pub(crate) q: Array<f32>,
    /// (B, S, NH_kv, HS)
    pub(crate) k: Array<f32>,
    /// (B, S, NH_kv, HS_v)
    pub(crate) v: Array<f32>,
}

/// What attention gives.
pub(crate) struct Attended {
    /// (B, NH, T, S), −∞ where a key is hidden
    pub(crate) scores: Array<f32>,
    /// (B, NH, T, S)
    pub(crate) weights: Array<f32>,
    /// (B, T, NH, HS_v)
    pub(crate) y: Array<f32>,
}

/// The sizes of heads.
#[derive(Clone, Copy)]
struct Sizes {
    shape: BatchShape,
    n_heads: usize,
    n_kv_heads: usize,
    head_size: usize,
    value_head_size: usize,
}

impl Sizes {
    fn scores(&self) -> [usize; 4] {
        [self.shape.sequences, self.n_heads, self.shape.longest_q, self.shape.longest_k]
    }
}

impl Heads {
    /// Refuses heads that do not fit each other.
    pub(crate) fn check(&self) -> Outcome<()> {
        self.sizes().map(drop)
    }

    fn sizes(&self) -> Outcome<Sizes> {
        let [batch, longest_q, n_heads, head_size] = self.q.dims("Q")?;
        let [_, longest_k, n_kv_heads, _] = self.k.dims("K")?;
        let [.., value_head_size] = self.v.dims::<4>("V")?;
        let agree = |what: &str, array: &Array<f32>, sizes: [usize; 4]| match array.sizes() == sizes {
            true => Ok(()),
            false => failed(format!("{what}: expected {sizes:?}, found {:?}", array.sizes())),
        };
        agree("K as (B, S, heads, head size)", &self.k, [batch, longest_k, n_kv_heads, head_size])?;
        agree("V as (B, S, heads, head size)", &self.v, [batch, longest_k, n_kv_heads, value_head_size])?;
        if [batch, longest_q, longest_k, n_heads, n_kv_heads, head_size, value_head_size].contains(&0) {
            return unsupported("attention over a dimension of size 0");
        }
        let shape = BatchShape::cross(batch, longest_q, longest_k);
        Ok(Sizes { shape, n_heads, n_kv_heads, head_size, value_head_size })
    }

    /// Scores, attention weights and the weighted values.
    pub(crate) async fn attend(&self, session: &Session, visible: &Visible) -> Outcome<Attended> {
        let sizes = self.sizes()?;
        let BatchShape { sequences: batch, longest_q, q_rows, k_rows, .. } = sizes.shape;
        let options = visible.options();
        let mut b = session.builder("attention")?;
        let group = b.batch("", &options, sizes.n_heads, sizes.shape, visible.mask_layout()?)?;
        let visibility =
            Visibility { options, sequences: Some(group.sequences), key_mask: group.key_mask, mask: group.mask };
        let q = input(&mut b, "q", &[q_rows, sizes.n_heads, sizes.head_size])?;
        let k = input(&mut b, "k", &[k_rows, sizes.n_kv_heads, sizes.head_size])?;
        let v = input(&mut b, "v", &[k_rows, sizes.n_kv_heads, sizes.value_head_size])?;
        let scores = wide_output(&mut b, "scores", &sizes.scores())?;
        let probs = wide_output(&mut b, "weights", &sizes.scores())?;
        let out = output(&mut b, "y", &[q_rows, sizes.n_heads, sizes.value_head_size])?;
        b.attention_scores("scores", &AttentionScores { q, k, visibility: visibility.clone(), scores })?;
        let plain = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
        b.masked_softmax("softmax", &MaskedSoftmax { x: scores, visibility: plain, y: probs })?;
        b.attention_values("values", &AttentionValues { probs, v, visibility, out })?;

        let mut feeds = Feeds::new();
        feeds.f32("q", &self.q).f32("k", &self.k).f32("v", &self.v);
        visible.feed(&mut feeds, "");
        let written = session.run(&b.finish()?, &feeds).await?;
        let y = written.get("y")?.reshape(&[batch, longest_q, sizes.n_heads, sizes.value_head_size])?;
        Ok(Attended { scores: written.get("scores")?, weights: written.get("weights")?, y })
    }

    /// The scores of all keys before masks: only scale and softcap of the options count -> (B, NH, T, S)
    pub(crate) async fn raw_scores(&self, session: &Session, options: &AttentionOptions) -> Outcome<Array<f32>> {
        let sizes = self.sizes()?;
        let plain = AttentionOptions { scale: options.scale, softcap: options.softcap, ..AttentionOptions::default() };
        let mut b = session.builder("scores")?;
        let q = input(&mut b, "q", &[sizes.shape.q_rows, sizes.n_heads, sizes.head_size])?;
        let k = input(&mut b, "k", &[sizes.shape.k_rows, sizes.n_kv_heads, sizes.head_size])?;
        let scores = wide_output(&mut b, "scores", &sizes.scores())?;
        b.attention_scores("scores", &AttentionScores { q, k, visibility: Visibility::new(plain), scores })?;
        session.run(&b.finish()?, Feeds::new().f32("q", &self.q).f32("k", &self.k)).await?.get("scores")
    }
}
