//! The example of a model of one's own runs, on a GPU and without one.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../examples/own_model.rs"]
#[allow(dead_code)]
mod own_model;

use tileformer::convenience::{Gpu, Setup};

/// Rule: what the GPU makes of the model is what the reference makes of it, which needs no GPU.
#[test]
fn the_gpu_says_what_the_reference_says() {
    let alone = own_model::run(None).unwrap();
    assert!(alone.gpu.is_none() && alone.reference.len() == 3 * alone.classes);
    let texts: Vec<_> = alone.reference.chunks(alone.classes).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);

    let both = own_model::run(Some(&Gpu::open(&Setup::default()).unwrap())).unwrap();
    assert_eq!(both.reference, alone.reference);
    let same = both.gpu.unwrap().iter().zip(&both.reference).filter(|(found, right)| f64::from(**found) == **right).count();
    assert!(same < both.reference.len(), "f32 and f64 agree everywhere to the last bit");
}
