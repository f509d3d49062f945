//! What holds of every variant, without an adapter.
#![allow(clippy::panic, clippy::unwrap_used)]

use super::*;
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn module(variant: &Variant) -> naga::Module {
    let source = variant.source();
    match naga::front::wgsl::parse_str(&source) {
        Ok(module) => module,
        Err(error) => panic!("{variant:?}: {}", error.emit_to_string(&source)),
    }
}

fn capabilities(variant: &Variant) -> Capabilities {
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32; // unpack2x16float, which WebGPU always has
    for (feature, capability) in [
        (wgpu::Features::SHADER_F16, Capabilities::SHADER_FLOAT16),
        (wgpu::Features::SUBGROUP, Capabilities::SUBGROUP),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, Capabilities::COOPERATIVE_MATRIX),
    ] {
        allowed.set(capability, variant.features().contains(feature));
    }
    allowed
}

/// Every variant is WGSL that any WebGPU implementation with its features may take: core ones need none.
#[test]
fn every_variant_validates_without_an_adapter() {
    for variant in variants() {
        if let Err(error) = Validator::new(ValidationFlags::all(), capabilities(&variant)).validate(&module(&variant)) {
            panic!("{variant:?}: {}", error.emit_to_string(&variant.source()));
        }
    }
}

/// Rule: a variable in a loop is written with its value. WGSL zeroes one without each time around, but Tint, where it writes SPIR-V,
/// and older nagas do so once, in front of the loop, so that what it adds up goes on from the last time.
#[test]
fn variables_in_loops_have_their_values() {
    fn loops(block: &naga::Block, found: &mut Vec<std::ops::Range<usize>>) {
        for (statement, span) in block.span_iter() {
            match statement {
                naga::Statement::Block(inner) => loops(inner, found),
                naga::Statement::If { accept, reject, .. } => {
                    loops(accept, found);
                    loops(reject, found);
                }
                naga::Statement::Switch { cases, .. } => cases.iter().for_each(|case| loops(&case.body, found)),
                naga::Statement::Loop { .. } => found.extend(span.to_range()),
                _ => {}
            }
        }
    }
    let mut met = std::collections::BTreeSet::new();
    for variant in variants() {
        let (source, module) = (variant.source(), module(&variant));
        for function in module.functions.iter().map(|(_, f)| f).chain(module.entry_points.iter().map(|e| &e.function)) {
            let mut within = Vec::new();
            loops(&function.body, &mut within);
            for (handle, _) in function.local_variables.iter() {
                let at = function.local_variables.get_span(handle).to_range().unwrap();
                let text = &source[at.clone()];
                // Others are naga's own, for `&&` and `||`.
                if text.starts_with("var ") && within.iter().any(|range| range.contains(&at.start)) {
                    assert!(text.contains('='), "{variant:?}: {text}");
                    met.insert(text.to_owned());
                }
            }
        }
    }
    for known in ["var scores = Scores()", "var sums = Sums()", "var moments = Moments()"] {
        assert!(met.contains(known), "{known} is not among {met:?}");
    }
}

/// Rule: where forms must agree to the bit, fma is spelled out: no product feeds an addition that a compiler may contract it with.
#[test]
fn no_addition_is_contractible() {
    // Kernels, how lines begin, and why no other form need agree.
    const ALLOWED: &[(&str, &str, &str)] = &[
        ("choose", "", "a device has one class of it"),
        ("beam_candidates", "let log_prob = 2.0 * half - log_sum;", "a device has one class of it"),
        ("layer_norm", "for (var g = 0u; g < GROUPS; g++) { kept[g] += residual4(", "comes before `kept` is scaled"),
        ("layer_norm", "kept[g] -= mean;", "comes before `kept` is scaled"),
        ("layer_norm", "sum += ", "comes before `kept` is scaled"),
        ("layer_norm", "rests += ", "comes before `kept` is scaled"),
        ("attention_matrix", "", "nothing else has the bits of matrices"),
        ("", "fn add_scaled(c: MatrixC,", "nothing else has the bits of matrices"),
    ];
    let mut met = std::collections::BTreeSet::new();
    for variant in variants() {
        let (source, module) = (variant.source(), module(&variant));
        let info = Validator::new(ValidationFlags::all(), capabilities(&variant)).validate(&module);
        let info = info.unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        for line in contraction::contractible(&module, &info, &source) {
            let allows = |&&(kernel, start, _): &&(&str, &str, &str)| {
                (kernel.is_empty() || kernel == variant.kernel.name) && line.starts_with(start)
            };
            let allowed = ALLOWED.iter().find(allows).unwrap_or_else(|| panic!("{variant:?}: {line}"));
            met.insert(allowed);
        }
    }
    assert_eq!(met.len(), ALLOWED.len(), "of what is allowed there is only {met:?}");
}

/// Parameters have one source, in Rust: WGSL's structs agree with it name by name and byte by byte.
#[test]
fn parameters_lie_where_wgsl_expects_them() {
    for variant in variants() {
        let module = module(&variant);
        let fields = |name: &str| {
            module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).map(|(_, ty)| match &ty.inner {
                naga::TypeInner::Struct { members, span } => {
                    let members = members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset as usize));
                    (members.collect::<Vec<_>>(), *span as usize)
                }
                other => panic!("{name} is {other:?}"),
            })
        };
        let owned = |fields: &[(&str, usize)]| fields.iter().map(|(n, o)| ((*n).to_owned(), *o)).collect::<Vec<_>>();
        let (found, span) = fields("Params").expect("a struct Params");
        assert_eq!(found, owned(variant.kernel.params_fields), "{variant:?}");
        assert_eq!(span, variant.kernel.params_size, "{variant:?}");
        if let Some((found, span)) = fields("Attention") {
            assert_eq!(found, owned(visibility::Attention::FIELDS), "{variant:?}");
            assert_eq!(span, size_of::<visibility::Attention>(), "{variant:?}");
        }
    }
}

/// The host's table of bindings is the shader's: names, groups, numbers, access.
#[test]
fn bindings_are_those_of_the_shader() {
    for variant in variants() {
        let module = module(&variant);
        let mut found: Vec<(String, u32, u32, bool)> = Vec::new();
        for (_, global) in module.global_variables.iter() {
            if let (Some(at), naga::AddressSpace::Storage { access }) = (global.binding, global.space) {
                let writes = access.contains(naga::StorageAccess::STORE);
                found.push((global.name.clone().unwrap_or_default(), at.group, at.binding, writes));
            }
        }
        let mut expected: Vec<_> = variant.bindings().map(|b| (b.name.to_owned(), b.group, b.binding, b.writes)).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{variant:?}");
        assert!(found.len() <= 8, "{variant:?} has {} storage buffers; WebGPU's default is 8", found.len());
    }
}

/// What a plan takes where its views are not aligned is a variant like any other: listed, validated and counted.
#[test]
fn what_stands_in_for_a_variant_is_one() {
    let all = variants();
    // What it writes is scratch, which is aligned, and blocks are loaded in units of their own.
    for variant in all.iter().filter(|v| v.kernel.name != "unpack_blocks") {
        let stand_in = variant.unaligned();
        assert!(all.contains(&stand_in), "{stand_in:?} for {variant:?}");
        if stand_in.storage == Storage::Packed {
            let typed = Variant { storage: Storage::F16, ..stand_in };
            assert!(all.contains(&typed), "{typed:?} for {variant:?} on a device with the f16 type");
        }
    }
}

/// Few variants: only storage, tile class and outputs specialise a pipeline.
#[test]
fn variants_are_few_and_differ() {
    let all = variants();
    let names: std::collections::HashSet<_> = all.iter().map(Variant::name).collect();
    assert_eq!(names.len(), all.len());
    assert!(all.len() <= 304, "{} variants", all.len());
    let wide = all.iter().filter(|v| v.features().is_empty() && Storage::WIDE.contains(&v.storage)).count();
    assert!(wide <= 97, "{wide} core variants of f32");
}

/// Rule: few branches are written out. Compilers put functions in place of calls, and some take time and memory that grow faster than
/// the number of branches that this makes: SwiftShader comes to no end with 400 of them.
#[test]
fn branches_are_few() {
    fn count(module: &naga::Module, block: &naga::Block) -> usize {
        block
            .iter()
            .map(|statement| match statement {
                naga::Statement::Block(inner) => count(module, inner),
                naga::Statement::If { accept, reject, .. } => 1 + count(module, accept) + count(module, reject),
                naga::Statement::Switch { cases, .. } => cases.iter().map(|case| 1 + count(module, &case.body)).sum(),
                naga::Statement::Loop { body, continuing, .. } => 1 + count(module, body) + count(module, continuing),
                naga::Statement::Call { function, .. } => count(module, &module.functions[*function].body),
                _ => 0,
            })
            .sum()
    }
    for variant in variants() {
        let module = module(&variant);
        let branches = count(&module, &module.entry_points[0].function.body);
        assert!(branches <= 300, "{variant:?} has {branches} branches");
    }
}
