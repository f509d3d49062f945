//! The embedding example runs, and stays true to its promise.

#[path = "../examples/engine.rs"]
#[allow(dead_code)]
mod engine;

#[test]
fn an_engine_records_two_plans_twice_into_one_encoder() {
    let report = engine::run().expect("a frame");
    assert_eq!(report.rows, 2 * (3 * 20 + 50));
    // On a GPU one product of each layer has too few tiles: parts of k, and their sum.
    let on_cpu = report.adapter.device_type == wgpu::DeviceType::Cpu;
    assert_eq!(report.dispatches, if on_cpu { [14, 14] } else { [16, 16] });
    assert!(report.scratch[0] < report.scratch[1], "{report:?}");
    assert!(report.max_error > 0.0, "f32 and f64 agree nowhere to the last bit: {report:?}");
}
