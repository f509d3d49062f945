//! A case of attention: options by their levels, data, the twins' view of it, and what error WGSL leaves it.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{EPS, Place, Run, TANH, assert_close, floats, pick, seeded, uniform, widen};
use tileformer::kernels::Visibility;
use tileformer::reference::{self, Attention, MaskValues, Real};
use tileformer::{AttentionOptions, BatchShape, Element, Mask, Sequence};

/// The options of attention, each with its number of levels: what the covering array pairs.
pub const FACTORS: [(&str, usize); 14] = [
    ("sequences", 6), // none, padded full, padded ragged, padded with empty ones, packed, packed with empty ones
    ("offset", 4),    // 0, positive, negative, S − T
    ("key mask", 4),  // none, (B, S), (1, S), (B, 1)
    ("mask", 10),     // none, boolean in three shapes, additive in four, relative for each head and for all
    ("causal", 2),
    ("window", 4), // none, left, right, both
    ("alibi", 2),
    ("softcap", 2),
    ("scale", 3),     // default, 1, negative
    ("heads", 4),     // 4 of 4, 4 of 2, 4 of 1, 1 of 1
    ("lengths", 4),   // T = S, T < S, T > S, T = 1
    ("head size", 4), // equal, other for values, odd, larger than a tile
    ("place", 4),
    ("batch invariant", 2),
];

/// One level of each factor.
pub type Levels = [usize; FACTORS.len()];

/// Whether two levels of two factors can meet: offsets live in sequences.
pub fn can_meet(a: (usize, usize), b: (usize, usize)) -> bool {
    let without = |x: (usize, usize), y: (usize, usize)| x == (0, 0) && y.0 == 1 && y.1 != 0;
    !without(a, b) && !without(b, a)
}

/// Levels that can stand together, drawn at random.
pub fn random_levels(rng: &mut StdRng) -> Levels {
    let mut levels = FACTORS.map(|(_, count)| rng.random_range(0..count));
    if levels[0] == 0 {
        levels[1] = 0;
    }
    levels
}

/// Levels in which every two levels of two factors that can meet do so: greedy, from seeded random candidates.
pub fn covering_array() -> Vec<Levels> {
    let mut rng = seeded("covering array", 0);
    let mut missing = BTreeSet::new();
    for (a, (_, levels_a)) in FACTORS.iter().enumerate() {
        for (b, (_, levels_b)) in FACTORS.iter().enumerate().skip(a + 1) {
            let pairs = (0..*levels_a).flat_map(|i| (0..*levels_b).map(move |j| ((a, i), (b, j))));
            missing.extend(pairs.filter(|&(x, y)| can_meet(x, y)));
        }
    }
    let pairs = |levels: &Levels| {
        let levels = *levels;
        (0..levels.len()).flat_map(move |a| (a + 1..levels.len()).map(move |b| ((a, levels[a]), (b, levels[b]))))
    };
    let mut rows = Vec::new();
    while !missing.is_empty() {
        let news = |levels: &Levels| pairs(levels).filter(|p| missing.contains(p)).count();
        let candidates: Vec<Levels> = (0..60).map(|_| random_levels(&mut rng)).collect();
        let Some(best) = candidates.into_iter().max_by_key(|c| news(c)) else { break };
        if news(&best) > 0 {
            missing.retain(|pair| !pairs(&best).any(|p| p == *pair));
            rows.push(best);
        }
    }
    rows
}

#[derive(Clone, Debug)]
pub enum MaskData {
    Boolean(Vec<u32>),
    Additive(Vec<f32>),
    /// Of this reach; sizes (1, 1, heads, distances).
    Relative(u32, Vec<f32>),
}

impl MaskData {
    /// Every key from every query.
    pub fn hide_all(&mut self) {
        match self {
            Self::Boolean(values) => values.fill(0),
            Self::Additive(values) | Self::Relative(_, values) => values.fill(f32::NEG_INFINITY),
        }
    }
}

/// The level of the mask that hides in a way of this name; 0 for other ways.
pub fn mask_level(way: &str) -> usize {
    ["boolean", "additive", "relative"].iter().position(|kind| *kind == way).map_or(0, |n| [1, 4, 8][n])
}

/// Sizes, options and all tensors of one attention.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: BatchShape,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_size: usize,
    pub value_head_size: usize,
    pub options: AttentionOptions,
    pub sequences: Vec<Sequence>,
    /// Whether `sequences` are bound; where not, they are those that the kernels assume.
    pub bound: bool,
    pub key_mask: Option<([usize; 2], Vec<u32>)>,
    pub mask: Option<([usize; 4], MaskData)>,
    pub place: Place,
}

/// Additive masks hide with this where they cannot say −∞: it is added like any number.
pub const SENTINEL: f32 = -3.4e38;

fn sequences(rng: &mut StdRng, level: usize, offset: usize, [batch, t, s]: [usize; 3]) -> Vec<Sequence> {
    let (mut q_at, mut k_at) = (0, 0);
    let mut all = Vec::new();
    for b in 0..batch {
        let (ragged, empty, packed) = (level > 1, (level == 3 || level == 5) && b % 2 == 0, level > 3);
        let len = |rng: &mut StdRng, most: usize| if ragged { rng.random_range(1..=most) } else { most };
        let (mut q_len, mut k_len) = (len(rng, t), len(rng, s));
        if empty {
            (q_len, k_len) = pick(rng, &[(q_len, 0), (0, k_len), (0, 0)]);
        }
        let offset = match offset {
            0 => 0,
            1 => rng.random_range(1..s as i32 + 2),
            2 => -rng.random_range(1..t as i32 + 2),
            _ => k_len as i32 - q_len as i32,
        };
        let (q_start, k_start) = if packed { (q_at, k_at) } else { (b * t, b * s) };
        let words = [q_start, q_len, k_start, k_len].map(|n| n as u32);
        all.push(Sequence {
            q_start: words[0],
            q_len: words[1],
            k_start: words[2],
            k_len: words[3],
            offset,
            reserved: [0; 3],
        });
        // Packed sequences leave a row that belongs to nobody now and then.
        (q_at, k_at) = (q_at + q_len + b % 2, k_at + k_len + b % 2);
    }
    all
}

impl Case {
    /// A case without any option.
    pub fn plain([batch, t, s]: [usize; 3], [n_heads, n_kv_heads]: [usize; 2], sizes: [usize; 2], place: Place) -> Self {
        let full = Sequence { q_len: t as u32, k_len: s as u32, ..Sequence::default() };
        let at = |b: usize| Sequence { q_start: (b * t) as u32, k_start: (b * s) as u32, ..full };
        Self {
            shape: BatchShape::cross(batch, t, s),
            n_heads,
            n_kv_heads,
            head_size: sizes[0],
            value_head_size: sizes[1],
            options: AttentionOptions::default(),
            sequences: (0..batch).map(at).collect(),
            bound: false,
            key_mask: None,
            mask: None,
            place,
        }
    }

    /// The case of these levels, with lengths of about `size`.
    pub fn of(levels: &Levels, size: usize, rng: &mut StdRng) -> Self {
        let [seqs, offset, key_mask, mask, causal, window, alibi, softcap, scale, heads, lengths, sizes, place, _] = *levels;
        let other = rng.random_range(size..=2 * size);
        let (t, s) = [(size, size), (size, other + 1), (other + 1, size), (1, size)][lengths];
        let heads = [[4, 4], [4, 2], [4, 1], [1, 1]][heads];
        let sizes = [[16, 16], [16, 36], [13, 7], [68, 40]][sizes];
        let batch = rng.random_range(2..=3);
        let mut case = Self::plain([batch, t, s], heads, sizes, Place::ALL[place]);
        if seqs > 0 {
            case.bound = true;
            case.sequences = sequences(rng, seqs, offset, [batch, t, s]);
            let end = BatchShape::of(&case.sequences);
            let rows = |found: usize, least: usize| found.max(least) + 1;
            case.shape = BatchShape { q_rows: rows(end.q_rows, t), k_rows: rows(end.k_rows, s), ..case.shape };
        }
        case.options = AttentionOptions {
            scale: [None, Some(1.0), Some(-0.7)][scale],
            softcap: (softcap == 1).then_some(1.5),
            alibi: if alibi == 1 { uniform(rng, heads[0], -0.1, 0.3) } else { vec![] },
            causal: causal == 1,
            window_left: (window & 1 == 1).then(|| rng.random_range(0..s as u32)),
            window_right: (window & 2 == 2).then(|| rng.random_range(0..s as u32)),
            key_mask: key_mask > 0,
            mask: None,
        };
        case.key_mask = (key_mask > 0).then(|| {
            let sizes = [[batch, s], [1, s], [batch, 1]][key_mask - 1];
            (sizes, (0..sizes[0] * sizes[1]).map(|_| pick(rng, &[0, 1, 1, 7, 1 << 31])).collect())
        });
        case.set_mask(mask, rng);
        case
    }

    fn set_mask(&mut self, level: usize, rng: &mut StdRng) {
        let [batch, n_heads, t, s] = self.score_sizes();
        let reach = pick(rng, &[0, 1, 3, s as u32 / 2, 2 * s as u32]);
        let sizes = match level {
            0 => return,
            1 | 4 => [batch, n_heads, t, s],
            2 | 5 => [1, 1, t, s],
            3 | 6 => [batch, 1, 1, s],
            7 => [1, n_heads, t, 1],
            8 => [1, 1, n_heads, 2 * reach as usize + 1],
            _ => [1, 1, 1, 2 * reach as usize + 1],
        };
        let len = sizes.iter().product();
        let mut values = uniform(rng, len, -2.0, 2.0);
        for value in &mut values {
            *value = pick(rng, &[*value, *value, *value, *value, *value, f32::NEG_INFINITY, SENTINEL, 0.0]);
        }
        let (kind, data) = match level {
            1..=3 => {
                let values = (0..len).map(|_| pick(rng, &[0, 1, 1, 2, u32::MAX])).collect();
                (Mask::Boolean, MaskData::Boolean(values))
            }
            4..=7 => (Mask::Additive, MaskData::Additive(values)),
            _ => (Mask::Relative { reach }, MaskData::Relative(reach, values)),
        };
        self.options.mask = Some(kind);
        self.mask = Some((sizes, data));
    }

    /// (B, NH, T, S)
    pub fn score_sizes(&self) -> [usize; 4] {
        [self.shape.sequences, self.n_heads, self.shape.longest_q, self.shape.longest_k]
    }

    /// Names sequences, key mask and mask in a program, as the kernels want them.
    pub fn visibility(&self, run: &mut Run) -> Visibility {
        let batch = self.shape.sequences;
        Visibility {
            options: self.options.clone(),
            sequences: self
                .bound
                .then(|| run.words("sequences", &[batch, 8], bytes_of_sequences(&self.sequences).as_slice())),
            key_mask: self.key_mask.as_ref().map(|(sizes, values)| run.words("key_mask", sizes, values)),
            mask: self.mask.as_ref().map(|(sizes, data)| match data {
                MaskData::Boolean(values) => run.words("mask", sizes, values),
                MaskData::Additive(values) => run.input_as("mask", Element::F32, sizes, values),
                MaskData::Relative(_, values) => run.input_as("mask", Element::F32, &sizes[2..], values),
            }),
        }
    }

    /// Calls `f` with the case as the twins see it.
    pub fn twin<T: Real, R>(&self, f: impl FnOnce(&Attention<'_, T>) -> R) -> R {
        let [batch, .., s] = self.score_sizes();
        let key_mask = self.key_mask.as_ref().map(|(sizes, values)| {
            let at = |n: usize| if sizes[1] == 1 { n / s } else { n % values.len() };
            (0..batch * s).map(|n| values[at(n)]).collect::<Vec<_>>()
        });
        let additive: Vec<T> = match &self.mask {
            Some((_, MaskData::Additive(values) | MaskData::Relative(_, values))) => {
                values.iter().map(|&v| T::of(v)).collect()
            }
            _ => vec![],
        };
        let mask = self.mask.as_ref().map(|(sizes, data)| match data {
            MaskData::Boolean(values) => MaskValues::Boolean { sizes: *sizes, values },
            MaskData::Additive(_) => MaskValues::Additive { sizes: *sizes, values: &additive },
            MaskData::Relative(reach, _) => MaskValues::Relative { reach: *reach, values: &additive },
        });
        f(&Attention {
            shape: self.shape,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_size: self.head_size,
            value_head_size: self.value_head_size,
            options: &self.options,
            sequences: &self.sequences,
            key_mask: key_mask.as_deref(),
            mask,
        })
    }

    /// For each element of (B, NH, T, S) whether the query sees the key.
    pub fn visible(&self) -> Vec<bool> {
        self.twin::<f64, _>(|att| each(self.score_sizes()).map(|[b, h, i, j]| reference::visible(att, b, h, i, j)).collect())
    }

    /// Whether query row `row` belongs to a sequence.
    pub fn owns_query(&self, row: usize) -> bool {
        self.sequences.iter().any(|s| (s.q_start..s.q_start + s.q_len).contains(&(row as u32)))
    }

    /// Query rows, with NaN and infinities where no sequence has them.
    pub fn queries(&self, rng: &mut StdRng) -> Vec<f32> {
        let width = self.n_heads * self.head_size;
        let mut q = floats(rng, self.shape.q_rows * width);
        for row in (0..self.shape.q_rows).filter(|&row| !self.owns_query(row)) {
            q[row * width..][..width].fill(f32::NAN);
        }
        q
    }

    /// Key or value rows of heads of `size`, with NaN and infinities wherever length or key mask hide them.
    pub fn keys(&self, rng: &mut StdRng, size: usize) -> Vec<f32> {
        let width = self.n_kv_heads * size;
        let mut seen = vec![false; self.shape.k_rows];
        let keys_only = Self {
            options: AttentionOptions { key_mask: self.options.key_mask, ..AttentionOptions::default() },
            mask: None,
            ..self.clone()
        };
        keys_only.twin::<f64, _>(|att| {
            for (b, s) in self.sequences.iter().enumerate() {
                // Seen by any query, or it would be if there were one.
                let one = [Sequence { q_len: 1, ..*s }];
                let one = Attention { sequences: &one, ..*att };
                let offset = b * att.shape.longest_k;
                let one = Attention { key_mask: att.key_mask.map(|m| &m[offset..]), ..one };
                for j in (0..s.k_len as usize).filter(|&j| reference::visible(&one, 0, 0, 0, j)) {
                    seen[s.k_start as usize + j] = true;
                }
            }
        });
        let mut k = floats(rng, self.shape.k_rows * width);
        for row in (0..self.shape.k_rows).filter(|&row| !seen[row]) {
            k[row * width..][..width].fill(pick(rng, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]));
        }
        k
    }

    /// What each finished score may be off by, given what its product may be: 2⁻²² of the terms, and tanh's allowance in softcap.
    /// Sentinels stay out: whatever they are added to vanishes in them.
    pub fn score_errors(&self, product: impl Fn(usize, usize, usize, usize) -> f64) -> Vec<f64> {
        let visible = self.visible();
        let each = each(self.score_sizes()).zip(visible);
        each.map(|([b, h, i, j], visible)| {
            if !visible {
                return 0.0;
            }
            let ahead = j as f64 - i as f64 - f64::from(self.sequences[b].offset);
            let slope = self.options.alibi.get(h).map_or(0.0, |s| f64::from(s.abs()));
            let added = match &self.mask {
                Some((sizes, MaskData::Additive(values))) => f64::from(values[broadcast(*sizes, [b, h, i, j])].abs()),
                Some((sizes, MaskData::Relative(reach, values))) => {
                    let column = f64::from(*reach) + ahead.clamp(-f64::from(*reach), f64::from(*reach));
                    f64::from(values[broadcast(*sizes, [0, 0, h, column as usize])].abs())
                }
                _ => 0.0,
            };
            let added = if added > 1e30 { 0.0 } else { added };
            let capped = self.options.softcap.map_or(0.0, |cap| f64::from(cap) * TANH);
            product(b, h, i, j) + capped + 2.0 * EPS * (slope * ahead.abs() + added)
        })
        .collect()
    }

    /// What each product of q and k may be off by, once scaled.
    pub fn dot_errors(&self, q: &[f32], k: &[f32]) -> impl Fn(usize, usize, usize, usize) -> f64 {
        let (d, group) = (self.head_size, self.n_heads / self.n_kv_heads);
        let scale = f64::from(self.options.scale_for(d).abs());
        let (q, k, case) = (widen(q), widen(k), self.clone());
        move |b, h, i, j| {
            let s = case.sequences[b];
            let q = &q[((s.q_start as usize + i) * case.n_heads + h) * d..][..d];
            let k = &k[((s.k_start as usize + j) * case.n_kv_heads + h / group) * d..][..d];
            2.0 * EPS * scale * q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>()
        }
    }
}

/// Queries, keys and values of a case.
pub struct Data {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Data {
    pub fn of(case: &Case, name: &str, number: u64) -> Self {
        let mut rng = seeded(name, number);
        let q = case.queries(&mut rng);
        let k = case.keys(&mut rng, case.head_size);
        Self { q, k, v: case.keys(&mut rng, case.value_head_size) }
    }
}

/// Scores that a sentinel of −3.4e38 has swallowed are compared with each other, the others by the rule.
pub fn assert_scores(name: &str, found: &[f32], twin32: &[f32], twin64: &[f64], floor: f64) {
    let (mut f, mut t32, mut t64) = (found.to_vec(), twin32.to_vec(), twin64.to_vec());
    for i in (0..f.len()).filter(|&i| twin64[i].is_finite() && twin64[i].abs() > 1e30) {
        let error = (f64::from(f[i]) / twin64[i] - 1.0).abs();
        assert!(error <= 1e-6, "{name}[{i}]: {} where {} is right", f[i], twin64[i]);
        (f[i], t32[i], t64[i]) = (0.0, 0.0, 0.0);
    }
    assert_close(name, &f, &t32, &t64, floor);
}

/// What each probability may be off by, given what its score may: a relative error for itself and for the row's sum. exp may be
/// wrong by 3 + 2|x| ULP at x = the distance to the row's maximum, which its probability tells.
pub fn softmax_errors(probs: &[f64], scores: &[f64], columns: usize) -> Vec<f64> {
    let mut errors = Vec::with_capacity(probs.len());
    for (p, e) in probs.chunks_exact(columns).zip(scores.chunks_exact(columns)) {
        let top = p.iter().fold(0.0f64, |m, &p| m.max(p));
        let relative = |j: usize| if p[j] > 0.0 { e[j] + (3.0 + 2.0 * (top.ln() - p[j].ln())) * EPS } else { 0.0 };
        let of_sum: f64 = (0..columns).map(|j| p[j] * relative(j)).sum();
        errors.extend((0..columns).map(|j| p[j] * (relative(j) + of_sum + 4.5 * EPS)));
    }
    errors
}

/// All (b, h, i, j) of (B, NH, T, S) in row-major order.
pub fn each([batch, n_heads, t, s]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..batch * n_heads * t * s).map(move |n| [n / s / t / n_heads, n / s / t % n_heads, n / s % t, n % s])
}

fn broadcast(sizes: [usize; 4], at: [usize; 4]) -> usize {
    sizes.iter().zip(at).fold(0, |index, (&size, at)| index * size + if size == 1 { 0 } else { at })
}

fn bytes_of_sequences(sequences: &[Sequence]) -> Vec<u32> {
    let words = |s: &Sequence| [s.q_start, s.q_len, s.k_start, s.k_len, s.offset as u32, 0, 0, 0];
    sequences.iter().flat_map(words).collect()
}
