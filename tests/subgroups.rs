//! The subgroup tier at every size that a subgroup may have, whatever the adapter's is: shuffles are emulated in workgroup memory.
#![cfg(any(debug_assertions, feature = "live-shaders"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::few::{Case, check, data};
use common::{Done, On, Place, Run, floats, on_form, seeded};
use tileformer::kernels::{Argmax, FusedAttention, Linear, Visibility};
use tileformer::{Activation, AttentionOptions, Element, Layout, Sequence, Sequences};

/// The tier's shared parts, and what they add up.
const PARTS: [(&str, &str, &str); 3] = [
    ("rows_subgroups", include_str!("../shaders/shared/rows_subgroups.wgsl"), "f32"),
    ("few_subgroups", include_str!("../shaders/shared/few_subgroups.wgsl"), "vec4"),
    ("threads_quads", include_str!("../shaders/shared/threads_quads.wgsl"), "vec4"),
];

/// A shared part with its subgroups emulated, `size` threads each.
fn emulated(text: &str, size: u32, kind: &str) -> String {
    const HEAD: &str = "fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let emulated = emulate(index);
  let subgroup = emulated.size;
  let number = emulated.number;
  let lane = emulated.lane;";
    let (front, entry) = text.split_once("fn main(").unwrap();
    let (_, body) = entry.split_once("{\n").unwrap();
    let text = format!("{front}{HEAD}\n{body}")
        .replace("subgroupShuffleXor(sum,", &format!("exchange_{kind}(sum,"))
        .replace("subgroupShuffleXor(largest,", "exchange_u32(largest,");
    assert!(!text.contains("subgroupShuffle") && !text.contains("@builtin(subgroup"), "not all is emulated:\n{text}");
    format!("const EMULATED: u32 = {size}u;\n{}\n{text}", include_str!("common/emulated_subgroups.wgsl"))
}

/// Broadcasts of a quad emulated: the thread at place `r` is as many lanes off as its place differs.
fn emulated_quads(text: &str) -> String {
    let text = text.replace("quadBroadcast(mine, ", "exchange_vec4(mine, place ^ ");
    assert!(!text.contains("quadBroadcast("), "not all is emulated:\n{text}");
    text
}

/// Rule: whatever size subgroups have, 4 to 128, and in whichever order they and their lanes are numbered, the tier gives the bits of
/// the core tier. Runs itself again for each size, with the environment variable set that makes the crate read its shaders from elsewhere.
#[test]
fn every_size_gives_the_bits_of_the_core_tier() {
    for size in [4, 8, 16, 32, 64, 128] {
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("subgroups_of_{size}"));
        match std::env::var_os("TILEFORMER_SHADERS") {
            Some(given) if given == *dir => return compare_tiers(size),
            Some(_) => continue,
            None => {}
        }
        std::fs::create_dir_all(dir.join("shared")).unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.join(file).with_extension("wgsl"), text).unwrap();
        for (file, text, kind) in PARTS {
            write(&format!("shared/{file}"), &emulated(text, size, kind));
        }
        write("shared/tile_quads", &emulated_quads(include_str!("../shaders/shared/tile_quads.wgsl")));
        write("attention_quads", &emulated_quads(include_str!("../shaders/attention_quads.wgsl")));
        // Compilers take long for what is beside the point: activations, which no case has, and whole reductions.
        const NONE: &str =
            "fn activate_onto(v: vec4<f32>, kind: u32, added: vec4<f32>) -> vec4<f32> { return v + added; }\n";
        write("shared/activate", NONE);
        write("argmax", include_str!("common/three_reductions.wgsl"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "every_size_gives_the_bits_of_the_core_tier"]).env("TILEFORMER_SHADERS", &dir);
        let output = child.output().unwrap();
        assert!(output.status.success(), "subgroups of {size}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

fn compare_tiers(size: u32) {
    compare("argmax.f32x4.rows32", |on| reductions(on, 32));
    compare("argmax.f32x4.row128", |on| reductions(on, 128));
    // As many subgroups as there can be, two, one, and one that is not full.
    if [4, 32, 64, 128].contains(&size) {
        compare("linear_few.f32x4.1x64", few);
    }
    if [4, 16, 64].contains(&size) {
        compare_forms(["linear.f32x4.32x64-quads.subgroups", "linear.f32x4.64x64x16-plain"], linear);
        compare_forms(["attention.f32x4.64x32.v64-quads.subgroups", "attention.f32x4.64x32.v64"], attention);
    }
}

fn compare(form: &str, run: impl Fn(&On) -> Done) {
    compare_forms([&format!("{form}.subgroups"), form], run);
}

fn compare_forms(names: [&str; 2], run: impl Fn(&On) -> Done) {
    let forms = names.map(on_form);
    let [Some((subgroups, on)), Some((_, core))] = &forms else { return };
    let (found, right) = (run(on), run(core));
    assert_eq!(found.variants, [*subgroups]);
    assert!(
        found.tensor("y").bits() == right.tensor("y").bits(),
        "{subgroups:?} gives other bits than {:?}",
        right.variants
    );
}

/// Five rows of four numbers for each thread: the last workgroup is not full.
fn reductions(on: &On, threads: usize) -> Done {
    let sizes = [5, threads * 4];
    let mut run = Run::new(on, "reductions", Place::DENSE);
    let x = run.input("x", &sizes, &floats(&mut seeded("sizes", threads as u64), sizes[0] * sizes[1]));
    let ids = run.output_as("y", Element::U32, Layout::contiguous(&sizes[..1]).unwrap());
    run.builder.argmax("reductions", &Argmax { x, ids }).unwrap();
    run.go()
}

/// Three rows, one of which rests, longer than what a thread has under way, behind a layer norm.
fn few(on: &On) -> Done {
    let case = Case {
        rows: 3,
        d_in: 1796,
        d_out: 68,
        bias: true,
        norm: Some((true, true)),
        activation: Activation::Identity,
        residual: false,
        sequences: true,
        place: Place::DENSE,
        element: Element::F32,
    };
    let mut data = data(&case, &mut seeded("sizes", 0));
    data.sequences = [0, 2].map(|q_start| Sequence { q_start, q_len: 1, ..Sequence::default() }).to_vec();
    check(on, "sizes", case, &data)
}

/// More than a tile in every dimension.
fn linear(on: &On) -> Done {
    let (rows, d_in, d_out) = (70, 52, 68);
    let mut run = Run::new(on, "linear", Place::DENSE);
    let x = run.input("x", &[rows, d_in], &floats(&mut seeded("quads x", 0), rows * d_in));
    let weight = run.weight("weight", &[d_out, d_in], &floats(&mut seeded("quads weight", 0), d_out * d_in));
    let y = run.output("y", &[rows, d_out]);
    run.builder.linear("linear", &Linear::new(x, weight, y)).unwrap();
    run.go()
}

/// Two sequences of one head, more than a tile of keys and less than one, with a window, so that tiles are plain and masked.
fn attention(on: &On) -> Done {
    let (batch, longest, size) = (2, 70, 36);
    let mut run = Run::new(on, "attention", Place::DENSE);
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let sizes = [batch * longest, 1, size];
        run.input(name, &sizes, &floats(&mut seeded(name, 1), batch * longest * size))
    });
    let options = AttentionOptions { window_left: Some(40), ..AttentionOptions::default() };
    let sequences = Sequences::padded(&[longest, 21], longest).unwrap();
    let sequences = run.words("sequences", &[batch, 8], sequences.words());
    let visibility = Visibility { options, sequences: Some(sequences), ..Visibility::default() };
    let y = run.output("y", &[batch * longest, 1, size]);
    run.builder.attention("attention", &FusedAttention::new(q, k, v, [batch, longest, longest], visibility, y)).unwrap();
    run.go()
}
