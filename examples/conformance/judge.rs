//! What came of a case: the rule by which tensors are compared, and the verdict.

use super::case::{Case, Value};
use super::host::Array;

/// Why a case gave no outputs to compare.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stop {
    /// The crate does not do this.
    Unsupported(String),
    /// The case is malformed, or the crate refused it.
    Failed(String),
}

/// A result that ends the case otherwise.
pub(crate) type Outcome<T> = Result<T, Stop>;

/// Ends the case as failed.
pub(crate) fn failed<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(reason.into()))
}

/// Ends the case as unsupported.
pub(crate) fn unsupported<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Stop::Unsupported(reason.into()))
}

impl From<tileformer::Error> for Stop {
    fn from(error: tileformer::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What the GPU made, by the names of the expected outputs.
pub(crate) type Results = Vec<(String, Array<f32>)>;

/// What came of a case.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Every output is within its allowance; the largest share of it that an element used.
    Passed(Deviation),
    Failed(String),
    Unsupported(String),
}

impl From<Stop> for Verdict {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Unsupported(reason) => Self::Unsupported(reason),
            Stop::Failed(reason) => Self::Failed(reason),
        }
    }
}

/// How far an element is from what was expected, and how far it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Deviation {
    pub(crate) error: f64,
    pub(crate) allowance: f64,
}

impl Deviation {
    /// NaN is never within.
    fn is_within(self) -> bool {
        self.error <= self.allowance
    }

    /// The share of the allowance that is used.
    pub(crate) fn share(self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.allowance }
    }
}

/// How two tensors are compared: an element may be off by atol + rtol · |expected|, where an atol can scale with the largest
/// |expected| of the tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    rtol: f64,
    /// Times the largest |expected|.
    scaled_atol: f64,
    /// The file's own rtol and atol, an alternative where it allows more.
    own: Option<(f64, f64)>,
}

impl Rule {
    /// 1e-4 and 2e-5 for f32, or the file's own numbers where those are looser; 1e-2 with f16 inputs, whatever the file says.
    pub(crate) fn of(case: &Case) -> Outcome<Self> {
        if case.is_f16() {
            return Ok(Self { rtol: 1e-2, scaled_atol: 1e-2, own: None });
        }
        let own = match (case.number("rtol")?, case.number("atol")?) {
            (None, None) => None,
            (rtol, atol) => Some((rtol.unwrap_or(0.0), atol.unwrap_or(0.0))),
        };
        Ok(Self { rtol: 1e-4, scaled_atol: 2e-5, own })
    }

    /// One element. Infinities must be equal, and NaN belongs where it is expected.
    fn deviation(&self, found: f32, expected: f32, largest: f64) -> Deviation {
        if found == expected || (found.is_nan() && expected.is_nan()) {
            return Deviation::default();
        }
        let (found, expected) = (f64::from(found), f64::from(expected));
        if !expected.is_finite() || !found.is_finite() {
            return Deviation { error: f64::NAN, allowance: 0.0 };
        }
        let common = self.scaled_atol * largest + self.rtol * expected.abs();
        let own = self.own.map_or(0.0, |(rtol, atol)| atol + rtol * expected.abs());
        Deviation { error: (found - expected).abs(), allowance: common.max(own) }
    }

    /// The worst element of a tensor, or where and why it is not the expected one.
    pub(crate) fn compare(&self, name: &str, found: &Array<f32>, expected: &Array<f32>) -> Outcome<Deviation> {
        if !same_sizes(found.sizes(), expected.sizes()) {
            return failed(format!("{name}: expected {:?}, found {:?}", expected.sizes(), found.sizes()));
        }
        let finite = expected.values().iter().map(|v| f64::from(v.abs())).filter(|v| v.is_finite());
        let largest = finite.fold(0.0, f64::max);
        let mut worst = Deviation::default();
        for (i, (&a, &b)) in found.values().iter().zip(expected.values()).enumerate() {
            let deviation = self.deviation(a, b, largest);
            if !deviation.is_within() {
                let Deviation { error, allowance } = deviation;
                let place = position(i, expected.sizes());
                return failed(format!(
                    "{name}{place:?}: expected {b}, found {a}: error {error:.3e} of allowance {allowance:.3e}"
                ));
            }
            if deviation.share() > worst.share() {
                worst = deviation;
            }
        }
        Ok(worst)
    }
}

/// Compares every expected output of a case.
pub(crate) fn judge(case: &Case, results: &Results) -> Outcome<Deviation> {
    let rule = Rule::of(case)?;
    let mut worst: Option<Deviation> = None;
    for (name, expected) in case.outputs() {
        let name = format!("out.{name}");
        let Some((_, found)) = results.iter().find(|(other, _)| *other == name["out.".len()..]) else {
            return failed(format!("{name}: not computed"));
        };
        let deviation = match expected {
            Value::Int(ids) => exactly(&name, found, ids)?,
            other => rule.compare(&name, found, other.floats(&name)?)?,
        };
        worst = worst.filter(|w| w.share() >= deviation.share()).or(Some(deviation));
    }
    worst.map_or_else(|| failed("no expected output in the file"), Ok)
}

/// Ids, which are right or wrong.
fn exactly(name: &str, found: &Array<f32>, expected: &Array<i64>) -> Outcome<Deviation> {
    if !same_sizes(found.sizes(), expected.sizes()) {
        return failed(format!("{name}: expected {:?}, found {:?}", expected.sizes(), found.sizes()));
    }
    let wrong = found.values().iter().zip(expected.values()).position(|(&a, &b)| f64::from(a) != b as f64);
    match wrong {
        None => Ok(Deviation::default()),
        Some(i) => {
            let (place, a, b) = (position(i, expected.sizes()), found.values()[i], expected.values()[i]);
            failed(format!("{name}{place:?}: expected {b}, found {a}"))
        }
    }
}

/// Whether sizes agree but for ones: makers of cases store a scalar as one element of one dimension.
fn same_sizes(a: &[usize], b: &[usize]) -> bool {
    let larger = |sizes: &[usize]| sizes.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
    larger(a) == larger(b)
}

/// The index of element `n` in each dimension.
fn position(mut n: usize, sizes: &[usize]) -> Vec<usize> {
    let mut place = vec![0; sizes.len()];
    for (at, &size) in place.iter_mut().zip(sizes).rev() {
        *at = n % size;
        n /= size;
    }
    place
}
