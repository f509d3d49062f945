//! A kernel in every class and tier that an adapter can run, whatever the table would choose there.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::run::On;
use tileformer::convenience::Gpu;
use tileformer::{Element, Options, Variant, wgpu};

/// The adapter of [`gpu`](super::gpu) with all that it has but the f16 type: f16 is stored in pairs there.
pub fn gpu_without_f16() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| super::open(|device| device.required_features.remove(wgpu::Features::SHADER_F16)))
}

/// The crate on `gpu` once for each class and tier in which `kernel` stores `element` there, that one pinned.
pub fn forms(gpu: &Gpu, kernel: &str, element: Element) -> Vec<On> {
    let mut pins: BTreeMap<String, Variant> = BTreeMap::new();
    for variant in tileformer::kernels::variants() {
        let name = variant.name();
        let parts: Vec<&str> = name.split('.').collect();
        let stored = if parts[1].starts_with("f32") { Element::F32 } else { Element::F16 };
        if parts[0] == kernel && stored == element && gpu.device.features().contains(variant.features()) {
            let class_and_tier: Vec<&str> = parts[2..].iter().copied().filter(|p| !p.starts_with("outputs")).collect();
            pins.insert(class_and_tier.join("."), variant);
        }
    }
    assert!(!pins.is_empty(), "no kernel {kernel} stores {}", element.name());
    pins.into_values().map(|pin| On::new(gpu.clone(), Options::default().with_pinned(pin))).collect()
}

/// The variant of this name, with a crate that prefers it, where the adapter can run it.
pub fn on_form(name: &str) -> Option<(Variant, On)> {
    let variant = tileformer::kernels::variants().into_iter().find(|v| v.name() == name).expect(name);
    let runs = super::gpu().device.features().contains(variant.features());
    runs.then(|| (variant, super::on_pinned(variant)))
}

/// The forms that a case runs in: all of them, or one, its turn by the case's number.
pub fn some(forms: &[On], all: bool, number: usize) -> &[On] {
    let one = number % forms.len();
    if all { forms } else { &forms[one..=one] }
}

/// As [`forms`], on a device with and on one without the f16 type, where that matters.
pub fn stored_forms(kernel: &str, element: Element) -> Vec<On> {
    let mut all = forms(super::gpu(), kernel, element);
    if element == Element::F16 {
        all.extend(forms(gpu_without_f16(), kernel, element));
    }
    all
}
