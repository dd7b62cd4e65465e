//! Encoders.

use std::env;
use std::path::Path;
use std::thread;

use serde_json::Value;
use sight_models::{Model, Placement, TextEncoder, Tokens, load};

use crate::{assert_near, fixture, json, larger, largest, on_cpu, places, stored_states, what};

const ENCODERS: [&str; 10] = [
    "bert-a",
    "bert-b",
    "distilbert-a",
    "distilbert-b",
    "mpnet-a",
    "mpnet-b",
    "roberta-a",
    "roberta-b",
    "xlm-roberta-a",
    "xlm-roberta-b",
];

fn encoder(directory: &Path, place: &Placement) -> TextEncoder {
    match load(directory, place).unwrap() {
        Model::Encoder(encoder) => encoder,
        _ => panic!("this is no encoder"),
    }
}

fn tokenize(encoder: &TextEncoder, texts: &[String]) -> Vec<Tokens> {
    let tokens = texts.iter().map(|text| encoder.tokenize(text, None));
    tokens.collect::<Result<_, _>>().unwrap()
}

/// The largest difference of components; NaN is one.
fn difference(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let pairs = actual.iter().zip(expected).flat_map(|(actual, expected)| {
        assert_eq!(actual.len(), expected.len());
        actual.iter().zip(expected)
    });
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, larger)
}

/// Compares texts in one batch, and each alone.
fn assert_embeddings(
    encoder: &TextEncoder,
    texts: &[String],
    expected: &[Vec<f32>],
    place: &Placement,
    name: &str,
) {
    let tokens = tokenize(encoder, texts);
    let batch = encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap();
    assert_near(difference(&batch, expected), place, name);
    let alone = tokens.iter().map(|one| encoder.encode(&[one]).unwrap());
    let alone: Vec<Vec<f32>> = alone.flatten().collect();
    assert_near(
        difference(&alone, expected),
        place,
        &format!("{name} alone"),
    );
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    for place in places() {
        for model in ENCODERS {
            let goldens = json(&fixture(&format!("encoders/{model}.json")));
            let texts: Vec<String> = serde_json::from_value(goldens["texts"].clone()).unwrap();
            let expected: Vec<Vec<f32>> =
                serde_json::from_value(goldens["default"].clone()).unwrap();
            let encoder = encoder(&fixture("encoders").join(model), &place);
            assert_embeddings(&encoder, &texts, &expected, &place, model);
        }
    }
}

/// Of the texts as they are, so not of a model that puts a prompt before them.
#[test]
fn every_layer_of_an_encoder_gives_what_transformers_gives() {
    for place in places() {
        let mut models = 0;
        for model in ENCODERS {
            let states = stored_states(&format!("encoders/{model}.safetensors"));
            let goldens = json(&fixture(&format!("encoders/{model}.json")));
            let texts: Vec<String> = serde_json::from_value(goldens["texts"].clone()).unwrap();
            let encoder = encoder(&fixture("encoders").join(model), &place);
            let (mut worst, mut compared) = (0.0, 0);
            for (index, tokens) in tokenize(&encoder, &texts).iter().enumerate() {
                if goldens["ids"][index] != serde_json::json!(tokens.ids()) {
                    continue;
                }
                for (name, state) in encoder.trace(tokens).unwrap() {
                    // There the layers are counted from the embeddings on.
                    let layer = match name.strip_prefix("layer.") {
                        Some(layer) => layer.parse::<usize>().unwrap() + 1,
                        None if name == "embeddings" => 0,
                        None => continue,
                    };
                    let Some(expected) = states.get(&format!("{index}.{layer}")) else {
                        continue;
                    };
                    let error = largest(&(on_cpu(&state) - expected).unwrap()) / largest(expected);
                    (worst, compared) = (larger(worst, error), compared + 1);
                }
            }
            models += usize::from(compared > 0);
            assert_near(worst, &place, &format!("{compared} states of {model}"));
        }
        assert!(models >= 5, "{models}");
    }
}

#[test]
fn minilm_is_that_of_sentence_transformers() {
    let Some(directory) = env::var_os("PG_SIGHT_MINILM") else {
        println!("left out, since PG_SIGHT_MINILM is not set");
        return;
    };
    let goldens = json(&fixture("minilm_goldens.json"));
    let items = goldens.as_array().unwrap();
    let text = |item: &Value| {
        let times = item["repeat"].as_u64().unwrap() as usize;
        item["text"].as_str().unwrap().repeat(times)
    };
    let texts: Vec<String> = items.iter().map(text).collect();
    let vector = |item: &Value| serde_json::from_value(item["embedding"].clone()).unwrap();
    let expected: Vec<Vec<f32>> = items.iter().map(vector).collect();
    for place in places() {
        let encoder = encoder(Path::new(&directory), &place);
        assert_embeddings(&encoder, &texts, &expected, &place, "MiniLM");
    }
}

/// Batches of a GPU's size, of texts of all lengths, against texts alone.
#[test]
fn large_batches_give_what_texts_alone_give() {
    for place in places() {
        let encoder = encoder(&fixture("encoders/mpnet-a"), &place);
        let words = ["red", "shoe", "on", "a", "wooden", "chair", "small", "blue"];
        let text = |index: usize| {
            let words = (0..index % 37).map(|word| words[(index * 7 + word * 3) % words.len()]);
            words.collect::<Vec<_>>().join(" ")
        };
        let texts: Vec<String> = (0..700).map(text).collect();
        let tokens = tokenize(&encoder, &texts);
        let batch = encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap();
        let some: Vec<usize> = (0..texts.len()).step_by(23).collect();
        let alone = some
            .iter()
            .flat_map(|at| encoder.encode(&[&tokens[*at]]).unwrap());
        let alone: Vec<Vec<f32>> = alone.collect();
        let batch: Vec<Vec<f32>> = some.iter().map(|at| batch[*at].clone()).collect();
        assert_near(difference(&batch, &alone), &place, "large batch");
    }
}

/// A device is shared by the threads of all models: none may see another's numbers.
#[test]
fn threads_share_a_device() {
    for place in places() {
        let models = ["bert-a", "mpnet-b", "roberta-a", "distilbert-b"];
        let work = |model: &'static str| {
            let encoder = encoder(&fixture("encoders").join(model), &place);
            let texts: Vec<String> = (0..40)
                .map(|n| "small red shoe ".repeat(n % 9 + 1))
                .collect();
            let tokens = tokenize(&encoder, &texts);
            let tokens: Vec<&Tokens> = tokens.iter().collect();
            (0..30)
                .map(|_| encoder.encode(&tokens).unwrap())
                .collect::<Vec<_>>()
        };
        let together = thread::scope(|scope| {
            let threads = models.map(|model| scope.spawn(move || work(model)));
            threads.map(|thread| thread.join().unwrap())
        });
        for (model, rounds) in models.iter().zip(together) {
            let alone = work(model).remove(0);
            for round in rounds {
                assert_eq!(round, alone, "{}", what(model, &place));
            }
        }
    }
}
