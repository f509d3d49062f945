//! Beam search: what is looked for, and the hypotheses of a batch, which the host keeps.

use super::sampling::seen_words;
use crate::error::{Error, Result};

/// The most beams of a source.
pub const MAX_BEAMS: usize = 16;

/// The most candidates of a row.
pub const MAX_CANDIDATES: usize = 64;

/// When a source is done, beside a maximal length: `early_stopping` of the Transformers library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EarlyStopping {
    /// Once N hypotheses are complete and the best running one, ending as it is, would not be better than the worst of them.
    #[default]
    No,
    /// Once N hypotheses are complete.
    Yes,
    /// Once N hypotheses are complete and no running one can become better than the worst of them: with a length penalty above 0 the
    /// best running one is taken as if it had the greatest length.
    Never,
}

/// A beam search: at each step the N most probable beginnings of a target go on, as `generate(num_beams=N, do_sample=False)` of the
/// Transformers library has them.
///
/// A hypothesis is complete with an end token or at the greatest length, and has the score Σ log p / lengthᵅ, α the length
/// penalty (after Wu et al., arXiv 1609.08144, whose penalty is ((5 + length) / 6)ᵅ), its length that of the tokens behind the start
/// token. Of the 2 N best continuations of a source (more with more end tokens) those that are complete and among the best N join the
/// N best hypotheses, and the best N that are not complete run on.
///
/// Lengths count the start token, as the settings of published models do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BeamSearch {
    /// Beams of each source, N: 1 to [`MAX_BEAMS`]. One is greedy, and ends with its first end token.
    pub beams: usize,
    /// How many hypotheses of each source are given, the best ones: 1 to N.
    pub returned: usize,
    /// The power of the length by which scores are divided: above 0 for longer targets, below for shorter ones.
    pub length_penalty: f32,
    /// When a source is done.
    pub early_stopping: EarlyStopping,
    /// The most tokens of a target.
    pub max_length: usize,
    /// Tokens that a target has before it may end.
    pub min_length: usize,
    /// No n tokens in a row come twice in a target; 0 for any repetition.
    pub no_repeat_ngram: usize,
    /// Tokens that are never chosen, and runs of tokens whose last one is not behind the others.
    pub banned: Vec<Vec<u32>>,
    /// Whether log-probabilities are those among the tokens that are not banned.
    pub renormalized: bool,
    /// The token that every target begins with.
    pub start: u32,
    /// The tokens that end a target.
    pub ends: Vec<u32>,
    /// The first token behind the start, at a log-probability of 0.
    pub forced_first: Option<u32>,
    /// The last token of a target of the greatest length, likewise.
    pub forced_last: Option<u32>,
}

/// A target that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens behind the start token, the end token among them where it has one.
    pub ids: Vec<u32>,
    /// The sum of its tokens' log-probabilities over its length to the power of the length penalty, in nats.
    pub score: f32,
}

impl BeamSearch {
    /// The defaults of the Transformers library: one hypothesis of each source, a length penalty of 1, a greatest length of 20.
    #[must_use]
    pub fn new(beams: usize, start: u32, end: u32) -> Self {
        Self {
            beams,
            returned: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
            max_length: 20,
            min_length: 0,
            no_repeat_ngram: 0,
            banned: Vec::new(),
            renormalized: false,
            start,
            ends: vec![end],
            forced_first: None,
            forced_last: None,
        }
    }

    /// How many candidates of each row a step must give: 2 N, so that N of them go on whatever ends.
    #[must_use]
    pub fn candidates(&self) -> usize {
        self.beams.saturating_mul(self.ends.len().saturating_add(1).max(2))
    }

    /// Refuses what cannot be searched in a vocabulary.
    ///
    /// # Errors
    /// [`Error::Option`] for no beams or more than [`MAX_BEAMS`], more hypotheses than beams, no room for a token, more end tokens
    /// than candidates allow, a length penalty that is not finite, and an empty run of banned tokens; [`Error::Id`] for a token outside
    /// the vocabulary.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        if !(1..=MAX_BEAMS).contains(&self.beams) {
            return Err(Error::option("beams", format!("1 to {MAX_BEAMS}"), self.beams));
        }
        if !(1..=self.beams).contains(&self.returned) {
            return Err(Error::option("hypotheses returned", format!("1 to {}, the beams", self.beams), self.returned));
        }
        if self.max_length < 2 {
            return Err(Error::option("max_length", "2, the start token and another, or more", self.max_length));
        }
        if self.candidates() > MAX_CANDIDATES {
            let expected = format!("at most {} with {} beams", MAX_CANDIDATES / self.beams - 1, self.beams);
            return Err(Error::option("end tokens", expected, self.ends.len()));
        }
        if !self.length_penalty.is_finite() {
            return Err(Error::option("length_penalty", "a finite number", self.length_penalty));
        }
        if self.banned.iter().any(Vec::is_empty) {
            return Err(Error::option("banned tokens", "runs of one token or more", 0));
        }
        let forced = [Some(self.start), self.forced_first, self.forced_last].into_iter().flatten();
        let named: Vec<u32> = forced.chain(self.ends.iter().copied()).chain(self.banned.iter().flatten().copied()).collect();
        super::check_ids("tokens of the beam search", &named, vocabulary)
    }

    /// A length to the power of the penalty.
    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(self.length_penalty.into()) as f32
    }
}

/// A row of a beam's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeamRow {
    /// The source that it belongs to.
    pub source: usize,
    /// The row that it was in the step before: its keys and values are there.
    pub parent: usize,
    /// The token that the step embeds.
    pub id: u32,
    /// Tokens before that one.
    pub past: usize,
}

/// The hypotheses of a batch, step by step: beam n of source s is row s · N + n. An engine with a queue of its own runs the rows,
/// hands their candidates back, and goes on until all sources are done; nothing here touches a device.
#[derive(Clone, Debug)]
pub struct Beams {
    search: BeamSearch,
    vocabulary: usize,
    sources: Vec<Source>,
    /// Tokens of every running target.
    length: usize,
}

/// What runs and what is complete of one source, either with the best one in front.
#[derive(Clone, Debug)]
struct Source {
    running: Vec<Running>,
    complete: Vec<Hypothesis>,
    done: bool,
}

/// The beginning of a target.
#[derive(Clone, Debug)]
struct Running {
    /// The start token among them.
    ids: Vec<u32>,
    score: f32,
    parent: usize,
}

/// A token behind a running target: the sum of log-probabilities, the beam, the token.
type Continuation = (f32, usize, u32);

impl Beams {
    /// A batch before its first step.
    ///
    /// # Errors
    /// As [`BeamSearch::check`]; [`Error::Option`] for 2²⁰ sources and more.
    pub fn new(search: &BeamSearch, sources: usize, vocabulary: usize) -> Result<Self> {
        search.check(vocabulary)?;
        if sources >= 1 << 20 {
            return Err(Error::option("sources of a beam search", "below 2^20", sources));
        }
        let source = |s: usize| Source {
            running: vec![Running { ids: vec![search.start], score: 0.0, parent: s * search.beams }],
            complete: Vec::new(),
            done: false,
        };
        let sources = (0..sources).map(source).collect();
        Ok(Self { search: search.clone(), vocabulary, sources, length: 1 })
    }

    /// Whether all sources are done.
    #[must_use]
    pub fn done(&self) -> bool {
        self.sources.iter().all(|source| source.done)
    }

    /// The rows of the next step, N a source; `None` is one that rests.
    pub fn rows(&self) -> impl Iterator<Item = Option<BeamRow>> + '_ {
        let past = self.length - 1;
        self.sources.iter().enumerate().flat_map(move |(source, own)| {
            (0..self.search.beams).map(move |beam| {
                let running = own.running.get(beam).filter(|_| !own.done)?;
                Some(BeamRow { source, parent: running.parent, id: *running.ids.last()?, past })
            })
        })
    }

    /// Whether the banned tokens of the next step may be others than those of the step before.
    #[must_use]
    pub fn bans_change(&self) -> bool {
        let search = &self.search;
        self.length <= search.min_length.max(1)
            || search.no_repeat_ngram > 0
            || search.banned.iter().any(|run| run.len() > 1)
    }

    /// Writes which tokens are banned in the next step, a bit each: `bits` is (rows or more, V / 32 rounded up).
    ///
    /// # Errors
    /// [`Error::Shape`] for too few words.
    pub fn ban(&self, bits: &mut [u32]) -> Result<()> {
        let (search, words) = (&self.search, seen_words(self.vocabulary));
        let needed = self.sources.len() * search.beams * words;
        if bits.len() < needed {
            return Err(Error::shape("banned tokens", format!("{needed} words"), format!("{} words", bits.len())));
        }
        bits.fill(0);
        let rows = bits.chunks_exact_mut(words.max(1) * search.beams);
        for (own, source) in rows.zip(&self.sources) {
            for (beam, bits) in own.chunks_exact_mut(words.max(1)).enumerate() {
                // A row that rests may run in a later step for which nothing is written.
                let ids = source.running.get(beam).map_or(&[][..], |running| &running.ids);
                self.banned_behind(ids, |id| bits[id as usize / 32] |= 1 << (id % 32));
            }
        }
        Ok(())
    }

    /// The tokens that are banned behind these.
    fn banned_behind(&self, ids: &[u32], mut ban: impl FnMut(u32)) {
        let search = &self.search;
        // What ends a target is let through by the library, though it be named alone.
        let named = search.banned.iter().filter(|run| !search.ends.iter().any(|&end| **run == [end]));
        for (&last, before) in named.filter_map(|run| run.split_last()) {
            if before.is_empty() || (before.len() < ids.len() && ids.ends_with(before)) {
                ban(last);
            }
        }
        if let Some(before) = search.no_repeat_ngram.checked_sub(1).filter(|&before| before < ids.len()) {
            let suffix = &ids[ids.len() - before..];
            ids.windows(before + 1).filter(|run| run.starts_with(suffix)).for_each(|run| ban(run[before]));
        }
        if ids.len() < search.min_length {
            search.ends.iter().for_each(|&end| ban(end));
        }
    }

    /// The token that every target has next, where it has no choice.
    fn forced(&self) -> Option<u32> {
        let last = self.search.forced_last.filter(|_| self.length + 1 == self.search.max_length);
        last.or(self.search.forced_first.filter(|_| self.length == 1))
    }

    /// Takes the candidates of the step that [`Beams::rows`] describes, (rows, K, 2) words as
    /// [`BeamCandidates`](crate::kernels::BeamCandidates) writes them, to the next step.
    ///
    /// # Errors
    /// [`Error::Shape`] for words of other rows, or fewer candidates than [`BeamSearch::candidates`].
    pub fn advance(&mut self, words: &[u32]) -> Result<()> {
        let (beams, forced) = (self.search.beams, self.forced());
        let rows = self.sources.len() * beams;
        let count = words.len() / 2 / rows.max(1);
        if words.len() != 2 * rows * count || count < self.search.candidates() {
            let expected = format!("[{rows}, {} or more, 2]", self.search.candidates());
            return Err(Error::shape("candidates", expected, format!("{} words", words.len())));
        }
        let candidates = words.chunks_exact((2 * count * beams).max(1));
        for ((number, source), words) in self.sources.iter_mut().enumerate().zip(candidates) {
            if source.done {
                continue;
            }
            let mut all: Vec<Continuation> = Vec::with_capacity(beams * count);
            for (beam, (running, words)) in source.running.iter().zip(words.chunks_exact(2 * count)).enumerate() {
                match forced {
                    Some(id) => all.push((running.score, beam, id)),
                    None => all
                        .extend(words.chunks_exact(2).map(|pair| (running.score + f32::from_bits(pair[1]), beam, pair[0]))),
                }
            }
            all.retain(|&(score, _, id)| score.is_finite() && (id as usize) < self.vocabulary);
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            all.truncate(self.search.candidates());
            source.advance(&self.search, self.length, number * beams, &all);
        }
        self.length += 1;
        Ok(())
    }

    /// The hypotheses of every source, the best one first: as many as were asked for, fewer where so many tokens are banned that there
    /// are no more.
    #[must_use]
    pub fn into_hypotheses(self) -> Vec<Vec<Hypothesis>> {
        let returned = self.search.returned;
        let best = |mut source: Source| {
            source.complete.truncate(returned);
            source.complete
        };
        self.sources.into_iter().map(best).collect()
    }
}

impl Source {
    /// Goes on with the best continuations of targets of `length` tokens; beam 0 was row `first`.
    fn advance(&mut self, search: &BeamSearch, length: usize, first: usize, best: &[Continuation]) {
        let mut next = Vec::with_capacity(search.beams);
        for (rank, &(score, beam, id)) in best.iter().enumerate() {
            let ids = [&self.running[beam].ids[..], &[id]].concat();
            if !search.ends.contains(&id) && length + 1 < search.max_length {
                if next.len() < search.beams {
                    next.push(Running { ids, score, parent: first + beam });
                }
            } else if rank < search.beams {
                self.complete.push(Hypothesis { ids: ids[1..].to_vec(), score: score / search.penalty(length) });
            }
        }
        // Stable: of equal ones that which was there first.
        self.complete.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.complete.truncate(search.beams);
        let full = self.complete.len() == search.beams;
        let stops = search.early_stopping == EarlyStopping::Yes || search.beams == 1;
        self.done = next.is_empty() || (full && (stops || !self.may_improve(search, length, &next)));
        self.running = next;
    }

    /// Whether the best running one, of `length` tokens behind the start, is worth going on.
    fn may_improve(&self, search: &BeamSearch, length: usize, running: &[Running]) -> bool {
        let at_most = search.early_stopping == EarlyStopping::Never && search.length_penalty > 0.0;
        let length = if at_most { search.max_length - 1 } else { length };
        let best = running.first().map_or(f32::NEG_INFINITY, |best| best.score / search.penalty(length));
        self.complete.last().is_none_or(|worst| best > worst.score)
    }
}
