//! burn: its kernels chosen by autotune, its operations fused.

use std::any::Any;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::activation::ActivationConfig;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::transformer::{
    TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, DeviceKind, Distribution, FloatDType, ProfileOptions, Tensor, TensorData};
use burn::tensor::{activation, module};
use tileformer::{Activation, Element, wgpu};

use crate::rows::Row;
use crate::task::{Heads, Task};
use crate::{Entrant, Load, Peer, calls};

/// One call, whose output lives until its batch has been timed: fusion may leave out what nobody keeps.
type Call = Box<dyn Fn() -> Box<dyn Any + Send> + Send + Sync>;

/// What inputs and weights of a batch's calls may take together.
const INPUT_BYTES: u64 = 8 << 30;

pub(crate) struct Burn {
    device: Device,
}

impl Burn {
    /// burn on the adapter of that name.
    pub(crate) fn open(wanted: &wgpu::AdapterInfo) -> Result<Self, String> {
        let kinds = match wanted.device_type {
            wgpu::DeviceType::Cpu => vec![DeviceKind::Cpu],
            wgpu::DeviceType::IntegratedGpu => vec![DeviceKind::IntegratedGpu(0)],
            wgpu::DeviceType::VirtualGpu => vec![DeviceKind::VirtualGpu(0)],
            _ => (0..8).map(DeviceKind::DiscreteGpu).collect(),
        };
        let mut others = Vec::new();
        for kind in kinds {
            let Ok((device, setup)) = Device::wgpu_options().device_kind(kind).init_with_setup() else { break };
            let name = setup.adapter.get_info().name;
            if name == wanted.name {
                return Ok(Self { device });
            }
            others.push(name);
        }
        Err(format!("finds no {}; it has: {}", wanted.name, others.join(", ")))
    }

    fn tensor<const D: usize>(&self, sizes: [usize; D], element: Element) -> Tensor<D> {
        stored(Tensor::random(sizes, Distribution::Uniform(-1.0, 1.0), &self.device), element)
    }

    fn weight<const D: usize>(&self, sizes: [usize; D], element: Element) -> Tensor<D> {
        let bound = (sizes[0] as f64).sqrt().recip();
        stored(Tensor::random(sizes, Distribution::Uniform(-bound, bound), &self.device), element)
    }

    /// One call on tensors of its own, and its name.
    fn call(&self, row: &Row) -> Result<(Call, &'static str), String> {
        let element = row.element;
        Ok(match &row.task {
            Task::Linear([rows, d_in, d_out], activation) => {
                let (x, w) = (self.tensor([*rows, *d_in], element), self.weight([*d_in, *d_out], element));
                let b = self.weight([*d_out], element);
                let linear = move || module::linear(x.clone(), w.clone(), Some(b.clone()));
                match activation {
                    Activation::Identity => (call(linear), "linear"),
                    Activation::Gelu => (call(move || activation::gelu(linear())), "linear, gelu"),
                    other => return Err(format!("linear with {other:?} is no row")),
                }
            }
            Task::Attention(heads) => (self.attention(heads, element), "attention"),
            Task::Scores(Heads { batch, heads, t, s, size, .. }) => {
                let q = self.tensor([*batch, *heads, *t, *size], element);
                let k = self.tensor([*batch, *heads, *s, *size], element);
                let scale = (*size as f64).sqrt().recip();
                (call(move || q.clone().matmul(k.clone().transpose()) * scale), "matmul, scale")
            }
            Task::Values(Heads { batch, heads, t, s, size, .. }) => {
                let p = self.tensor([*batch, *heads, *t, *s], element);
                let v = self.tensor([*batch, *heads, *s, *size], element);
                (call(move || p.clone().matmul(v.clone())), "matmul")
            }
            Task::Norm([rows, columns]) => {
                let (x, r) = (self.tensor([*rows, *columns], element), self.tensor([*rows, *columns], element));
                let (gamma, beta) = (self.tensor([*columns], element), self.tensor([*columns], element));
                let norm = move || module::layer_norm(x.clone() + r.clone(), gamma.clone(), Some(beta.clone()), 1e-5);
                (call(norm), "add, layer_norm")
            }
            Task::Softmax([b, n_heads, t, s]) => {
                let x = self.tensor([b * n_heads * t, *s], element);
                (call(move || activation::softmax(x.clone(), 1)), "softmax")
            }
            Task::Gelu(sizes) => {
                let x = self.tensor(*sizes, element);
                (call(move || activation::gelu(x.clone())), "gelu")
            }
            Task::Argmax(sizes) => {
                let x = self.tensor(*sizes, element);
                (call(move || x.clone().argmax(1)), "argmax")
            }
            Task::Encoder { batch: [batch, t], sizes: [c, n_heads, f], layers } => {
                let config = TransformerEncoderConfig::new(*c, *f, *n_heads, *layers).with_dropout(0.0);
                let encoder = config.init(&self.device).map(&mut Stored(element));
                let x = self.tensor([*batch, *t, *c], element);
                (call(move || encoder.forward(TransformerEncoderInput::new(x.clone()))), "TransformerEncoder")
            }
            Task::Decoder { batch: [batch, t], sizes: [c, n_heads, f] } => {
                let config = TransformerDecoderConfig::new(*c, *f, *n_heads, 1).with_dropout(0.0);
                let decoder = config.with_activation(ActivationConfig::Relu).init(&self.device).map(&mut Stored(element));
                let (x, memory) = (self.tensor([*batch, *t, *c], element), self.tensor([*batch, *t, *c], element));
                let mask = generate_autoregressive_mask(*batch, *t, &self.device);
                let forward = move || {
                    let input = TransformerDecoderInput::new(x.clone(), memory.clone());
                    decoder.forward(input.target_mask_attn(mask.clone()))
                };
                (call(forward), "TransformerDecoder")
            }
            Task::Additive(_) | Task::Embedding(_) | Task::Pool(_) | Task::Choose(_) => {
                return Err("burn has no one operation for it".into());
            }
        })
    }

    fn attention(&self, heads: &Heads, element: Element) -> Call {
        let Heads { batch, heads: n_heads, t, s, size, causal, .. } = *heads;
        let q = self.tensor([batch, n_heads, t, size], element);
        let (k, v) = (self.tensor([batch, n_heads, s, size], element), self.tensor([batch, n_heads, s, size], element));
        let hidden: Vec<bool> = heads.lengths.iter().flat_map(|&length| (0..s).map(move |j| j >= length)).collect();
        let mask = heads.is_padded().then(|| {
            let mask = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [batch, 1, 1, s]), &self.device);
            mask.expand([batch, n_heads, t, s])
        });
        let options = AttentionModuleOptions { is_causal: causal, ..AttentionModuleOptions::default() };
        call(move || module::attention(q.clone(), k.clone(), v.clone(), mask.clone(), None, options))
    }
}

impl Peer for Burn {
    fn name(&self) -> String {
        format!("burn 0.22 ({})", if cfg!(feature = "spirv") { "SPIR-V" } else { "WGSL" })
    }

    fn prepare(&self, row: &Row, load: &Load) -> Result<Box<dyn Entrant>, String> {
        let made: Result<Vec<_>, String> = (0..load.copies).map(|_| self.call(row)).collect();
        let (copies, hows): (Vec<Call>, Vec<&str>) = made?.into_iter().unzip();
        let mut entrant = Burning { device: self.device.clone(), copies, calls: 1, how: hows[0] };
        // The first call tunes; what it found is used from the second on.
        for _ in 0..3 {
            entrant.time()?;
        }
        entrant.calls = calls(entrant.time()?, load);
        // Fusion reads what several calls share once for all of them, which no program has a use for.
        let own = entrant.calls.min(INPUT_BYTES / load.input_bytes.max(1));
        while (entrant.copies.len() as u64) < own {
            entrant.copies.push(self.call(row)?.0);
        }
        let start = Instant::now();
        while start.elapsed().as_millis() < 200 {
            entrant.time()?;
        }
        Ok(Box::new(entrant))
    }
}

struct Burning {
    device: Device,
    copies: Vec<Call>,
    calls: u64,
    how: &'static str,
}

impl Entrant for Burning {
    fn how(&self) -> String {
        self.how.into()
    }

    /// By burn's own window on the device around the batch, all of it executed before the window closes.
    fn time(&self) -> Result<f64, String> {
        let failed = |e: &dyn std::fmt::Debug| format!("{e:?}");
        self.device.sync().map_err(|e| failed(&e))?;
        let batch = || -> Vec<_> { self.copies.iter().cycle().zip(0..self.calls).map(|(call, _)| call()).collect() };
        let window = self.device.profile_with(ProfileOptions::default().flush(), batch);
        let (outputs, duration) = window.map_err(|e| failed(&e))?;
        self.device.sync().map_err(|e| failed(&e))?;
        drop(outputs);
        let ticks = pollster::block_on(duration.resolve()).ok_or("burn measured nothing")?;
        Ok(ticks.duration().as_secs_f64() / self.calls as f64)
    }
}

fn call<T: Any + Send>(f: impl Fn() -> T + Send + Sync + 'static) -> Call {
    Box::new(move || Box::new(f()))
}

fn stored<const D: usize>(tensor: Tensor<D>, element: Element) -> Tensor<D> {
    if element == Element::F32 { tensor } else { tensor.cast(FloatDType::F16) }
}

/// Gives a module's weights a row's type.
struct Stored(Element);

impl ModuleMapper for Stored {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| stored(tensor, self.0))
    }
}
