//! What makes one row of many.

/// Which rows of a sequence make the one that stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// The first: BERT's `[CLS]` (Devlin et al., arXiv 1810.04805).
    First,
    /// The mean of all (Reimers and Gurevych, arXiv 1908.10084).
    #[default]
    Mean,
}
