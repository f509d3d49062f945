//! What holds of every row of the table.
#![allow(clippy::panic, clippy::unwrap_used)]

use super::row::FEW_ROWS_BESIDE_MATRICES;
use super::*;
use crate::storage::{MatrixSize, Storage};

/// Rule: the table says why, and names only variants that there are.
#[test]
fn every_row_has_a_reason_and_a_variant() {
    let all = crate::kernels::variants();
    for row in table() {
        assert!(!row.why.is_empty());
        let there = |v: &Variant| {
            (row.kernel.is_empty() || v.kernel.name == row.kernel) && v.class.name == row.class.name && v.tier == row.tier
        };
        assert!(all.iter().any(there), "no variant {} {}", row.kernel, row.class.name);
    }
}

fn case(row: &Row, storage: Storage) -> Case {
    Case {
        operation: row.operation,
        kernel: row.kernel,
        storage,
        rows: 64,
        columns: 64,
        depth: 64,
        ragged_columns: false,
        invariant: false,
        cached: false,
    }
}

/// Rule: what a row fits there is a variant for. A pin or a measurement may choose it whatever is best.
#[test]
fn every_row_fits_only_storages_that_its_variant_comes_in() {
    let all = crate::kernels::variants();
    let mut count = 0;
    for row in table().filter(|row| !row.kernel.is_empty()) {
        for matrix in [MatrixSize::M8, MatrixSize::M16] {
            for &storage in Storage::ALL {
                let device = DeviceClass {
                    cpu: false,
                    features: wgpu::Features::all(),
                    matrix: Some(matrix),
                    f32_by_matrices: true,
                    workgroup_bytes: 1 << 16,
                    invocations: 256,
                };
                if !(row.fits)(&case(row, storage), &device) {
                    continue;
                }
                // `linear_few` takes f16 in pairs on CPU adapters.
                let pairs = storage == Storage::F16x4 && row.class.find("K_THREADS") == Some(1);
                let stored = if pairs { Storage::Packedx4 } else { storage };
                let there = |v: &&Variant| {
                    (v.kernel.name, v.class.name, v.storage, v.tier) == (row.kernel, row.class.name, stored, row.tier)
                };
                assert!(all.iter().any(|v| there(&v)), "{} {} {}", row.kernel, stored.name(), row.class.name);
                count += 1;
            }
        }
    }
    assert!(count > 0);
}

/// Rule: a shader that declares more workgroup memory than every device has fits only devices that have it.
#[test]
fn rows_know_their_workgroup_memory() {
    const CORE_BYTES: u32 = 16_384;
    for variant in crate::kernels::variants() {
        let module = naga::front::wgsl::parse_str(&variant.source()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
        let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size).sum();
        if bytes <= CORE_BYTES {
            continue;
        }
        let size = if variant.class.get("MATRIX") == 8 { MatrixSize::M8 } else { MatrixSize::M16 };
        let device = |workgroup_bytes| DeviceClass {
            cpu: false,
            features: variant.features(),
            matrix: Some(size),
            f32_by_matrices: true,
            workgroup_bytes,
            invocations: 256,
        };
        let rows = || table().filter(|r| (r.kernel, r.class.name) == (variant.kernel.name, variant.class.name));
        assert!(rows().count() > 0, "{variant:?} is in no row");
        for row in rows() {
            let case = case(row, variant.storage);
            assert!(!(row.fits)(&case, &device(bytes - 1)), "{variant:?} needs {bytes} bytes");
            assert!((row.fits)(&case, &device(49_152)), "{variant:?} fits no device");
        }
    }
}

/// Devices of each kind: CPU adapters and GPUs, with and without subgroups and matrices, with little and much workgroup memory.
fn devices() -> Vec<DeviceClass> {
    let matrix = Tier::Matrix.features(Storage::F16);
    let mut all = Vec::new();
    for features in [wgpu::Features::empty(), Tier::Subgroups.features(Storage::F16), matrix] {
        for size in [None, Some(MatrixSize::M16), Some(MatrixSize::M8)] {
            if size.is_some() != features.contains(matrix) {
                continue;
            }
            for (cpu, workgroup_bytes) in [(true, 32_768), (false, 16_384), (false, 49_152)] {
                let f32_by_matrices = size.is_some();
                let invocations = 256;
                all.push(DeviceClass { cpu, features, matrix: size, f32_by_matrices, workgroup_bytes, invocations });
            }
        }
    }
    all
}

const OPERATIONS: [(Operation, &str); 12] = [
    (Operation::Linear, ""),
    (Operation::LinearWide, "linear_wide"),
    (Operation::LinearFew, "linear_few"),
    (Operation::LinearNormed, "linear_append"),
    (Operation::LinearBlocks, "linear_blocks"),
    (Operation::Attention, ""),
    (Operation::AttentionWeights, "attention_weights"),
    (Operation::AttentionScores, "attention_scores"),
    (Operation::AttentionValues, "attention_values"),
    (Operation::Rows, "layer_norm"),
    (Operation::Rows, "masked_softmax"),
    (Operation::Choose, "choose"),
];

/// Rule: no size is too large to be asked about, though nothing of it could ever run.
#[test]
fn no_size_overflows() {
    for (device, (operation, kernel)) in devices().iter().flat_map(|d| OPERATIONS.iter().map(move |o| (d, *o))) {
        for (storage, invariant) in Storage::ALL.iter().flat_map(|&storage| [(storage, false), (storage, true)]) {
            let huge = usize::MAX;
            let case = Case {
                operation,
                kernel,
                storage,
                rows: huge,
                columns: huge,
                depth: huge,
                ragged_columns: false,
                invariant,
                cached: false,
            };
            let classes: Vec<_> = fitting(&case, device).map(|choice| choice.class.name).collect();
            assert!(classes.is_empty() || classes.contains(&best(&case, device).class.name), "{case:?}");
        }
    }
}

/// Rule: batch invariant, nothing is chosen by the number of rows; of the forms for few rows all sum in one order.
#[test]
fn rows_decide_nothing_where_batches_must_not() {
    for device in devices() {
        for (operation, kernel) in OPERATIONS {
            for (storage, cached) in Storage::ALL.iter().flat_map(|&s| [(s, false), (s, true)]) {
                for (columns, depth) in [(8, 64), (64, 64), (96, 128), (768, 768), (3072, 768), (50_257, 4096)] {
                    let chosen = |rows| {
                        let (ragged_columns, invariant) = (false, true);
                        let case =
                            Case { operation, kernel, storage, rows, columns, depth, ragged_columns, invariant, cached };
                        let Choice { kernel, class, tier } = best(&case, &device);
                        match class.find("K_THREADS") {
                            Some(threads) => (kernel, threads.to_string(), None),
                            None => (kernel, class.name.to_owned(), Some(tier)),
                        }
                    };
                    let one = chosen(1);
                    for rows in [2, 3, 4, 8, 9, 16, 17, 32, 33, 40, 41, 64, 65, 128, 1000, 4096] {
                        assert_eq!(chosen(rows), one, "{operation:?} {storage:?} {columns} {depth} {rows} {device:?}");
                    }
                }
            }
        }
    }
}

/// Rule: few rows take the form that reads each weight once and has norms and caches in it, whatever else a GPU has.
#[test]
fn few_rows_are_few_beside_matrices() {
    for device in devices().into_iter().filter(|device| !device.cpu && device.f16()) {
        for rows in 1..=FEW_ROWS_BESIDE_MATRICES {
            for columns in [768, 3072, 12_288, 16_384, 50_257, 250_000] {
                let (operation, storage, depth) = (Operation::Linear, Storage::F16x4, 4096);
                let (ragged_columns, invariant, cached, kernel) = (false, false, true, "");
                let case = Case { operation, kernel, storage, rows, columns, depth, ragged_columns, invariant, cached };
                assert_eq!(best(&case, &device).kernel, "linear_few", "{rows} × {columns}, {device:?}");
            }
        }
    }
}

/// Rule: of tiles on matrix units the one is taken whose rounds take an H100 least, of those that are no wider than the output; with
/// 16 KiB of workgroup memory the one that fits. The rows are layers' projections: rows, columns, depth, tile.
#[test]
fn rounds_decide_between_tiles_on_matrix_units() {
    let class = |device: &DeviceClass, [rows, columns, depth]: [usize; 3]| {
        let (operation, storage, kernel) = (Operation::Linear, Storage::F16x4, "");
        let (ragged_columns, invariant, cached) = (false, false, false);
        let case = Case { operation, kernel, storage, rows, columns, depth, ragged_columns, invariant, cached };
        best(&case, device).class.name
    };
    let on = |bytes| {
        let units = |d: &DeviceClass| !d.cpu && d.matrix == Some(MatrixSize::M16) && d.workgroup_bytes == bytes;
        devices().into_iter().find(units).unwrap()
    };
    let (large, small) = (on(49_152), on(16_384));
    for (shape, tile) in [
        ([4096, 4096, 4096], "128x128x32m16"),
        // BERT-base: three rounds of the largest tile, and one.
        ([4096, 3072, 768], "128x128x32m16"),
        ([4096, 768, 3072], "128x128x32m16"),
        // MiniLM: short sums, for which beginnings and ends weigh most.
        ([4096, 1152, 384], "64x64x32m16"),
        ([4096, 384, 384], "64x64x32m16"),
        // The decoder of 2017: one round of the smaller tile, deep.
        ([2048, 512, 512], "64x64x64m16"),
        ([2048, 512, 2048], "64x64x64m16"),
        // Too narrow for the largest.
        ([200_000, 100, 4096], "64x64x64m16"),
    ] {
        assert_eq!(class(&large, shape), tile, "{shape:?}");
        assert_eq!(class(&small, shape), "64x64x32m16", "{shape:?}");
    }
}
