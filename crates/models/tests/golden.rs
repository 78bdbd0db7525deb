//! Encoders against Transformers: small random checkpoints of every layout, and all-MiniLM-L6-v2.

mod common;

use burn::tensor::Device;
use common::{Golden, difference, golden};
use regard::Attention;
use regard::reduce::Reducer;
use regard_models::{Encoded, Folder, Pooling, TextEncoder, batches, pool};
use std::path::Path;

fn open(folder: &Path) -> TextEncoder {
    TextEncoder::open(&Folder::open(folder).expect("a folder"), &Device::flex()).expect("a model")
}

/// Ids are the same; vectors and hidden states are within 1e-4, all texts in one batch and each alone.
fn check(folder: &Path, golden: &[Golden]) {
    let model = open(folder);
    let texts: Vec<&str> = golden.iter().map(|golden| &golden.text[..]).collect();
    let tokens = model.tokenizer.encode(&texts).expect("tokens");
    for (tokens, golden) in tokens.iter().zip(golden) {
        assert_eq!(tokens.ids, golden.ids, "{:?}", golden.text);
    }
    let width = model.encoder.width();
    for most in [1, 64, usize::MAX] {
        for batch in batches(&tokens, most) {
            let vectors = model.vectors(&tokens[batch.clone()], Pooling::Mean, true).expect("vectors");
            for (vector, golden) in vectors.chunks_exact(width).zip(&golden[batch]) {
                let off = difference(vector, &golden.embedding);
                assert!(off <= 1e-4, "{:?} is off by {off} in batches of {most}", golden.text);
            }
        }
    }
    let ids: Vec<&[u32]> = tokens.iter().map(|tokens| &tokens.ids[..]).collect();
    let hidden = model.encoder.forward(&ids).expect("hidden states").tokens;
    for (range, golden) in hidden.ranges().zip(golden).filter(|(_, golden)| !golden.hidden.is_empty()) {
        let rows = hidden.x().clone().narrow(0, range.start, range.len()).into_data().try_to_vec::<f32>().expect("f32");
        let off = difference(&rows, &golden.hidden);
        assert!(off <= 1e-4, "hidden states of {:?} are off by {off}", golden.text);
    }
}

fn small(name: &str) {
    let folder = common::small(name);
    check(&folder, &golden::<Vec<Golden>>(&folder, "texts"));
}

#[test]
fn bert() {
    small("bert");
}

#[test]
fn bert_in_f16() {
    small("bert_f16");
}

#[test]
fn bert_in_bf16() {
    small("bert_bf16");
}

#[test]
fn roberta() {
    small("roberta");
}

#[test]
fn distilbert() {
    small("distilbert");
}

#[test]
fn minilm() {
    let Some(folder) = common::data("minilm") else { return };
    check(&folder, &golden::<Vec<Golden>>(&folder, "sentences"));
}

/// Texts longer than the positions are cut, and say so; the special tokens stay.
#[test]
fn long_texts_are_cut() {
    let model = open(&common::small("bert"));
    let tokens = model.tokenizer.encode(&["the ".repeat(18).trim(), &"the ".repeat(19)]).expect("tokens");
    assert_eq!([tokens[0].ids.len(), tokens[1].ids.len()], [20, 20]);
    assert_eq!([tokens[0].truncated, tokens[1].truncated], [false, true]);
    assert_eq!((tokens[1].ids[0], tokens[1].ids[19]), (2, 3));
    let error = model.encoder.forward(&[&[2], &[5; 21]]).expect_err("it is too long").to_string();
    assert_eq!(error, "text 1 has 21 tokens, the model has 20 positions");
}

/// Nothing in, nothing out; a text without tokens is zeros.
#[test]
fn nothing_is_fine() {
    let model = open(&common::small("bert"));
    assert_eq!(model.encoder.forward(&[]).expect("no texts").tokens.tokens(), 0);
    let packed = model.encoder.forward(&[&[], &[2, 3], &[]]).expect("texts");
    for pooling in [Pooling::Mean, Pooling::First] {
        let vectors = pool(&packed, pooling, true).into_data().try_to_vec::<f32>().expect("f32");
        assert!(vectors[..24].iter().chain(&vectors[48..]).all(|x| *x == 0.0) && vectors[24..48].iter().any(|x| *x != 0.0));
    }
    assert_eq!(pool(&model.encoder.forward(&[]).expect("no texts"), Pooling::Mean, true).dims(), [0, 24]);
}

/// Another mechanism inside: a window wider than every text is exact attention, a narrow one is not.
#[test]
fn attention_is_a_choice() {
    let folder = common::small("distilbert");
    let ids: &[u32] = &[2, 5, 8, 10, 15, 5, 7, 9, 11, 5, 12, 16, 3];
    let run = |attention: Attention| {
        let packed = open(&folder).with_attention(attention).encoder.forward(&[ids, ids]).expect("hidden states").tokens;
        packed.into_x().into_data().try_to_vec::<f32>().expect("f32")
    };
    let exact = run(Attention::full());
    let local = |window| run(Attention::full().mechanism(regard::mechanism::Local { window, ..Default::default() }));
    assert!(difference(&local(20), &exact) <= 1e-5);
    assert!(difference(&local(2), &exact) > 1e-2);
}

/// A reducer that keeps everything changes nothing; others leave fewer tokens, and merged ones still stand for all.
#[test]
fn reducers_shorten_texts() {
    let open = || open(&common::small("bert"));
    let text: Vec<u32> = (0..18).map(|i| 2 + i * 7 % 15).collect();
    let with = |name: &str, set: &[(&str, &str)]| {
        let mut reducer = Reducer::by_name(name).expect("it is there");
        set.iter().for_each(|(key, value)| reducer.set(key, value).expect("it takes this"));
        open().with_reducer(reducer).encoder.forward(&[&text, &text[..3]]).expect("hidden states")
    };
    let vectors = |encoded: &Encoded| pool(encoded, Pooling::Mean, true).into_data().try_to_vec::<f32>().expect("f32");
    let whole = open().encoder.forward(&[&text, &text[..3]]).expect("hidden states");
    assert_eq!(vectors(&whole), vectors(&with("prune", &[("keep", "1")])));
    let pruned = with("prune", &[("keep", "0.5")]);
    assert!(pruned.tokens.tokens() < 11 && pruned.tokens.positions().is_sorted_by(|a, b| a < b || *b == 0));
    let merged = with("tome", &[("keep", "0.7")]);
    assert!(merged.tokens.tokens() < 21 && (merged.sizes().iter().sum::<f32>() - 21.0).abs() < 1e-3);
    let cosine: f32 = vectors(&whole)[..24].iter().zip(&vectors(&merged)[..24]).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.5, "{cosine}");
}
