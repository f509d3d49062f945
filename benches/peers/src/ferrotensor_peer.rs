//! ferrotensor-backend: WGSL kernels on a device of its own.

use std::rc::Rc;
use std::time::Instant;

use ferrotensor_backend::{AttentionOptions, ComputeEngine, UnifiedTensor, WgpuContext};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::{Element, wgpu};

use crate::rows::Row;
use crate::task::Task;
use crate::{Entrant, Load, Peer, calls};

/// One call into outputs of its own.
type Call = Box<dyn Fn(&WgpuContext, &ComputeEngine)>;

pub(crate) struct Ferrotensor {
    context: Rc<WgpuContext>,
    engine: Rc<ComputeEngine>,
}

impl Ferrotensor {
    /// Its device cannot be chosen by name: it takes wgpu's favourite, or the software one.
    pub(crate) fn open(wanted: &wgpu::AdapterInfo) -> Result<Self, String> {
        let on_cpu = wanted.device_type == wgpu::DeviceType::Cpu;
        let found = ferrotensor_backend::adapters::list_adapters();
        if !found.iter().any(|adapter| adapter.name == wanted.name) {
            return Err(format!("finds no {}", wanted.name));
        }
        let favourite = ferrotensor_backend::wgpu::PowerPreference::HighPerformance;
        let context = pollster::block_on(WgpuContext::new_with_options(favourite, on_cpu));
        let name = context.adapter.get_info().name;
        if name != wanted.name {
            return Err(format!("takes {name}, and cannot be told another"));
        }
        let engine = ComputeEngine::new(&context);
        Ok(Self { context: Rc::new(context), engine: Rc::new(engine) })
    }

    fn tensor(&self, sizes: &[usize]) -> UnifiedTensor {
        let mut rng = StdRng::seed_from_u64(0);
        let data: Vec<f32> = (0..sizes.iter().product::<usize>()).map(|_| rng.random_range(-1.0..1.0)).collect();
        UnifiedTensor::new(&self.context, &data, sizes)
    }

    /// One call on tensors of its own, and its name.
    fn call(&self, row: &Row) -> Result<(Call, &'static str), String> {
        if row.element != Element::F32 {
            return Err("its kernels read f32 only".into());
        }
        Ok(match &row.task {
            Task::Linear([rows, d_in, d_out], _) => {
                let (x, w) = (self.tensor(&[*rows, *d_in]), self.tensor(&[*d_out, *d_in]));
                let y = self.tensor(&[*rows, *d_out]);
                (call(move |c, e| e.matmul_bt(c, &x, &w, &y)), "matmul_bt: no bias, no activation")
            }
            Task::Attention(heads) => {
                let (batch, n_heads, size) = (heads.batch, heads.heads, heads.size);
                let [q, out] = [0; 2].map(|_| self.tensor(&[batch, heads.t, n_heads, size]));
                let [k, v] = [0; 2].map(|_| self.tensor(&[batch, heads.s, n_heads, size]));
                let hidden = |length: usize| (0..heads.s).map(move |j| if j < length { 0.0 } else { -1e30 });
                let mask = heads.is_padded().then(|| {
                    let mask: Vec<f32> = heads.lengths.iter().flat_map(|&length| hidden(length)).collect();
                    UnifiedTensor::new(&self.context, &mask, &[batch, 1, 1, heads.s])
                });
                let options = AttentionOptions { causal: heads.causal, ..AttentionOptions::default() };
                let run = move |c: &WgpuContext, e: &ComputeEngine| {
                    e.flash_attention_v2_with(c, &q, &k, &v, &out, &options, mask.as_ref());
                };
                (call(run), "flash_attention_v2")
            }
            Task::Norm([rows, columns]) => {
                let [x, residual, sum, y] = [0; 4].map(|_| self.tensor(&[*rows, *columns]));
                let weight = self.tensor(&[*columns]);
                let run = move |c: &WgpuContext, e: &ComputeEngine| {
                    e.add(c, &x, &residual, &sum);
                    e.rms_norm(c, &sum, &weight, &y);
                };
                (call(run), "add, rms_norm: no layer norm there")
            }
            Task::Softmax([b, n_heads, t, s]) => {
                let [x, y] = [0; 2].map(|_| self.tensor(&[b * n_heads * t, *s]));
                (call(move |c, e| e.softmax(c, &x, &y)), "softmax")
            }
            _ => return Err("compared in linear, attention, norm and softmax only".into()),
        })
    }
}

impl Peer for Ferrotensor {
    fn name(&self) -> String {
        "ferrotensor-backend 0.5".into()
    }

    fn prepare(&self, row: &Row, load: &Load) -> Result<Box<dyn Entrant>, String> {
        let made: Result<Vec<_>, String> = (0..load.copies).map(|_| self.call(row)).collect();
        let (copies, hows): (Vec<Call>, Vec<&str>) = made?.into_iter().unzip();
        let (context, engine) = (self.context.clone(), self.engine.clone());
        let mut entrant = Running { context, engine, copies, calls: 1, how: hows[0] };
        entrant.time()?;
        entrant.calls = calls(entrant.time()?, load);
        let start = Instant::now();
        while start.elapsed().as_millis() < 200 {
            entrant.time()?;
        }
        Ok(Box::new(entrant))
    }
}

struct Running {
    context: Rc<WgpuContext>,
    engine: Rc<ComputeEngine>,
    copies: Vec<Call>,
    calls: u64,
    how: &'static str,
}

impl Entrant for Running {
    fn how(&self) -> String {
        self.how.into()
    }

    /// By the clock around recording, submit and wait: it has no timestamps.
    fn time(&self) -> Result<f64, String> {
        self.context.synchronize();
        let start = Instant::now();
        for (call, _) in self.copies.iter().cycle().zip(0..self.calls) {
            call(&self.context, &self.engine);
        }
        self.context.synchronize();
        Ok(start.elapsed().as_secs_f64() / self.calls as f64)
    }
}

fn call(f: impl Fn(&WgpuContext, &ComputeEngine) + 'static) -> Call {
    Box::new(f)
}
