//! All hidden states against those of transformers, which
//! tools/fixtures/tiny_encoders.py stored.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::bert::Family;
use crate::files::ModelDirectory;

const MODELS: [(&str, Family); 10] = [
    ("bert-a", Family::Bert),
    ("bert-b", Family::Bert),
    ("distilbert-a", Family::DistilBert),
    ("distilbert-b", Family::DistilBert),
    ("mpnet-a", Family::MpNet),
    ("mpnet-b", Family::MpNet),
    ("roberta-a", Family::Roberta),
    ("roberta-b", Family::Roberta),
    ("xlm-roberta-a", Family::Roberta),
    ("xlm-roberta-b", Family::Roberta),
];
const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/encoders")
        .join(name)
}

/// The token ids of all texts of a model, and its hidden states: of layer l of
/// text t under `t.l`, where 0 is what the first layer gets.
fn stored(model: &str) -> (Vec<Vec<u32>>, HashMap<String, Tensor>) {
    let json = fs::read(fixture(&format!("{model}.json"))).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let ids = serde_json::from_value(json["ids"].clone()).unwrap();
    let states = fixture(&format!("{model}.safetensors"));
    let states = candle_core::safetensors::load(states, &Device::Cpu).unwrap();
    (ids, states)
}

fn encoder(model: &str, family: Family) -> BertEncoder {
    let directory = ModelDirectory::open(&fixture(model)).unwrap();
    let config = BertConfig::read(&directory, family).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    BertEncoder::read(&config, &checkpoint, &Placement::default()).unwrap()
}

/// What [`BertEncoder::forward`] computes on its way.
fn hidden_states(encoder: &BertEncoder, ids: &[u32], lengths: &[usize]) -> Vec<Tensor> {
    let mut trace = Trace::default();
    encoder.forward(ids, lengths, Some(&mut trace)).unwrap();
    let mut states = trace.into_tensors().unwrap();
    let layers = (0..encoder.layers.len()).map(|index| format!("layer.{index}"));
    let states = std::iter::once("embeddings".to_owned())
        .chain(layers)
        .map(|name| states.remove(&name).expect("it is traced"));
    states.collect()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn every_layer_gives_what_transformers_gives() {
    for (model, family) in MODELS {
        let encoder = encoder(model, family);
        let (texts, expected) = stored(model);
        let mut compared = 0;
        for (text, ids) in texts.iter().enumerate() {
            let states = hidden_states(&encoder, ids, &[ids.len()]);
            for (layer, state) in states.iter().enumerate() {
                if let Some(expected) = expected.get(&format!("{text}.{layer}")) {
                    let error = difference(state, expected);
                    assert!(
                        error < TOLERANCE,
                        "{model}, text {text}, layer {layer}: {error}"
                    );
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, expected.len(), "{model}");
        assert!(compared > texts.len() + 2 * encoder.layers.len(), "{model}");
    }
}

#[test]
fn a_packed_batch_gives_what_single_texts_give() {
    for (model, family) in MODELS {
        let encoder = encoder(model, family);
        let (texts, expected) = stored(model);
        // With the long text all attention is computed plainly, without it fused.
        for count in [texts.len(), texts.len() - 1] {
            let lengths: Vec<usize> = texts[..count].iter().map(Vec::len).collect();
            let batch = encoder
                .forward(&texts[..count].concat(), &lengths, None)
                .unwrap();
            let mut start = 0;
            for (text, length) in lengths.iter().enumerate() {
                let state = batch.narrow(0, start, *length).unwrap();
                start += length;
                let last = format!("{text}.{}", encoder.layers.len());
                let error = difference(&state, &expected[&last]);
                assert!(
                    error < TOLERANCE,
                    "{model}, text {text} of {count}: {error}"
                );
            }
        }
    }
}

#[test]
fn positions_begin_after_the_padding_token() {
    assert_eq!(positions(&[5, 6, 7, 5, 5], &[3, 2], None), [0, 1, 2, 0, 1]);
    let ids = [0, 9, 1, 9, 2, 0, 2];
    let expected = [2, 3, 1, 4, 5, 2, 3];
    assert_eq!(positions(&ids, &[5, 2], Some(1)), expected);
}
