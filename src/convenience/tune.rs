//! Tuning: every form that can run a case, timed beside the built-in choice on the caller's device and buffers.

use std::time::{Duration, Instant};

use super::{Gpu, can_wait};
use crate::error::{Error, Result};
use crate::tuned::{Entry, Form, Key, Tuned, alternatives};
use crate::tuning::{self, Choice};
use crate::{Bindings, Kernels, Options, Plan, Program, Role, Scratch, Timing};

/// How often each form is timed, in turns with all others.
const ROUNDS: usize = 15;
/// How often where that takes longer than [`BUDGET`].
const FEWEST: usize = 5;
/// For all rounds of a program.
const BUDGET: Duration = Duration::from_secs(5);
/// Runs before the first that counts: a device that idles has a slower clock.
const WARM_UP: Duration = Duration::from_millis(100);
/// A form must take less than this part of the built-in one's time to replace it: medians come within a few percent of each other.
const CLEARLY_LESS: f64 = 0.95;

impl Gpu {
    /// Times a program's dispatches in every form that can run them, and gives the fastest form for each shape: a table for
    /// [`Options::with_tuned`].
    ///
    /// `build` makes the program, a layer at a shape or what a [`Builder`](crate::Builder) chains, on the kernels that it is given;
    /// `bindings` are all that it binds. What takes the built-in choice's place was at least 5 % faster in the median of 15 runs (fewer
    /// where they take seconds), in turns with all others, dispatch by dispatch. Two dispatches of one choice, such as parts of k and their
    /// sum, count together. All choices of a program are tried at once, so that it runs in as many forms as one of its dispatches has, not as
    /// all of them have together: a layer is a good program to tune, and what every layer of a model shares is measured once.
    ///
    /// The table is that of `options` with what it lacks; pinned variants stay. For several programs, take each one's options from the
    /// one before:
    ///
    /// ```no_run
    /// # use tileformer::{BatchShape, Bindings, Kernels, Options, Result, convenience::Gpu, layers::{EncoderLayer, Inputs}};
    /// # fn f(device: &wgpu::Device, queue: &wgpu::Queue, bindings: impl Fn(usize) -> Bindings) -> Result<()> {
    /// // An engine's own device and queue.
    /// let (info, cooperative_matrices) = (device.adapter_info(), Vec::new());
    /// let gpu = Gpu { info, device: device.clone(), queue: queue.clone(), cooperative_matrices };
    /// let layer = EncoderLayer::new(768, 12, 3072);
    /// let mut options = Options::default();
    /// for length in [16, 128, 512] {
    ///     let shape = Inputs::new(BatchShape::padded(1, length));
    ///     let tuned = gpu.tune(&options, &bindings(length), |kernels| layer.program(kernels, &shape))?;
    ///     options = options.with_tuned(tuned);
    /// }
    /// let kernels = Kernels::new(device, options)?;
    /// # Ok(()) }
    /// ```
    ///
    /// Numbers in the buffers should be like real ones, lengths above all. Outputs are overwritten; states are put back before every run and
    /// at the end.
    ///
    /// # Errors
    /// [`Error::Feature`] on a device without `TIMESTAMP_QUERY`; as [`Kernels::new`], `build`, [`Program::bind`], [`Timing::new`] and
    /// [`Gpu::run`] for the program with its built-in choices; [`Error::Usage`] for a state without `COPY_SRC` and `COPY_DST`. A
    /// form that the device refuses is left out.
    pub fn tune(
        &self,
        options: &Options,
        bindings: &Bindings,
        build: impl Fn(&Kernels) -> Result<Program>,
    ) -> Result<Tuned> {
        can_wait()?;
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::Feature { what: "tuning".into(), feature: "TIMESTAMP_QUERY" });
        }
        let kernels = Kernels::new(&self.device, options.clone())?;
        let mut tuned = options.tuned.clone().unwrap_or_else(|| Tuned::new(&self.device, kernels.class()));
        let built_in = build(&kernels)?;
        let asked = Asked::of(&built_in, &kernels, &tuned);
        let most = asked.iter().map(|a| a.alternatives.len()).max().unwrap_or(0);
        if most == 0 {
            return Ok(tuned);
        }
        let mut programs = vec![built_in];
        for turn in 0..most {
            let tried: Vec<_> = asked.iter().filter_map(|a| Some((a, *a.alternatives.get(turn)?))).collect();
            programs.extend(compiled(&kernels, &tuned, &tried, &build)?);
        }
        let scratch = Scratch::shared(&programs.iter().collect::<Vec<_>>())?;
        let runs = programs.iter().map(|program| Run::new(program.bind_with(bindings, &scratch)?, &asked));
        let mut runs = runs.collect::<Result<Vec<_>>>()?;
        self.time_runs(&mut runs)?;
        for (i, Asked { key, .. }) in asked.into_iter().enumerate() {
            let mut measured = runs.iter_mut().map(|run| run.median(i));
            let Some((form, time)) = measured.next().flatten() else { continue };
            let fastest = measured.flatten().min_by(|(_, a), (_, b)| a.total_cmp(b));
            let (form, least) = fastest.filter(|(_, least)| *least < CLEARLY_LESS * time).unwrap_or((form, time));
            let [nanoseconds, built_in_nanoseconds] = [least, time].map(|t| t.round() as u64);
            tuned.add(Entry { case: key, form, nanoseconds, built_in_nanoseconds });
        }
        Ok(tuned)
    }

    /// Times all runs in turns, each from the states that the first found.
    fn time_runs(&self, runs: &mut [Run]) -> Result<()> {
        let Some(first) = runs.first() else { return Ok(()) };
        self.expect_own(&first.plan)?;
        let states = States::save(self, &first.plan)?;
        let start = Instant::now();
        let (mut rounds, mut warm) = (0, false);
        while rounds < FEWEST || (rounds < ROUNDS && start.elapsed() < BUDGET) {
            for run in &mut *runs {
                let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                states.put_back(&mut encoder);
                let times = self.time_behind(encoder, &run.plan, &run.timing)?;
                if warm {
                    let times: Vec<f64> = times.into_iter().map(|(_, time)| time).collect();
                    run.parts.iter_mut().for_each(|part| part.take(&times));
                }
            }
            rounds += usize::from(warm);
            warm |= start.elapsed() >= WARM_UP;
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        states.put_back(&mut encoder);
        self.submit("states", encoder)?;
        Ok(())
    }
}

/// A case that a program asked for, and that more than one form can run.
struct Asked {
    key: Key,
    /// All but the form that it has.
    alternatives: Vec<Choice>,
}

impl Asked {
    /// The cases of a program that nobody pinned or measured.
    fn of(program: &Program, kernels: &Kernels, tuned: &Tuned) -> Vec<Self> {
        let (class, options) = (kernels.class(), kernels.options());
        let mut all: Vec<Self> = Vec::new();
        for case in program.dispatches().iter().filter_map(|d| d.case) {
            let Some(key) = Key::of(&case, options.batch_invariant) else { continue };
            let pinned = tuning::pinned(&case, class, &options.pinned).is_some();
            if pinned || tuned.has(&key) || all.iter().any(|asked| asked.key == key) {
                continue;
            }
            let alternatives = alternatives(&case, class, options.batch_invariant).split_off(1);
            if !alternatives.is_empty() {
                all.push(Self { key, alternatives });
            }
        }
        all
    }
}

/// The program with all of `tried`, its variants compiled; where the device refuses that, one for each half.
fn compiled(
    kernels: &Kernels,
    tuned: &Tuned,
    tried: &[(&Asked, Choice)],
    build: &impl Fn(&Kernels) -> Result<Program>,
) -> Result<Vec<Program>> {
    let mut table = tuned.clone();
    for (Asked { key, .. }, choice) in tried {
        let (case, form) = (key.clone(), Form::from(*choice));
        table.add(Entry { case, form, nanoseconds: 0, built_in_nanoseconds: 0 });
    }
    let kernels = &kernels.with_tuned(table);
    let program = build(kernels).and_then(|program| {
        program.variants().iter().try_for_each(|variant| kernels.pipeline(variant).map(drop))?;
        Ok(program)
    });
    match program {
        Ok(program) => Ok(vec![program]),
        Err(Error::Limit { .. } | Error::Option { .. } | Error::Compile { .. }) => {
            let (left, right) = tried.split_at(tried.len() / 2);
            let halves = [left, right].into_iter().filter(|half| (1..tried.len()).contains(&half.len()));
            let programs = halves.map(|half| compiled(kernels, tuned, half, build));
            Ok(programs.collect::<Result<Vec<_>>>()?.concat())
        }
        Err(error) => Err(error),
    }
}

/// A plan with the times of what it runs.
struct Run {
    plan: Plan,
    timing: Timing,
    /// One for each case.
    parts: Vec<Part>,
}

/// All dispatches of one case.
#[derive(Default)]
struct Part {
    dispatches: Vec<usize>,
    launches: usize,
    form: Option<Form>,
    /// Whether they are not all of that form.
    mixed: bool,
    /// Of one launch.
    times: Vec<f64>,
}

impl Run {
    fn new(plan: Plan, asked: &[Asked]) -> Result<Self> {
        let timing = Timing::new(&plan)?;
        let batch_invariant = plan.program().inner.kernels.options().batch_invariant;
        let mut parts: Vec<Part> = asked.iter().map(|_| Part::default()).collect();
        let mut at = None;
        for (i, (dispatch, variant)) in plan.program().dispatches().iter().zip(plan.variants()).enumerate() {
            if !dispatch.second {
                let key = dispatch.case.and_then(|case| Key::of(&case, batch_invariant));
                at = key.and_then(|key| asked.iter().position(|asked| asked.key == key));
            }
            let Some(part) = at.map(|at| &mut parts[at]) else { continue };
            let form = Form::from(Choice { kernel: variant.kernel.name, class: variant.class, tier: variant.tier });
            let same = dispatch.second || part.form.as_ref().is_none_or(|first| *first == form);
            // Another variant stands in where views are not aligned.
            part.mixed |= !same || variant != dispatch.variant;
            part.dispatches.push(i);
            if !dispatch.second {
                part.launches += 1;
                part.form = Some(form);
            }
        }
        Ok(Self { plan, timing, parts })
    }

    /// Form and time of a case.
    fn median(&mut self, case: usize) -> Option<(Form, f64)> {
        let Part { form, mixed, times, .. } = &mut self.parts[case];
        times.sort_by(f64::total_cmp);
        Some((form.clone().filter(|_| !*mixed)?, *times.get(times.len() / 2)?))
    }
}

impl Part {
    fn take(&mut self, times: &[f64]) {
        if self.launches > 0 {
            let all: f64 = self.dispatches.iter().map(|&i| times[i]).sum();
            self.times.push(all / self.launches as f64);
        }
    }
}

/// What a program's states held.
struct States(Vec<Saved>);

struct Saved {
    buffer: wgpu::Buffer,
    offset: u64,
    copy: wgpu::Buffer,
}

impl States {
    fn save(gpu: &Gpu, plan: &Plan) -> Result<Self> {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut all = Vec::new();
        for (name, ..) in plan.program().tensors().filter(|(_, role, ..)| *role == Role::State) {
            let Some(view) = plan.view(name) else { continue };
            let buffer = view.buffer().clone();
            for (usage, needed) in [(wgpu::BufferUsages::COPY_SRC, "COPY_SRC"), (wgpu::BufferUsages::COPY_DST, "COPY_DST")] {
                if !buffer.usage().contains(usage) {
                    let found = format!("{:?}", buffer.usage());
                    return Err(Error::Usage { tensor: name.to_owned(), needed, found });
                }
            }
            let (size, layout) = (view.element().size(), view.layout());
            // Whole words around an f16 view.
            let offset = (view.offset() * size) & !3;
            let bytes = ((view.offset() + layout.extent()) * size).next_multiple_of(4) - offset;
            let copy = gpu.buffer(bytes)?;
            encoder.copy_buffer_to_buffer(&buffer, offset, &copy, 0, bytes);
            all.push(Saved { buffer, offset, copy });
        }
        gpu.submit("states", encoder)?;
        Ok(Self(all))
    }

    fn put_back(&self, encoder: &mut wgpu::CommandEncoder) {
        for Saved { buffer, offset, copy } in &self.0 {
            encoder.copy_buffer_to_buffer(copy, 0, buffer, *offset, copy.size());
        }
    }
}
