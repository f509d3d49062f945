//! What the device can do at most: bytes by a large copy, FLOPs by its maker's figures, dispatches by empty ones.

use tileformer::convenience::Gpu;
use tileformer::{Element, Result};

use crate::clock::Clock;
use crate::probes::Probes;
use crate::task::Work;

/// Peaks of known devices, dense and without sparsity: a part of the adapter's name, TFLOP/s in f32, TFLOP/s of matrix units with
/// f16 operands and f32 sums, and where the figures are from. The first match wins.
const KNOWN: [(&str, f64, f64, &str); 7] = [
    ("H100 PCIe", 51.2, 756.0, "NVIDIA H100 Tensor Core GPU Architecture, table of H100 PCIe"),
    ("H100 NVL", 60.0, 835.5, "NVIDIA H100 datasheet, H100 NVL; f16 without sparsity is half the figure given"),
    ("H100", 66.9, 989.4, "NVIDIA H100 Tensor Core GPU Architecture, table of H100 SXM5"),
    ("H200", 66.9, 989.4, "NVIDIA H200 datasheet; the compute of H100 SXM5"),
    ("A100", 19.5, 312.0, "NVIDIA A100 datasheet"),
    ("RTX 4090", 82.6, 165.2, "NVIDIA Ada GPU Architecture, table of RTX 4090"),
    ("RTX 3090", 35.6, 71.2, "NVIDIA GA102 GPU Architecture, table of RTX 3090"),
];

/// The device's peaks in FLOP/s, where they are known.
pub(crate) struct Peaks {
    f32: Option<f64>,
    f16: Option<f64>,
    source: String,
}

impl Peaks {
    /// From the caller, who goes first, or from the table.
    pub(crate) fn of(adapter: &str, f32: Option<f64>, f16: Option<f64>) -> Self {
        let known = KNOWN.iter().find(|(name, ..)| adapter.contains(name));
        let of = |given: Option<f64>, known: Option<f64>| given.or(known).map(|tera| tera * 1e12);
        let source = match known {
            _ if f32.is_some() || f16.is_some() => "given on the command line",
            Some((.., source)) => source,
            None => "no known device: give --peak-f32 and --peak-f16",
        };
        let (known_f32, known_f16) = known.map(|(_, f32, f16, _)| (*f32, *f16)).unzip();
        Self { f32: of(f32, known_f32), f16: of(f16, known_f16), source: source.to_owned() }
    }

    fn of_element(&self, element: Element) -> Option<f64> {
        if element == Element::F32 { self.f32 } else { self.f16 }
    }
}

/// What the device can do at most.
pub(crate) struct Ceiling {
    pub(crate) probes: Probes,
    peaks: Peaks,
}

impl Ceiling {
    /// Measures what can be measured.
    ///
    /// # Errors
    /// As [`Probes::measure`].
    pub(crate) fn measure(gpu: &Gpu, clock: &Clock<'_>, peaks: Peaks) -> Result<Self> {
        Ok(Self { probes: Probes::measure(gpu, clock)?, peaks })
    }

    /// The share of the ceiling that `work` in so many seconds reaches, 1 at most, where the ceiling is known.
    pub(crate) fn share(&self, work: Work, element: Element, seconds: f64) -> Option<f64> {
        match work {
            Work::Bytes(bytes) => Some(bytes as f64 / seconds / self.probes.copy),
            Work::Flops(flops) => self.peaks.of_element(element).map(|peak| flops as f64 / seconds / peak),
        }
    }

    /// The ceilings in words.
    pub(crate) fn describe(&self) -> String {
        let Probes { copy, copy_by: by, dispatch } = self.probes;
        let (copy, dispatch) = (copy * 1e-9, dispatch * 1e6);
        format!("ceilings: {copy:.1} GB/s by {by}; {}\nan empty dispatch behind another: {dispatch:.2} µs", self.peaks())
    }

    /// The device's peaks in words.
    pub(crate) fn peaks(&self) -> String {
        let tera = |peak: Option<f64>| peak.map_or("unknown".into(), |peak| format!("{:.1} TFLOP/s", peak * 1e-12));
        let Peaks { f32, f16, source } = &self.peaks;
        format!("f32 {}, f16 {} ({source})", tera(*f32), tera(*f16))
    }
}
