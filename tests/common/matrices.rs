//! Kernels on cooperative matrices, anywhere: where the adapter lacks them, their text runs on a shared part of the same interface
//! that computes in plain arrays (emulated_matrices.wgsl).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::On;
use tileformer::convenience::{Gpu, NO_ADAPTER, Setup};
use tileformer::{Options, Variant, kernels, wgpu};

/// Classes beyond 32 KiB of workgroup memory: where there are no matrix units there may be no more than that.
const LARGE: [&str; 3] = ["32x32x256m16", "128x128x16m16", "128x32.h128m16"];

fn open() -> Gpu {
    // SAFETY: a test may use experimental features; what they break, fails.
    unsafe { Gpu::open_experimental(&Setup::default()) }.expect(NO_ADAPTER)
}

/// The device: its matrix units, where it has any, are what these tests run on.
pub fn matrix_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(open)
}

/// The deepest product, or the most keys, that the adapter takes: Mesa before 25 leaves every loop once a thread has been around
/// 65535 times, and emulated matrices are loops.
pub fn deepest() -> usize {
    let info = &matrix_gpu().info;
    let major = info.driver_info.strip_prefix("Mesa ").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match info.device_type {
        wgpu::DeviceType::Cpu if major.is_some_and(|major| major < 25) => 64,
        _ => usize::MAX,
    }
}

/// A kernel's text with the shared part on plain arrays.
fn emulated(text: &str) -> String {
    let mut all = String::new();
    let mut entry = false;
    for line in text.lines() {
        all += &obscured(line).unwrap_or_else(|| line.to_owned());
        all += "\n";
        entry |= line.starts_with("fn main(");
        if entry && line.ends_with('{') {
            all += "  nothing = subgroupAdd(1u) >> 16u;\n";
            entry = false;
        }
    }
    all += &format!("const SMALLEST_SUBGROUP: u32 = {}u;\n", matrix_gpu().info.subgroup_min_size);
    all + include_str!("emulated_matrices.wgsl")
}

/// The same, with the loops over matrices left as loops: what software adapters have to compile is far less.
fn emulated_in_loops(text: &str) -> String {
    emulated(&text.replace("{  // unroll", "{"))
}

/// The same where a workgroup has three subgroups at most for its parts, of which there are four: the others only help to load.
fn emulated_by_three(text: &str) -> String {
    let mut fewer = text.to_owned();
    for (all, three) in [
        ("let part = first + subgroup;", "let part = first + select(subgroup, PARTS, subgroup >= 3u);"),
        ("first += subgroups", "first += min(subgroups, 3u)"),
        ("first + subgroups", "first + min(subgroups, 3u)"),
    ] {
        assert!(fewer.contains(all), "no {all:?} in the kernel");
        fewer = fewer.replace(all, three);
    }
    emulated_in_loops(&fewer)
}

/// Calls `check` with a variant and a crate that prefers it, where there are fewer subgroups than parts.
pub fn by_fewer_subgroups(name: &str, check: impl Fn(&Variant, &On)) {
    if !super::has_f16() {
        return; // operands are f16, emulated or not
    }
    let variant = kernels::variants().into_iter().find(|v| v.name() == name).expect(name);
    let options = Options::default().with_emulated_matrices(16, emulated_by_three);
    check(&variant, &On::new(open(), options.with_pinned(variant)));
}

/// A crate on the device that all tests share, with matrices of 16 emulated: f16 products run as on matrix units.
pub fn emulating() -> Options {
    Options::default().with_emulated_matrices(16, emulated_in_loops)
}

/// The head of a loop that is not marked, with a bound that no compiler knows: they would write it out, for minutes.
fn obscured(line: &str) -> Option<String> {
    let head = line.find("for (var ").filter(|_| !line.contains("// unroll"))?;
    let condition = head + line[head..].find("; ")? + 2;
    let end = condition + line[condition..].find(';')?;
    line[condition..end].contains(" < ").then(|| format!("{} + nothing{}", &line[..end], &line[end..]))
}

/// Calls `check` with each class of a kernel and a crate that prefers it: on matrix units where the adapter has those of its size,
/// else emulated, as the matrix units get the text for classes of `written_out`. As many run at once as there are processors,
/// each on a device of its own: software adapters compile for seconds, on one thread a device.
pub fn on_each_class(kernel: &str, written_out: &[&str], check: impl Fn(&Variant, &On) + Sync) {
    if !super::has_f16() {
        return; // operands are f16, emulated or not
    }
    let gpu = matrix_gpu();
    let mut classes: Vec<(String, Variant)> = Vec::new();
    for variant in kernels::variants() {
        let name = variant.name();
        // kernel.storage.class.matrix, the class with a dot in it or not
        let mut parts = name.trim_end_matches(".matrix").splitn(3, '.');
        let (Some(of), Some(_), Some(class)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if of == kernel && classes.iter().all(|(seen, _)| seen != class) {
            classes.push((class.to_owned(), variant));
        }
    }
    assert!(
        written_out.iter().all(|name| classes.iter().any(|(class, _)| class == name)),
        "{kernel} has no {written_out:?}"
    );

    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((class, variant)) = classes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let size = if class.ends_with("m8") { 8 } else { 16 };
            let real = gpu.cooperative_matrices.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [size; 3]);
            let emulate = if written_out.contains(&class.as_str()) { emulated } else { emulated_in_loops };
            let (gpu, options) = match real {
                true => (gpu.clone(), gpu.options()),
                false if LARGE.contains(&class.as_str()) => continue,
                false => (open(), Options::default().with_emulated_matrices(size, emulate)),
            };
            check(variant, &On::new(gpu, options.with_f32_by_matrices(true).with_pinned(*variant)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(classes.len()) {
            scope.spawn(work);
        }
    });
}
