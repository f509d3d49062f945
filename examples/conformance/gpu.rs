//! The device, and programs run on it with tensors from the host.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use tileformer::convenience::{Gpu, Setup};
use tileformer::{Bindings, Builder, Element, Kernels, Layout, Options, Plan, Program, Role, TensorView};

use super::case::Case;
use super::host::Array;
use super::judge::{Outcome, failed};

/// A device with its kernels, and what floats are stored as on it.
#[derive(Clone)]
pub(crate) struct Session {
    gpu: Gpu,
    kernels: Kernels,
    storage: Element,
}

/// The elements of a tensor that a program reads.
#[derive(Clone, Debug)]
enum Feed<'a> {
    F32(Cow<'a, [f32]>),
    U32(Vec<u32>),
}

/// What a program reads, by the names of its tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Feeds<'a> {
    feeds: HashMap<String, Feed<'a>>,
    weights: Option<(&'a Case, &'a str)>,
}

impl<'a> Feeds<'a> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Weights come from a case: the program's `NAME` is the file's `w.PREFIXNAME`.
    pub(crate) fn with_weights(case: &'a Case, prefix: &'a str) -> Self {
        Self { feeds: HashMap::new(), weights: Some((case, prefix)) }
    }

    pub(crate) fn f32(&mut self, name: &str, array: &'a Array<f32>) -> &mut Self {
        self.feeds.insert(name.to_owned(), Feed::F32(array.values().into()));
        self
    }

    pub(crate) fn u32(&mut self, name: &str, values: Vec<u32>) -> &mut Self {
        self.feeds.insert(name.to_owned(), Feed::U32(values));
        self
    }

    fn get(&self, name: &str, role: Role, layout: &Layout) -> Outcome<Feed<'a>> {
        match (self.feeds.get(name), self.weights) {
            (Some(feed), _) => Ok(feed.clone()),
            (None, Some((case, prefix))) if role == Role::Weight => {
                let name = format!("w.{prefix}{name}");
                let weight = case.float(&name)?;
                if weight.sizes() != layout.sizes() {
                    return failed(format!("{name}: expected {layout}, found {:?}", weight.sizes()));
                }
                Ok(Feed::F32(weight.values().into()))
            }
            _ => failed(format!("{name}: the program reads it, and nothing provides it")),
        }
    }
}

/// What a program wrote, by the names of its tensors.
#[derive(Debug, Default)]
pub(crate) struct Written {
    arrays: HashMap<String, Array<f32>>,
}

impl Written {
    pub(crate) fn get(&self, name: &str) -> Outcome<Array<f32>> {
        self.arrays.get(name).cloned().map_or_else(|| failed(format!("{name}: the program does not write it")), Ok)
    }
}

impl Session {
    pub(crate) async fn open(setup: &Setup) -> tileformer::Result<Self> {
        let gpu = Gpu::open_async(setup).await?;
        let kernels = Kernels::new(&gpu.device, Options::default())?;
        Ok(Self { gpu, kernels, storage: Element::F32 })
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The same device, with floats stored as `element`.
    pub(crate) fn stored(&self, element: Element) -> Self {
        Self { storage: element, ..self.clone() }
    }

    pub(crate) fn storage(&self) -> Element {
        self.storage
    }

    /// A program that stores floats as the session does.
    pub(crate) fn builder(&self, name: &str) -> tileformer::Result<Builder> {
        Builder::new(&self.kernels, name).with_storage(self.storage)
    }

    /// Runs a program once. Outputs hold NaN before, so that an element which nothing writes is found out.
    pub(crate) async fn run(&self, program: &Program, feeds: &Feeds<'_>) -> Outcome<Written> {
        let mut bindings = Bindings::new();
        for (name, role, element, layout) in program.tensors().filter(|(_, role, ..)| *role != Role::Output) {
            bindings.set(name, self.upload(element, layout, feeds.get(name, role, layout)?)?);
        }
        self.run_bound(program, bindings).await
    }

    /// Runs a model's program once, over its weights and these words.
    pub(crate) async fn run_model(
        &self,
        program: &Program,
        mut bindings: Bindings,
        feeds: &BTreeMap<&str, Vec<u32>>,
    ) -> Outcome<Written> {
        for (name, _, _, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Input) {
            if bindings.get(name).is_some() {
                continue;
            }
            let Some(words) = feeds.get(name) else {
                return failed(format!("{name}: the program reads it, and nothing provides it"));
            };
            bindings.set(name, self.gpu.upload_u32(layout.sizes(), words)?);
        }
        self.run_bound(program, bindings).await
    }

    /// A program bound, its pipelines compiled first: a browser says only then what it has against one.
    pub(crate) async fn plan(&self, program: &Program, bindings: &Bindings) -> Outcome<Plan> {
        let mut warm_up = self.kernels.warm_up(program.variants());
        while warm_up.step().await?.is_some() {}
        Ok(program.bind(bindings)?)
    }

    /// Adds the outputs, runs, and reads them.
    async fn run_bound(&self, program: &Program, mut bindings: Bindings) -> Outcome<Written> {
        let mut outputs = Vec::new();
        for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
            let view = self.gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()])?;
            bindings.set(name, view.clone());
            outputs.push((name, view));
        }
        self.gpu.run(&self.plan(program, &bindings).await?)?;
        let mut written = Written::default();
        for (name, view) in outputs {
            let array = Array::new(view.layout().sizes(), self.gpu.read_f32_async(&view).await?)?;
            written.arrays.insert(name.to_owned(), array);
        }
        Ok(written)
    }

    fn upload(&self, element: Element, layout: &Layout, feed: Feed<'_>) -> tileformer::Result<TensorView> {
        match feed {
            Feed::F32(values) => self.gpu.upload_floats(element, layout.sizes(), &values),
            Feed::U32(values) => self.gpu.upload_u32(layout.sizes(), &values),
        }
    }
}
