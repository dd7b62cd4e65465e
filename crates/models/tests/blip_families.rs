//! BLIP captioners of several sizes and settings against transformers: tiny models
//! of random weights that tools/fixtures/tiny_blip.py wrote.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Value, json};
use sight_models::{Captioner, Device, ErrorKind, GenerationOverrides, Placement, Tensor, load};

mod support;
use support::{assert_case, assert_close, captioner, captions, change, overrides, pictures};

const MODELS: [&str; 3] = ["a", "b", "c"];

fn fixture(name: &str) -> PathBuf {
    support::fixture("blip").join(name)
}

fn copy(model: &str) -> tempfile::TempDir {
    support::copy(&fixture(model))
}

/// What transformers computed.
struct Goldens {
    ids: Value,
    states: HashMap<String, Tensor>,
}

impl Goldens {
    fn of(model: &str) -> Self {
        let states = fixture(&format!("{model}.safetensors"));
        Self {
            ids: support::json(&fixture(&format!("{model}.json"))),
            states: candle_core::safetensors::load(states, &Device::Cpu).unwrap(),
        }
    }

    fn cases(&self) -> &[Value] {
        self.ids["cases"].as_array().unwrap()
    }

    /// For each picture the tokens of which hidden states are stored.
    fn traced(&self) -> Vec<Vec<u32>> {
        serde_json::from_value(self.ids["traced"].clone()).unwrap()
    }
}

/// The traces of a model against the goldens of another, which may be the same.
fn assert_traces(captioner: &Captioner, goldens: &Goldens, what: &str) {
    let pictures = pictures(captioner);
    let mut compared = 0;
    for (index, ids) in goldens.traced().iter().enumerate() {
        let prompt = captioner.prompt(None).unwrap();
        let (begin, answer) = ids.split_at(prompt.ids().len());
        assert_eq!(prompt.ids(), begin, "{what}");
        let trace = captioner.trace(&pictures[index], &prompt, answer);
        let trace: BTreeMap<String, Tensor> = trace.unwrap();
        for (name, state) in trace {
            let name = format!("{index}.{name}");
            assert_close(&state, &goldens.states[&name], &format!("{what}, {name}"));
            compared += 1;
        }
    }
    assert_eq!(compared, goldens.states.len(), "{what}");
}

#[test]
fn every_layer_gives_what_transformers_gives() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        assert!(goldens.states.len() > 10, "{model}");
        assert_traces(&captioner(&fixture(model)), &goldens, model);
    }
}

#[test]
fn captions_are_those_of_transformers_under_all_options() {
    for model in MODELS {
        let (captioner, goldens) = (captioner(&fixture(model)), Goldens::of(model));
        let cases = goldens.cases().iter();
        let mut compared = 0;
        for case in cases {
            let what = format!("{model}, {}", case["options"]);
            assert_case(&captioner, case, &overrides(&case["options"]), &what);
            compared += 1;
        }
        assert!(compared >= 40, "{compared}");
    }
}

#[test]
fn options_of_the_model_count_as_those_of_the_caller_do() {
    for model in MODELS {
        for case in Goldens::of(model).cases() {
            let folder = copy(model);
            change(folder.path(), "generation_config.json", |stored| {
                // As a caller's, a length replaces that of the other form.
                for (given, replaced) in [
                    ("max_new_tokens", "max_length"),
                    ("min_new_tokens", "min_length"),
                ] {
                    if !case["options"][given].is_null() {
                        stored.as_object_mut().unwrap().remove(replaced);
                    }
                }
                for (name, value) in case["options"].as_object().unwrap() {
                    stored[name] = value.clone();
                }
            });
            let captioner = captioner(folder.path());
            let what = format!("{model}, stored {}", case["options"]);
            assert_case(&captioner, case, &GenerationOverrides::default(), &what);
        }
    }
}

#[test]
fn options_of_the_model_matter() {
    let goldens = Goldens::of("c");
    let folder = copy("c");
    let case = &goldens.cases()[0];
    assert_eq!(case["options"], json!({}));
    for option in [
        "num_beams",
        "max_length",
        "min_length",
        "repetition_penalty",
    ] {
        change(folder.path(), "generation_config.json", |stored| {
            *stored = support::json(&fixture("c/generation_config.json"));
            stored.as_object_mut().unwrap().remove(option).unwrap();
        });
        let captioner = captioner(folder.path());
        let pictures = pictures(&captioner);
        let options = GenerationOverrides::default();
        let without = captions(
            &captioner,
            &pictures.iter().collect::<Vec<_>>(),
            case["prompt"].as_str(),
            &options,
        );
        assert_ne!(json!(without.unwrap()), case["ids"], "{option}");
    }
}

#[test]
fn an_output_layer_of_its_own_is_found_by_its_values() {
    // With both stored and different, transformers does not tie them, whatever
    // the configuration says.
    let folder = copy("b");
    for tied in [[true, true], [true, false], [false, true]] {
        change(folder.path(), "config.json", |config| {
            config["tie_word_embeddings"] = json!(tied[0]);
            config["text_config"]["tie_word_embeddings"] = json!(tied[1]);
        });
        let what = format!("tied {tied:?}");
        assert_traces(&captioner(folder.path()), &Goldens::of("b"), &what);
    }
    // A copy of the word embeddings is not a layer of its own.
    let folder = copy("a");
    let weights = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let words = tensors["text_decoder.bert.embeddings.word_embeddings.weight"].clone();
    tensors.insert(
        "text_decoder.cls.predictions.decoder.weight".to_owned(),
        words,
    );
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    assert_traces(&captioner(folder.path()), &Goldens::of("a"), "copied");
}

#[test]
fn an_untied_output_layer_must_be_there() {
    let folder = copy("a");
    change(folder.path(), "config.json", |config| {
        config["tie_word_embeddings"] = json!(false);
        config["text_config"]["tie_word_embeddings"] = json!(false);
    });
    let error = load(folder.path(), &Placement::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ModelInvalid);
    let detail = error.detail.unwrap();
    assert!(detail.contains("cls.predictions.decoder"), "{detail}");
}

#[test]
fn a_trace_needs_tokens_that_the_model_has() {
    let captioner = captioner(&fixture("a"));
    let picture = &pictures(&captioner)[0];
    let prompt = captioner.prompt(None).unwrap();
    for ids in [vec![5; 40], vec![5, 1_000_000]] {
        let error = captioner.trace(picture, &prompt, &ids).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption);
    }
    assert!(captioner.trace(picture, &prompt, &[5; 39]).is_ok());
}
