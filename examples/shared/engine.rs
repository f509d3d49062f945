//! A BERT on the GPU, or on the CPU reference where there is none.

use std::collections::BTreeMap;
use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};
use tileformer::convenience::{Gpu, Setup};
use tileformer::layers::Inputs;
use tileformer::models::HostWeights;
use tileformer::models::bert::{BertInputs, Output};
use tileformer::{BatchShape, Bindings, Element, Kernels, Plan, Role, Sequences};

use crate::cli::{self, Common, Failure};
use crate::folder::{Encoded, Folder, Result};
use crate::sheet::{self, Part, Sheet};

/// Where models run.
pub(crate) enum Engine {
    Gpu { gpu: Box<Gpu>, kernels: Kernels, storing: [Element; 2] },
    Cpu,
}

/// A model that is ready for packed batches of at most a shape.
pub(crate) enum Loaded<'a> {
    Gpu { gpu: &'a Gpu, plan: Plan, bindings: Bindings, shape: BatchShape, outputs: Vec<Output> },
    Cpu { folder: &'a Folder, weights: HostWeights<f32>, outputs: Vec<Output> },
}

/// What a batch gave: of rows and sequences those of the batch, and then whatever the shape has room for.
pub(crate) struct Ran {
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Ran {
    /// The elements of an output that was asked for.
    pub(crate) fn get(&self, output: Output) -> &[f32] {
        self.tensors.get(&output.name()).map_or(&[], Vec::as_slice)
    }
}

/// The shape of these texts, one behind the other.
pub(crate) fn packed_shape(lengths: impl IntoIterator<Item = usize>) -> BatchShape {
    let (mut sequences, mut rows, mut longest) = (0, 0, 0);
    for length in lengths {
        (sequences, rows, longest) = (sequences + 1, rows + length, longest.max(length));
    }
    BatchShape { sequences, q_rows: rows, longest_q: longest, k_rows: rows, longest_k: longest }
}

impl Engine {
    /// The GPU, unless the CPU is asked for or there is no adapter; of the latter a notice tells.
    pub(crate) fn choose(args: &Common, notices: &mut dyn Write) -> std::result::Result<Self, Failure> {
        if args.cpu {
            return Ok(Self::Cpu);
        }
        match Gpu::open(&Setup { adapter: args.adapter.clone(), ..Setup::default() }) {
            Ok(gpu) => {
                let kernels = Kernels::new(&gpu.device, gpu.options())?;
                Ok(Self::Gpu { gpu: Box::new(gpu), kernels, storing: cli::storing(args.f16, args.weights) })
            }
            Err(error) if args.adapter.is_some() => Err(error.into()),
            Err(error) => {
                writeln!(notices, "notice: running on the CPU reference: {error}")?;
                Ok(Self::Cpu)
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Gpu { gpu, .. } => &gpu.info.name,
            Self::Cpu => "CPU reference",
        }
    }

    /// Puts the weights where they are needed, with a bar on a terminal.
    pub(crate) fn load<'a>(&'a self, folder: &'a Folder, shape: BatchShape, outputs: &[Output]) -> Result<Loaded<'a>> {
        let outputs = outputs.to_vec();
        let Self::Gpu { gpu, kernels, storing: [rows, weights] } = self else {
            return Ok(Loaded::Cpu { folder, weights: folder.bert.host_weights(&folder.checkpoint, &outputs)?, outputs });
        };
        let program =
            folder.bert.program(kernels, &Inputs::new(shape).with_storage(*rows).with_weights(*weights), &outputs)?;
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("weights {bar:40} {bytes} of {total_bytes}")?);
        let mut bindings = gpu.upload_checkpoint(&[&program], &folder.checkpoint, &folder.bert.weights(), |loaded| {
            bar.set_length(loaded.total);
            bar.set_position(loaded.bytes);
        })?;
        bar.finish_and_clear();
        for (name, role, element, layout) in program.tensors() {
            if role != Role::Weight {
                bindings.set(name, gpu.zeros(element, layout.sizes())?);
            }
        }
        let plan = program.bind(&bindings)?;
        Ok(Loaded::Gpu { gpu, plan, bindings, shape, outputs })
    }
}

impl Engine {
    /// The attention of one text as a sheet.
    pub(crate) fn draw(&self, folder: &Folder, text: &Encoded) -> Result<String> {
        let outputs: Vec<Output> = (0..folder.bert.n_layers).map(Output::Attention).collect();
        let loaded = self.load(folder, packed_shape([text.ids.len()]), &outputs)?;
        let ran = loaded.run(&[text])?;
        let layers: Vec<Vec<f32>> = outputs.iter().map(|output| ran.get(*output).to_vec()).collect();
        let second: Vec<bool> = text.segment_ids.iter().map(|&segment| segment > 0).collect();
        let n_heads = folder.bert.layer.attention.n_heads;
        let part = Part { name: "", from: &text.tokens, to: &text.tokens, second: &second, n_heads, layers: &layers };
        sheet::svg(&Sheet { title: &text.text, parts: &[part] })
    }
}

impl Loaded<'_> {
    /// Runs texts as one packed batch, which must fit the shape.
    pub(crate) fn run(&self, texts: &[&Encoded]) -> Result<Ran> {
        let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
        let sequences = Sequences::packed(&lengths)?;
        let mut ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.clone()).collect();
        let mut segment_ids: Vec<u32> = texts.iter().flat_map(|t| t.segment_ids.clone()).collect();
        match self {
            Self::Cpu { folder, weights, outputs } => {
                let inputs = BertInputs { ids: &ids, segment_ids: &segment_ids, sequences: &sequences, key_mask: None };
                let tensors = folder.bert.reference(&weights.weights()?, &inputs, outputs)?;
                Ok(Ran { tensors })
            }
            Self::Gpu { gpu, plan, bindings, shape, outputs } => {
                ids.resize(shape.q_rows, 0);
                segment_ids.resize(shape.q_rows, 0);
                let sequences = sequences.for_shape(shape)?;
                for (name, words) in [("ids", &ids[..]), ("segment_ids", &segment_ids), ("sequences", sequences.words())] {
                    let view = bindings.get(name).ok_or("the program lacks an input")?;
                    gpu.write(view, &words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>())?;
                }
                gpu.run(plan)?;
                let mut tensors = BTreeMap::new();
                for output in outputs {
                    let view = bindings.get(&output.name()).ok_or("the program lacks an output")?;
                    tensors.insert(output.name(), gpu.read_f32(view)?);
                }
                Ok(Ran { tensors })
            }
        }
    }
}
