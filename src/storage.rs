//! What specialises a compiled form beside its kernel and tile: how elements are stored, and which features of the device it needs.

use crate::tensor::Element;

/// How the activations and weights of a dispatch lie in memory, and how many of them a shader loads at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub(crate) enum Storage {
    /// Single f32: any offset, stride and inner size.
    F32,
    /// Groups of four f32: offsets, strides and inner sizes that are multiples of four.
    F32x4,
    /// Single f16, where the device has the type.
    F16,
    /// Groups of four f16.
    F16x4,
    /// Pairs of f16 in a `u32`, where the device lacks the type: even offsets, strides and inner sizes but those of vectors.
    Packed,
    /// Groups of four f16 in two `u32`.
    Packedx4,
}

impl Storage {
    /// Every form of a float.
    pub(crate) const ALL: &'static [Self] = &[Self::F32, Self::F32x4, Self::F16, Self::F16x4, Self::Packed, Self::Packedx4];
    /// Those in groups of four.
    pub(crate) const IN_FOURS: &'static [Self] = &[Self::F32x4, Self::F16x4, Self::Packedx4];
    /// Those in groups of four of their own type, no pairs.
    pub(crate) const TYPED_IN_FOURS: &'static [Self] = &[Self::F32x4, Self::F16x4];
    /// Those in groups of four that CPU adapters load best: f16 in pairs takes half the loads.
    pub(crate) const FOURS_ON_CPUS: &'static [Self] = &[Self::F32x4, Self::Packedx4];
    /// Those in groups that fit any alignment, or nearly.
    pub(crate) const SINGLES: &'static [Self] = &[Self::F32, Self::F16, Self::Packed];
    /// Those of f32: for kernels whose tensors are never narrower.
    pub(crate) const WIDE: &'static [Self] = &[Self::F32, Self::F32x4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F32x4 => "f32x4",
            Self::F16 => "f16",
            Self::F16x4 => "f16x4",
            Self::Packed => "packed",
            Self::Packedx4 => "packedx4",
        }
    }

    /// Whether everything is loaded in groups of four.
    pub(crate) fn in_fours(self) -> bool {
        self == self.in_groups(true)
    }

    /// Elements that offsets, strides and inner sizes must be multiples of.
    pub(crate) fn lanes(self) -> u64 {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Packed => 2,
            Self::F32x4 | Self::F16x4 | Self::Packedx4 => 4,
        }
    }

    /// The same element in groups of four, or in the smallest groups.
    pub(crate) fn in_groups(self, of_four: bool) -> Self {
        match (self, of_four) {
            (Self::F32 | Self::F32x4, false) => Self::F32,
            (Self::F32 | Self::F32x4, true) => Self::F32x4,
            (Self::F16 | Self::F16x4, false) => Self::F16,
            (Self::F16 | Self::F16x4, true) => Self::F16x4,
            (Self::Packed | Self::Packedx4, false) => Self::Packed,
            (Self::Packed | Self::Packedx4, true) => Self::Packedx4,
        }
    }

    /// How `element` is stored on a device with or without the f16 type; tensors that are no floats never decide.
    pub(crate) fn of(element: Element, has_f16: bool, in_fours: bool) -> Self {
        let single = match (element, has_f16) {
            (Element::F16, true) => Self::F16,
            (Element::F16, false) => Self::Packed,
            (Element::F32 | Element::U32 | Element::Int8 | Element::Int4, _) => Self::F32,
        };
        single.in_groups(in_fours)
    }

    /// The same element as `device` stores it: of any alignment where it has the f16 type.
    pub(crate) fn on(self, device: &DeviceClass) -> Self {
        match self {
            Self::Packed if device.f16() => Self::F16,
            _ => self,
        }
    }

    fn features(self) -> wgpu::Features {
        match self {
            Self::F16 | Self::F16x4 => wgpu::Features::SHADER_F16,
            _ => wgpu::Features::empty(),
        }
    }
}

/// Which features of the device a compiled form is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub(crate) enum Tier {
    /// WebGPU's defaults.
    Core,
    /// Reductions and broadcasts inside a subgroup, of any size.
    Subgroups,
    /// Cooperative matrices.
    Matrix,
}

impl Tier {
    /// Behind the variant's name.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Core => "",
            Self::Subgroups => ".subgroups",
            Self::Matrix => ".matrix",
        }
    }

    /// What the device must have enabled, with this storage.
    pub(crate) fn features(self, storage: Storage) -> wgpu::Features {
        storage.features()
            | match self {
                Self::Core => wgpu::Features::empty(),
                Self::Subgroups => wgpu::Features::SUBGROUP,
                Self::Matrix => {
                    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP
                }
            }
    }
}

/// The cooperative matrices (M = N = K) with f16 operands and f32 accumulators that the caller found on the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MatrixSize {
    M8,
    M16,
}

/// What the choice of a variant looks at on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceClass {
    /// A software adapter: few cores, wide vectors, every barrier a suspension of the workgroup.
    pub(crate) cpu: bool,
    pub(crate) features: wgpu::Features,
    /// 16×16×16 where there are both.
    pub(crate) matrix: Option<MatrixSize>,
    /// Whether f32 products may run on them too, as the caller asked for.
    pub(crate) f32_by_matrices: bool,
    /// Bytes of workgroup memory.
    pub(crate) workgroup_bytes: u32,
    /// Threads of a workgroup.
    pub(crate) invocations: u32,
}

impl DeviceClass {
    pub(crate) fn of(device: &wgpu::Device, matrices: &[wgpu::CooperativeMatrixProperties]) -> Self {
        let features = device.features();
        let limits = device.limits();
        let listed = |size: u32| {
            use wgpu::CooperativeScalarType::{F16, F32};
            let fits = |m: &wgpu::CooperativeMatrixProperties| {
                [m.m_size, m.n_size, m.k_size] == [size; 3] && (m.ab_type, m.cr_type) == (F16, F32)
            };
            matrices.iter().any(fits)
        };
        let enabled = features.contains(Tier::Matrix.features(Storage::F16));
        let matrix = match (listed(16), listed(8)) {
            (true, _) if enabled => Some(MatrixSize::M16),
            (false, true) if enabled => Some(MatrixSize::M8),
            _ => None,
        };
        Self {
            cpu: device.adapter_info().device_type == wgpu::DeviceType::Cpu,
            features,
            matrix,
            f32_by_matrices: false,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// Whether the device has the f16 type: else f16 is stored in pairs.
    pub(crate) fn f16(&self) -> bool {
        self.features.contains(wgpu::Features::SHADER_F16)
    }
}
