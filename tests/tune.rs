//! Forms timed on the device at hand, the table of the fastest saved, read and handed back.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::OnceLock;

use common::cases::{Data, Made, Side, judge, run};
use common::floors::{self, Sublayer};
use common::{gpu, kernels, seeded};
use serde_json::{Value, json};
use tileformer::convenience::{Gpu, NO_ADAPTER, Setup};
use tileformer::kernels::{Linear, LinearFew};
use tileformer::layers::{EncoderLayer, Inputs};
use tileformer::reference::layers::encoder_layer;
use tileformer::{
    BatchShape, Bindings, Builder, Element, Error, Kernels, Layout, Options, Program, Result, Role, Sequences, Tuned,
    Variant, wgpu,
};

const LENGTHS: [usize; 2] = [24, 19];

/// An encoder layer with weights and rows, and the table of its forms.
struct Layer {
    spec: EncoderLayer,
    side: Side,
    made: Made,
    x: Data,
    bindings: Bindings,
    tuned: Tuned,
}

impl Layer {
    fn program(&self, options: Options) -> Program {
        self.spec.program(&kernels(options), &Inputs::new(self.side.shape)).unwrap()
    }
}

fn layer() -> &'static Layer {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    LAYER.get_or_init(|| tuned_layer(&Options::default()))
}

fn invariant_layer() -> &'static Layer {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    LAYER.get_or_init(|| tuned_layer(&Options::default().with_batch_invariant(true)))
}

fn tuned_layer(options: &Options) -> Layer {
    let spec = EncoderLayer::new(64, 4, 96);
    let side = Side::own(Sequences::padded(&LENGTHS, 24).unwrap()).shaped(BatchShape::padded(2, 24));
    let build = |kernels: &Kernels| spec.program(kernels, &Inputs::new(side.shape));
    let mut seed = seeded("tune", 1);
    let made = Made::of(&build(&kernels(options.clone())).unwrap(), &mut seed);
    let x = Data::random(&[48, 64], 1.5, &mut seed);
    let mut bindings = Bindings::new();
    made.bind(&mut bindings);
    side.bind("", &mut bindings);
    bindings.set("x", x.upload());
    let mut all = bindings.clone();
    all.set("y", gpu().zeros(Element::F32, &[48, 64]).unwrap());
    let tuned = gpu().tune(options, &all, build).unwrap();
    Layer { spec, side, made, x, bindings, tuned }
}

/// The forms of a program as kernel, class and tier, in the order of names.
fn forms(program: &Program) -> BTreeSet<String> {
    let form = |name: String| {
        let parts: Vec<&str> = name.split('.').collect();
        [&parts[..1], &parts[2..]].concat().join(".")
    };
    program.dispatches().iter().map(|d| form(d.variant().name())).collect()
}

/// The form of an entry in the same words.
fn form_of(entry: &Value) -> String {
    let form = &entry["form"];
    let tier = match form["tier"].as_str().unwrap() {
        "core" => String::new(),
        tier => format!(".{tier}"),
    };
    format!("{}.{}{tier}", form["kernel"].as_str().unwrap(), form["class"].as_str().unwrap())
}

fn entries(tuned: &Tuned) -> Vec<Value> {
    serde_json::to_value(tuned).unwrap()["entries"].as_array().unwrap().clone()
}

/// The table after `edit` of every entry of an operation.
fn edited(tuned: &Tuned, operation: &str, edit: impl Fn(&mut Value)) -> Tuned {
    let mut value = serde_json::to_value(tuned).unwrap();
    let mut count = 0;
    for entry in value["entries"].as_array_mut().unwrap() {
        if entry["case"]["operation"] == operation {
            edit(entry);
            count += 1;
        }
    }
    assert!(count > 0, "no {operation} in {tuned}");
    serde_json::from_value(value).unwrap()
}

/// The table with another form for every case of an operation.
fn with_form(tuned: &Tuned, operation: &str, kernel: &str, class: &str) -> Tuned {
    edited(tuned, operation, |entry| entry["form"] = json!({ "kernel": kernel, "class": class, "tier": "core" }))
}

/// The variants of a layer with its table but for `operations`.
fn built_in(layer: &Layer, options: &Options, operations: &[&str]) -> Vec<Variant> {
    let kept = |entry: &Value| !operations.iter().any(|operation| entry["case"]["operation"] == *operation);
    let kept: Vec<Value> = entries(&layer.tuned).into_iter().filter(kept).collect();
    let table = json!({ "device": layer.tuned.device(), "entries": kept });
    layer.program(options.clone().with_tuned(serde_json::from_value(table).unwrap())).variants()
}

/// Rule 5 for a layer's program.
fn check(what: &str, layer: &Layer, program: &Program) {
    let Layer { spec, side, made, x, bindings, .. } = layer;
    let (twin, _) = encoder_layer(spec, &made.weights(), "", &x.f32, &side.twin()).unwrap();
    let (right, _) = encoder_layer(spec, &made.weights(), "", &x.f64, &side.twin()).unwrap();
    let batch = side.twin();
    let (prefix, norm) = ("self_attn.".to_owned(), "norm1.".to_owned());
    let attention = Sublayer { spec: &spec.attention, prefix, norm, memory: None, batch: &batch };
    let floor = floors::layer(&[attention], &spec.feed_forward, &spec.norm, spec.placement, &made.weights(), "", &x.f64);
    judge(what, &run(program, bindings)["y"], &twin, &right, floor, 64, |row| side.has_row(row));
}

#[test]
fn a_table_has_what_a_layer_asks_for_and_is_followed() {
    let layer = layer();
    let operations: Vec<Value> = entries(&layer.tuned).iter().map(|e| e["case"]["operation"].clone()).collect();
    let count = |operation: &str| operations.iter().filter(|&o| o == operation).count();
    // Projections to 192, 64 and 96 columns, and one from 96; both norms are one case.
    assert_eq!([count("linear"), count("attention"), count("rows")], [4, 1, 1], "{}", layer.tuned);
    for entry in entries(&layer.tuned) {
        let [own, built_in] = ["nanoseconds", "built_in_nanoseconds"].map(|name| entry[name].as_u64().unwrap());
        assert!(0 < own && own <= built_in, "{entry}");
    }
    let program = layer.program(Options::default().with_tuned(layer.tuned.clone()));
    let expected: BTreeSet<String> = entries(&layer.tuned).iter().map(form_of).collect();
    let found = forms(&program);
    assert!(expected.is_subset(&found), "{expected:?} of {found:?}");
    check("as tuned", layer, &program);
}

#[test]
fn a_table_is_the_same_after_saving() {
    let tuned = &layer().tuned;
    let text = serde_json::to_string_pretty(tuned).unwrap();
    assert_eq!(serde_json::from_str::<Tuned>(&text).unwrap(), *tuned);
    for part in [tuned.device(), "linear", "attention", "nanoseconds"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// Forms that no table has on any device: what runs comes from the entries.
#[test]
fn a_layer_takes_whatever_form_its_table_names() {
    let layer = layer();
    for (kernel, class) in [("linear", "64x64x16-plain"), ("linear_few", "8x64"), ("linear_split", "32x32x32")] {
        let tuned = with_form(&layer.tuned, "linear", kernel, class);
        let tuned = with_form(&tuned, "attention", "attention", "64x128.v256");
        let program = layer.program(Options::default().with_tuned(tuned));
        let found = forms(&program);
        for form in [format!("{kernel}.{class}"), "attention.64x128.v256".into()] {
            assert!(found.contains(&form), "{form} of {found:?}");
        }
        assert_eq!(found.iter().any(|f| f.starts_with("linear_sum")), kernel == "linear_split");
        check(&format!("{kernel}.{class}"), layer, &program);
    }
}

#[test]
fn other_shapes_keep_the_built_in_choice() {
    let layer = layer();
    let tuned = with_form(&layer.tuned, "attention", "attention", "64x128.v256");
    let shape = Inputs::new(BatchShape::padded(2, 25));
    let variants = |options| layer.spec.program(&kernels(options), &shape).unwrap().variants();
    assert_eq!(variants(Options::default().with_tuned(tuned)), variants(Options::default()));
}

#[test]
fn a_table_of_another_device_or_with_unknown_names_is_refused() {
    let tuned = &layer().tuned;
    let refused = |tuned: Tuned| Kernels::new(&gpu().device, Options::default().with_tuned(tuned)).unwrap_err();
    let mut value = serde_json::to_value(tuned).unwrap();
    value["device"] = "Another adapter, tileformer 0.0.1".into();
    let Error::Option { what, expected, found } = refused(serde_json::from_value(value).unwrap()) else { panic!() };
    assert_eq!([&*what, &*expected], ["device of the tuned table", tuned.device()]);
    assert!(found.contains("Another adapter"), "{found}");

    for (kernel, class) in [("linear", "7x7"), ("attention", "64x64x16-plain"), ("", "")] {
        let Error::Option { what, found, .. } = refused(with_form(tuned, "linear", kernel, class)) else { panic!() };
        assert_eq!((what.as_str(), found), ("tuned table", format!("{kernel}.{class}")));
    }

    let core = Gpu::open(&Setup { core_only: true, ..Setup::default() }).expect(NO_ADAPTER);
    let error = Kernels::new(&core.device, Options::default().with_tuned(tuned.clone())).unwrap_err();
    assert!(matches!(error, Error::Option { .. }), "{error}");

    let mut value = serde_json::to_value(tuned).unwrap();
    value["entries"][0]["case"]["operation"] = "division".into();
    assert!(serde_json::from_value::<Tuned>(value).is_err());
}

/// Forms that would go through all weights or keys for every row.
#[test]
fn a_form_that_its_case_does_not_allow_is_passed_over() {
    let layer = layer();
    let tuned = with_form(&layer.tuned, "linear", "linear_few", "1x64");
    let tuned = with_form(&tuned, "attention", "attention_split", "1x128");
    let found = layer.program(Options::default().with_tuned(tuned)).variants();
    assert_eq!(found, built_in(layer, &Options::default(), &["linear", "attention"]));
}

#[test]
fn what_is_measured_or_pinned_is_not_measured_again() {
    let layer = layer();
    let mut bindings = layer.bindings.clone();
    bindings.set("y", gpu().zeros(Element::F32, &[48, 64]).unwrap());
    let build = |kernels: &Kernels| layer.spec.program(kernels, &Inputs::new(layer.side.shape));
    let tune = |options: &Options| gpu().tune(options, &bindings, build).unwrap();
    let marked = edited(&layer.tuned, "linear", |entry| entry["nanoseconds"] = 1.into());
    assert_eq!(tune(&Options::default().with_tuned(marked.clone())), marked);

    let pin = |name: &str| tileformer::kernels::variants().into_iter().find(|v| v.name() == name).expect(name);
    let pins = ["linear.f32x4.64x64x16-plain", "attention.f32x4.64x128.v256", "layer_norm.f32x4.rows32"];
    let options = pins.into_iter().fold(Options::default(), |options, name| options.with_pinned(pin(name)));
    assert!(tune(&options).is_empty());
    let both = layer.program(options.with_tuned(with_form(&layer.tuned, "linear", "linear_few", "8x64")));
    assert!(forms(&both).contains("linear.64x64x16-plain"), "{both:?}");
}

/// The promise: for batch invariant kernels neither the rows that were measured nor those that are asked for decide.
#[test]
fn batch_invariant_rows_do_not_decide() {
    let layer = invariant_layer();
    let invariant = || Options::default().with_batch_invariant(true);
    assert!(entries(&layer.tuned).iter().all(|entry| entry["case"]["rows"].is_null()), "{}", layer.tuned);
    let tuned = with_form(&layer.tuned, "linear", "linear", "64x64x16-plain");
    let tuned = with_form(&tuned, "rows", "layer_norm", "row128");
    let tuned = with_form(&tuned, "attention", "attention", "64x128.v256");
    let bits = |lengths: &[usize], from: usize| {
        let side = Side::own(Sequences::packed(lengths).unwrap());
        let kernels = kernels(invariant().with_tuned(tuned.clone()));
        let program = layer.spec.program(&kernels, &Inputs::new(side.shape)).unwrap();
        for form in ["linear.64x64x16-plain", "layer_norm.row128", "attention.64x128.v256"] {
            assert!(forms(&program).contains(form), "{form} of {program:?}");
        }
        let rows = lengths.iter().sum::<usize>();
        let mut bindings = Bindings::new();
        layer.made.bind(&mut bindings);
        side.bind("", &mut bindings);
        bindings.set("x", Data::new(&[rows, 64], layer.x.f32[from * 64..][..rows * 64].to_vec()).upload());
        run(&program, &bindings)["y"].iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let together = bits(&[1, 33, 7], 0);
    let alone = [(0, 1), (1, 33), (34, 7)].map(|(from, rows)| bits(&[rows], from)).concat();
    assert!(together == alone, "rows depend on what else is in the batch");
}

#[test]
fn no_table_breaks_batch_invariance() {
    let layer = invariant_layer();
    let invariant = Options::default().with_batch_invariant(true);
    let plain = layer.program(invariant.clone()).variants();
    // Measured for kernels that are not.
    let mut other = self::layer().tuned.clone();
    for (operation, kernel, class) in
        [("linear", "linear_few", "8x64"), ("rows", "layer_norm", "row128"), ("attention", "attention", "64x128.v256")]
    {
        other = with_form(&other, operation, kernel, class);
    }
    assert_eq!(layer.program(invariant.clone().with_tuned(other.clone())).variants(), plain);
    // The same as if it had been measured for them, with rows.
    for operation in ["linear", "rows", "attention"] {
        other = edited(&other, operation, |entry| entry["case"]["batch_invariant"] = true.into());
    }
    assert_eq!(layer.program(invariant.clone().with_tuned(other)).variants(), plain);
    // Forms that depend on the number of rows, for any number.
    for (operation, kernel, class) in
        [("linear", "linear_split", "32x32x32"), ("linear", "linear_few", "8x64"), ("attention", "attention_split", "8x128")]
    {
        let tuned = with_form(&layer.tuned, operation, kernel, class);
        let found = layer.program(invariant.clone().with_tuned(tuned)).variants();
        assert_eq!(found, built_in(layer, &invariant, &[operation]), "{kernel}");
    }
}

/// A projection of `rows` rows to a state.
fn to_state(kernels: &Kernels, rows: usize) -> Result<Program> {
    let mut b = Builder::new(kernels, "to a state");
    let x = b.input("x", Element::F32, Layout::contiguous(&[rows, 32])?)?;
    let weight = b.weight("weight", Layout::contiguous(&[64, 32])?)?;
    let y = b.state("y", Element::F32, Layout::contiguous(&[rows, 64])?)?;
    b.linear("linear", &Linear::new(x, weight, y))?;
    b.finish()
}

#[test]
fn states_are_put_back() {
    let mut seed = seeded("tune", 2);
    let mut bindings = Bindings::new();
    let y = Data::random(&[4, 64], 1.0, &mut seed);
    for (name, role, _, layout) in to_state(&kernels(Options::default()), 4).unwrap().tensors() {
        let data = if role == Role::State { y.clone() } else { Data::random(layout.sizes(), 1.0, &mut seed) };
        bindings.set(name, data.upload());
    }
    let tuned = gpu().tune(&Options::default(), &bindings, |kernels| to_state(kernels, 4)).unwrap();
    assert_eq!(tuned.len(), 1, "{tuned}");
    assert_eq!(gpu().read_f32(bindings.get("y").unwrap()).unwrap(), y.f32);
}

/// Forms are tried for all cases at once, but what the device refuses of one costs no other case its turn.
#[test]
fn a_form_that_the_device_refuses_is_left_out() {
    const REFUSED: [&str; 2] = ["linear.128x128x16", "attention.64x128.v256"];
    let layer = layer();
    let mut bindings = layer.bindings.clone();
    bindings.set("y", gpu().zeros(Element::F32, &[48, 64]).unwrap());
    let tune = |refused: &[&str], error: Error| {
        let (mut seen, mut builds) = (BTreeSet::new(), 0);
        let cells = (RefCell::new(&mut seen), RefCell::new(&mut builds));
        let tuned = gpu().tune(&Options::default(), &bindings, |kernels| {
            **cells.1.borrow_mut() += 1;
            let program = layer.spec.program(kernels, &Inputs::new(layer.side.shape))?;
            let forms = forms(&program);
            if refused.iter().any(|form| forms.contains(*form)) {
                return Err(error.clone());
            }
            cells.0.borrow_mut().extend(forms);
            Ok(program)
        });
        (tuned, seen, builds)
    };
    let limit = Error::Limit { what: "a form".into(), limit: "a limit", needed: 2, allowed: 1 };
    let (_, all, builds) = tune(&[], limit.clone());
    assert!(REFUSED.iter().all(|form| all.contains(*form)), "{all:?}");
    // As many as the case with most forms has here: not the sum over all cases. Parts that are added up make two dispatches of one form.
    let of = |operation: &str| {
        let second = ["linear_sum.flat", "attention_reduce.flat"];
        all.iter().filter(|form| form.starts_with(operation) && !second.contains(&form.as_str())).count()
    };
    assert_eq!(builds, of("linear").max(of("attention")), "{all:?}");

    let (tuned, seen, _) = tune(&REFUSED, limit);
    assert_eq!(all.difference(&seen).map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(REFUSED));
    let tuned = tuned.unwrap();
    assert_eq!(tuned.len(), layer.tuned.len(), "{tuned}");
    assert!(entries(&tuned).iter().all(|entry| !REFUSED.contains(&&*form_of(entry))), "{tuned}");

    let lost = Error::Device("lost".into());
    assert_eq!(tune(&REFUSED, lost.clone()).0.unwrap_err(), lost);
}

/// `linear_few` sums in one order for any number of rows, so that no table may mix classes that go along k in another width.
#[test]
fn few_rows_keep_their_order() {
    let build = |kernels: &Kernels| {
        let mut b = Builder::new(kernels, "few");
        let x = b.input("x", Element::F32, Layout::contiguous(&[3, 32])?)?;
        let weight = b.weight("weight", Layout::contiguous(&[64, 32])?)?;
        let y = b.output("y", Element::F32, Layout::contiguous(&[3, 64])?)?;
        b.linear_few("few", &LinearFew::new(Linear::new(x, weight, y)))?;
        b.finish()
    };
    let mut bindings = Bindings::new();
    for (name, _, element, layout) in build(&kernels(Options::default())).unwrap().tensors() {
        bindings.set(name, gpu().zeros(element, layout.sizes()).unwrap());
    }
    let tuned = gpu().tune(&Options::default(), &bindings, build).unwrap();
    let narrow = ["1x1-plain", "8x1-plain"];
    let wide = ["1x64", "8x64"];
    let (same, other) = if gpu().info.device_type == wgpu::DeviceType::Cpu { (narrow, wide) } else { (wide, narrow) };
    let with = |class: &str| {
        let tuned = with_form(&tuned, "linear_few", "linear_few", class);
        forms(&build(&kernels(Options::default().with_tuned(tuned))).unwrap())
    };
    let built_in = forms(&build(&kernels(Options::default())).unwrap());
    for (same, other) in same.into_iter().zip(other) {
        assert_eq!(with(same), BTreeSet::from([format!("linear_few.{same}")]));
        assert_eq!(with(other), built_in);
    }
}

#[test]
fn what_cannot_be_tuned_is_refused() {
    let build = |kernels: &Kernels| to_state(kernels, 4);
    let core = Gpu::open(&Setup { core_only: true, ..Setup::default() }).expect(NO_ADAPTER);
    let found = core.tune(&Options::default(), &Bindings::new(), build).unwrap_err();
    assert_eq!(found, Error::Feature { what: "tuning".into(), feature: "TIMESTAMP_QUERY" });
    let found = gpu().tune(&Options::default(), &Bindings::new(), build).unwrap_err();
    assert!(matches!(found, Error::Missing { .. }), "{found}");
    let found = gpu().tune(&Options::default(), &Bindings::new(), |kernels| to_state(kernels, 0)).unwrap_err();
    assert_eq!(found, to_state(&kernels(Options::default()), 0).unwrap_err());
}
