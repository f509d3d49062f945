//! Tensors between guards: whatever a buffer holds beside its tensor is a NaN that no kernel may read into a result or write.

use tileformer::convenience::Gpu;
use tileformer::{Element, Layout, TensorView};

/// The bits around an output and in the gaps between its rows: a quiet NaN that no arithmetic makes.
pub const POISON: u32 = 0x7fc0_dead;

/// The same around an input: another NaN, so that one which was copied into an output's gap shows.
const INPUT_POISON: u32 = 0x7fc1_beef;

/// A poison as an element has it: f16 has its own quiet NaNs.
fn poison_of(element: Element, poison: u32) -> u32 {
    match element {
        Element::F16 => 0x7e00 | (poison & 0xff),
        _ => poison,
    }
}

/// Elements of poison on either side of a tensor.
const GUARD: usize = 64;

/// How a tensor lies in its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Elements before it, beside the guard: 1, 3 or 5 make it unaligned.
    pub offset: usize,
    /// Elements between two of its rows.
    pub gap: usize,
}

impl Place {
    /// No gap, and aligned as groups of four need it.
    pub const DENSE: Self = Self { offset: 0, gap: 0 };
    /// Gaps and an offset that leave groups of four whole.
    pub const STRIDED: Self = Self { offset: 4, gap: 8 };
    /// An offset that no group of four survives.
    pub const OFF_BY_ONE: Self = Self { offset: 1, gap: 0 };
    /// Even in all, and no multiple of four.
    pub const EVEN: Self = Self { offset: 2, gap: 6 };
    /// Odd in all.
    pub const ODD: Self = Self { offset: 3, gap: 5 };
    /// All that suit f32.
    pub const ALL: [Self; 4] = [Self::DENSE, Self::STRIDED, Self::OFF_BY_ONE, Self::ODD];

    /// The same for tensor number `n` of a program, as aligned: where there is an offset or a gap, each has its own, so that a kernel
    /// which takes one tensor's for another's is found out.
    pub fn apart(self, n: usize) -> Self {
        let apart = |elements: usize| if elements == 0 { 0 } else { elements + 4 * n };
        Self { offset: apart(self.offset), gap: apart(self.gap) }
    }

    /// The layout of a tensor of `sizes` here; the last dimension is dense.
    pub fn layout(self, sizes: &[usize]) -> Layout {
        let mut strides = vec![1; sizes.len()];
        for i in (0..sizes.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * sizes[i + 1] + self.gap;
        }
        Layout::strided(sizes, &strides).expect("a layout")
    }
}

/// A tensor in a buffer of its own, poison all around it.
pub struct Guarded {
    gpu: Gpu,
    /// What to bind.
    pub view: TensorView,
    element: Element,
    name: String,
    poison: u32,
}

impl Guarded {
    /// A tensor of poison, for a kernel to write.
    pub fn output(gpu: &Gpu, name: &str, element: Element, layout: Layout, place: Place) -> Self {
        Self::new(gpu, name, element, layout, place, None)
    }

    /// A tensor that holds `data`, the bits of an element each, in row-major order.
    pub fn input(gpu: &Gpu, name: &str, element: Element, layout: Layout, place: Place, data: &[u32]) -> Self {
        assert_eq!(layout.len(), data.len(), "{name}: data for {layout}");
        Self::new(gpu, name, element, layout, place, Some(data))
    }

    fn new(gpu: &Gpu, name: &str, element: Element, layout: Layout, place: Place, data: Option<&[u32]>) -> Self {
        let first = GUARD + place.offset;
        let poison = poison_of(element, if data.is_some() { INPUT_POISON } else { POISON });
        let mut elements = vec![poison; (first + layout.extent() as usize + GUARD).next_multiple_of(2)];
        for (at, &value) in indices(&layout).zip(data.unwrap_or_default()) {
            elements[first + at] = value;
        }
        let words: Vec<u32> = match element {
            Element::F16 => elements.chunks_exact(2).map(|pair| pair[0] | pair[1] << 16).collect(),
            _ => elements,
        };
        let all = gpu.upload_u32(&[words.len()], &words).expect("an upload");
        let view = TensorView::new(all.buffer(), first as u64, element, layout).expect("a view");
        Self { gpu: gpu.clone(), view, element, name: name.to_owned(), poison }
    }

    /// The bits of every element of the whole buffer.
    pub fn words(&self) -> Vec<u32> {
        let bytes = self.gpu.read_bytes(self.view.buffer(), 0, self.view.buffer().size()).expect("a readback");
        match self.element {
            Element::F16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_ne_bytes([b[0], b[1]]))).collect(),
            _ => bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// The number with these bits.
    fn number(&self, bits: u32) -> f32 {
        match self.element {
            Element::F16 => half::f16::from_bits(bits as u16).to_f32(),
            _ => f32::from_bits(bits),
        }
    }

    /// The bits of all elements; fails for a guard or a gap that was written.
    pub fn bits(&self) -> Vec<u32> {
        let words = self.words();
        let first = self.view.offset() as usize;
        let mut inside = vec![false; words.len()];
        indices(self.view.layout()).for_each(|at| inside[first + at] = true);
        for (at, (&word, inside)) in words.iter().zip(&inside).enumerate() {
            let place = at as i64 - first as i64;
            assert!(*inside || word == self.poison, "{}: {word:#x} was written outside, at element {place}", self.name);
        }
        indices(self.view.layout()).map(|at| words[first + at]).collect()
    }

    /// The elements; fails for a guard or gap that was written and for one that was not written.
    pub fn f32(&self) -> Vec<f32> {
        self.f32_where(|_| true)
    }

    /// The elements for which `written` holds, by their row-major number, and zeros for the others, which must be untouched.
    pub fn f32_where(&self, written: impl Fn(usize) -> bool) -> Vec<f32> {
        let mut values = Vec::new();
        for (i, bits) in self.bits().into_iter().enumerate() {
            if written(i) {
                assert!(!self.number(bits).is_nan(), "{}[{i}]: {bits:#x}, NaN or not written", self.name);
                values.push(self.number(bits));
            } else {
                assert!(
                    bits == poison_of(self.element, POISON),
                    "{}[{i}]: {bits:#x} was written, but nothing should be",
                    self.name
                );
                values.push(0.0);
            }
        }
        values
    }

    /// The elements of a `u32` tensor.
    pub fn u32(&self) -> Vec<u32> {
        let bits = self.bits();
        assert!(!bits.contains(&POISON), "{}: not all written", self.name);
        bits
    }
}

/// The element indices of a layout in row-major order.
pub fn indices(layout: &Layout) -> impl Iterator<Item = usize> + use<> {
    let (sizes, strides) = (layout.sizes().to_vec(), layout.strides().to_vec());
    (0..layout.len()).map(move |mut n| {
        let mut index = 0;
        for (&size, &stride) in sizes.iter().zip(&strides).rev() {
            index += n % size * stride;
            n /= size;
        }
        index
    })
}
