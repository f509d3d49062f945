//! Layers over key/value caches: the same rows as without a cache, however a text comes in.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{below, kernels};
use common::generating::{CAPACITY, Session, Text, generators, gpt, seeded_session, texts, twin_rows};
use common::{assert_close, largest, on_typed, seeded};
use rand::rngs::StdRng;
use tileformer::Element;
use tileformer::spec::cache::CachedRows;

/// Feeds the texts in random chunks, several texts at once in any order, and gives their rows.
fn in_chunks(session: &Session, texts: &[Text], most: usize, rng: &mut StdRng) -> Vec<Vec<f32>> {
    let width = session.generator.cross_attention().map_or(1, |a| a.k_width);
    let mut done = vec![0; texts.len()];
    let mut found = vec![Vec::new(); texts.len()];
    while done.iter().zip(texts).any(|(done, text)| *done < text.ids.len()) {
        let mut batch = Vec::new();
        for (slot, text) in texts.iter().enumerate() {
            let left = text.ids.len() - done[slot];
            // A text may rest in a batch, with no new rows.
            let new = if left > 0 { below(rng, left.min(most) + 1) } else { 0 };
            let memory = text.memory.as_ref().map_or(0, |m| m.f32.len() / width);
            batch.push((CachedRows { slot, past: done[slot], new }, &text.ids[done[slot]..done[slot] + new], memory));
        }
        if batch.iter().all(|b| b.0.new == 0) {
            continue;
        }
        for (slot, rows) in session.extend(&batch).into_iter().enumerate() {
            done[slot] += batch[slot].0.new;
            found[slot].extend(rows);
        }
    }
    found
}

/// Rule: whatever the chunks that a text comes in, its rows are those of the whole text without a cache.
#[test]
fn chunks_give_the_rows_of_the_whole_text() {
    for (number, (name, generator)) in generators().into_iter().enumerate() {
        let mut rng = seeded("cached", number as u64);
        let session = seeded_session(kernels(), &generator, Element::F32, &mut rng);
        let texts = texts(&generator, &[1, 17, CAPACITY, 30], &[3, 19, 1, 8], &mut rng);
        if generator.cross_attention().is_some() {
            session.remember(&texts.iter().map(|t| t.memory.as_ref().unwrap()).collect::<Vec<_>>());
        }
        for most in [1, 5, 64] {
            let found = in_chunks(&session, &texts, most, &mut rng);
            for (i, text) in texts.iter().enumerate() {
                let (twin, right) =
                    (twin_rows::<f32>(&generator, &session.made, text), twin_rows::<f64>(&generator, &session.made, text));
                assert_close(&format!("{name}, text {i}, chunks of up to {most}"), &found[i], &twin, &right, 2e-6);
            }
        }
    }
}

/// Rule: in f16 a cache costs no more than f16 does.
#[test]
fn f16_caches_are_as_good_as_f16() {
    for (number, (name, generator)) in generators().into_iter().enumerate() {
        // Pairs want even sizes.
        let sizes = [generator.embedding.d_model, generator.attention().head_size];
        if on_typed().is_none() && sizes.iter().any(|size| size % 2 != 0) {
            continue;
        }
        let mut rng = seeded("cached f16", number as u64);
        let session = seeded_session(kernels(), &generator, Element::F16, &mut rng);
        let texts = texts(&generator, &[1, 17, CAPACITY, 30], &[3, 19, 1, 8], &mut rng);
        if generator.cross_attention().is_some() {
            session.remember(&texts.iter().map(|t| t.memory.as_ref().unwrap()).collect::<Vec<_>>());
        }
        let whole: Vec<(CachedRows, &[u32], usize)> = texts
            .iter()
            .enumerate()
            .map(|(slot, t)| {
                let memory = t.memory.as_ref().map_or(0, |m| m.sizes[0]);
                (CachedRows { slot, past: 0, new: t.ids.len() }, &t.ids[..], memory)
            })
            .collect();
        let at_once = session.extend(&whole);
        let found = in_chunks(&session, &texts, 5, &mut rng);
        for (i, text) in texts.iter().enumerate() {
            let right = twin_rows::<f64>(&generator, &session.made, text);
            let error = |rows: &[f32]| {
                assert!(rows.iter().all(|v| v.is_finite()));
                rows.iter().zip(&right).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
            };
            let (chunked, once) = (error(&found[i]), error(&at_once[i]));
            let floor = 0.004 * largest(&right);
            assert!(chunked <= 2.0 * once + floor, "{name}, text {i}: {chunked} in chunks, {once} at once");
            assert!(once <= 0.02 * largest(&right), "{name}, text {i}: {once} of {}", largest(&right));
        }
    }
}

/// Rule: a shorter past forgets what stood behind it, and a slot can be used again.
#[test]
fn slots_are_truncated_and_reset() {
    let mut rng = seeded("truncate", 0);
    let generator = gpt(32, 4);
    let session = seeded_session(kernels(), &generator, Element::F32, &mut rng);
    let [first, second] = [30, 22].map(|n| texts(&generator, &[n], &[], &mut rng).remove(0));
    let feed =
        |past: usize, ids: &[u32]| session.extend(&[(CachedRows { slot: 2, past, new: ids.len() }, ids, 0)]).remove(0);
    feed(0, &first.ids);
    for past in [12, 0] {
        let text = Text { ids: [&first.ids[..past], &second.ids].concat(), memory: None };
        let found = feed(past, &second.ids);
        let skip = past * generator.embedding.d_model;
        let twin = twin_rows::<f32>(&generator, &session.made, &text).split_off(skip);
        let right = twin_rows::<f64>(&generator, &session.made, &text).split_off(skip);
        assert_close(&format!("{past} kept"), &found, &twin, &right, 2e-6);
    }
}
