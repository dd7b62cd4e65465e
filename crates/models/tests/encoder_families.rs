//! BERT and its relatives against sentence-transformers: tiny models of random
//! weights, two of each architecture, that tools/fixtures/tiny_encoders.py wrote.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sight_models::{
    Architecture, Device, ErrorKind, Model, Placement, Task, TextEncoder, Tokens, inspect, load,
};

const TOLERANCE: f32 = 1e-5;
const MODELS: [(&str, Architecture); 10] = [
    ("bert-a", Architecture::Bert),
    ("bert-b", Architecture::Bert),
    ("distilbert-a", Architecture::DistilBert),
    ("distilbert-b", Architecture::DistilBert),
    ("mpnet-a", Architecture::MpNet),
    ("mpnet-b", Architecture::MpNet),
    ("roberta-a", Architecture::Roberta),
    ("roberta-b", Architecture::Roberta),
    ("xlm-roberta-a", Architecture::XlmRoberta),
    ("xlm-roberta-b", Architecture::XlmRoberta),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/encoders")
        .join(name)
}

/// What sentence-transformers computed.
struct Goldens(Value);

impl Goldens {
    fn of(model: &str) -> Self {
        let file = fs::read(fixture(&format!("{model}.json"))).unwrap();
        Self(serde_json::from_slice(&file).unwrap())
    }

    fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.0["texts"].clone()).unwrap()
    }

    fn ids(&self) -> Vec<Vec<u32>> {
        serde_json::from_value(self.0["ids"].clone()).unwrap()
    }

    /// The vectors of all texts with no prompt ("embeddings"), or what
    /// sentence-transformers puts before queries ("query") or by itself ("default").
    fn embeddings(&self, key: &str) -> Vec<Vec<f32>> {
        serde_json::from_value(self.0[key].clone()).unwrap()
    }

    /// The vectors of all texts with the prompt of this name.
    fn prompted(&self, name: &str) -> Vec<Vec<f32>> {
        serde_json::from_value(self.0["prompts"][name].clone()).unwrap()
    }
}

fn encoder(directory: &Path) -> TextEncoder {
    match load(directory, &Placement::default()).unwrap() {
        Model::Encoder(encoder) => encoder,
        Model::Captioner(_) => panic!("this is no captioner"),
    }
}

fn tokenize(encoder: &TextEncoder, texts: &[String], prompt: Option<&str>) -> Vec<Tokens> {
    let tokens = texts.iter().map(|text| encoder.tokenize(text, prompt));
    tokens.collect::<Result<_, _>>().unwrap()
}

fn embed(encoder: &TextEncoder, texts: &[String], prompt: Option<&str>) -> Vec<Vec<f32>> {
    let tokens = tokenize(encoder, texts, prompt);
    encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap()
}

fn assert_close(actual: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (text, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(actual.len(), expected.len(), "{what}, text {text}");
        let differences = actual.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst < TOLERANCE, "{what}, text {text}: {worst}");
    }
}

/// A copy of a model that a test may change.
fn copy(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["", "1_Pooling", "2_Dense", "3_Dense"] {
        if !fixture(model).join(part).is_dir() {
            continue;
        }
        fs::create_dir_all(folder.path().join(part)).unwrap();
        for entry in fs::read_dir(fixture(model).join(part)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let to = folder.path().join(part).join(entry.file_name());
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    folder
}

/// The model without its prompts.
fn unprompted(model: &str) -> TextEncoder {
    let folder = copy(model);
    let _ = fs::remove_file(folder.path().join("config_sentence_transformers.json"));
    encoder(folder.path())
}

fn change(folder: &Path, file: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn models_are_recognised() {
    for (model, architecture) in MODELS {
        let summary = inspect(&fixture(model)).unwrap();
        assert_eq!(summary.task, Task::Embed);
        assert_eq!(summary.architecture, architecture, "{model}");
        let dimensions = Goldens::of(model).embeddings("embeddings")[0].len();
        assert_eq!(summary.dimensions, Some(dimensions), "{model}");
    }
}

#[test]
fn tokens_are_those_of_sentence_transformers() {
    for (model, _) in MODELS {
        let (encoder, goldens) = (unprompted(model), Goldens::of(model));
        assert_eq!(goldens.0["max_tokens"], encoder.max_tokens(), "{model}");
        let tokens = tokenize(&encoder, &goldens.texts(), None);
        for (tokens, expected) in tokens.iter().zip(goldens.ids()) {
            assert_eq!(tokens.ids(), expected, "{model}");
        }
        let longest = tokens.iter().map(Tokens::len).max();
        assert_eq!(longest, Some(encoder.max_tokens()), "{model}");
    }
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    for (model, _) in MODELS {
        let (encoder, goldens) = (unprompted(model), Goldens::of(model));
        let tokens = tokenize(&encoder, &goldens.texts(), None);
        let batch = encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap();
        assert_close(&batch, &goldens.embeddings("embeddings"), model);
        let alone: Vec<Vec<f32>> = tokens
            .iter()
            .map(|tokens| encoder.encode(&[tokens]).unwrap().remove(0))
            .collect();
        assert_close(&alone, &goldens.embeddings("embeddings"), model);
    }
}

#[test]
fn checkpoints_load_with_and_without_prefix() {
    for (model, prefix) in [
        ("distilbert-b", "distilbert."),
        ("mpnet-b", "mpnet."),
        ("roberta-b", "roberta."),
        ("xlm-roberta-b", "roberta."),
    ] {
        let folder = copy(model);
        let weights = folder.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let plain = tensors.into_iter().map(|(name, tensor)| {
            let name = name
                .strip_prefix(prefix)
                .expect("the fixture has the prefix");
            (name.to_owned(), tensor)
        });
        candle_core::safetensors::save(&plain.collect(), &weights).unwrap();
        let texts = Goldens::of(model).texts();
        let [expected, actual] = [fixture(model), folder.path().to_owned()]
            .map(|directory| embed(&encoder(&directory), &texts, None));
        assert_eq!(actual, expected, "{model}");
    }
}

#[test]
fn a_trace_ends_with_the_embedding() {
    for (model, _) in MODELS {
        let encoder = encoder(&fixture(model));
        let tokens = encoder.tokenize("red shoes", None).unwrap();
        let trace = encoder.trace(&tokens).unwrap();
        let embedding = trace["embedding"].to_vec2::<f32>().unwrap();
        assert_eq!(embedding, encoder.encode(&[&tokens]).unwrap(), "{model}");
        assert_eq!(trace["layer.0"].dim(0).unwrap(), tokens.len(), "{model}");
        assert_eq!(trace.contains_key("dense.1"), model == "bert-b");
    }
}

#[test]
fn a_model_has_no_more_tokens_than_positions() {
    // 60 positions, of which those up to the padding token's are not for texts.
    for (model, max_tokens) in [("roberta-a", 58), ("roberta-b", 56)] {
        let folder = copy(model);
        change(folder.path(), "tokenizer_config.json", |config| {
            config["model_max_length"] = json!(512);
        });
        let _ = fs::remove_file(folder.path().join("sentence_bert_config.json"));
        let encoder = encoder(folder.path());
        assert_eq!(encoder.max_tokens(), max_tokens);
        let tokens = encoder.tokenize(&"red ".repeat(500), None);
        let tokens = tokens.unwrap();
        assert_eq!(tokens.len(), max_tokens);
        assert_eq!(encoder.encode(&[&tokens]).unwrap().len(), 1);
    }
}

#[test]
fn tensors_of_another_architecture_are_named() {
    for (model, other, tensor) in [
        ("mpnet-a", "bert", "token_type_embeddings"),
        ("distilbert-a", "mpnet", "relative_attention_bias"),
        ("xlm-roberta-a", "distilbert", "transformer.layer.0"),
    ] {
        let folder = copy(model);
        change(folder.path(), "config.json", |config| {
            config["model_type"] = json!(other);
            if other == "distilbert" {
                for (to, from) in [
                    ("dim", "hidden_size"),
                    ("n_heads", "num_attention_heads"),
                    ("hidden_dim", "intermediate_size"),
                ] {
                    config[to] = config[from].clone();
                }
            } else if model == "distilbert-a" {
                config["hidden_size"] = config["dim"].clone();
                config["num_attention_heads"] = config["n_heads"].clone();
            }
        });
        let error = inspect(folder.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelInvalid, "{model}: {error}");
        let detail = error.detail.unwrap();
        assert!(detail.contains(tensor), "{model}: {detail}");
    }
}

#[test]
fn prompts_are_those_of_sentence_transformers() {
    for (model, _) in MODELS {
        let (encoder, goldens) = (encoder(&fixture(model)), Goldens::of(model));
        let texts = goldens.texts();
        let document = match model {
            // It names no prompt "document", but "passage".
            "xlm-roberta-a" => goldens.prompted("passage"),
            _ => goldens.prompted("document"),
        };
        for (kind, expected) in [
            (None, goldens.embeddings("default")),
            (Some("query"), goldens.embeddings("query")),
            (Some("document"), document),
        ] {
            let what = format!("{model}, {kind:?}");
            assert_close(&embed(&encoder, &texts, kind), &expected, &what);
        }
    }
}

#[test]
fn every_prompt_has_its_name() {
    let mut compared = 0;
    for (model, _) in MODELS {
        let (encoder, goldens) = (encoder(&fixture(model)), Goldens::of(model));
        let names: Vec<String> = goldens.0["prompts"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        for name in &names {
            // Empty in sentence-transformers where the model has a "passage".
            if (model, name.as_str()) == ("xlm-roberta-a", "document") {
                continue;
            }
            let vectors = embed(&encoder, &goldens.texts(), Some(name));
            assert_close(
                &vectors,
                &goldens.prompted(name),
                &format!("{model}, {name}"),
            );
            compared += 1;
        }
        let error = encoder.tokenize("red", Some("title")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption);
        assert!(error.message.contains("\"title\""));
        let hint = error.hint.unwrap();
        assert!(names.iter().all(|name| hint.contains(name)), "{hint}");
    }
    assert!(compared > 2 * MODELS.len(), "{compared}");
}

#[test]
fn prompts_change_the_vectors_that_have_them() {
    for (model, kind) in [
        ("mpnet-b", None),
        ("mpnet-b", Some("query")),
        ("distilbert-b", None),
        ("xlm-roberta-a", Some("document")),
        ("xlm-roberta-b", Some("query")),
    ] {
        let goldens = Goldens::of(model);
        let texts = &goldens.texts()[..3];
        let vectors = embed(&encoder(&fixture(model)), texts, kind);
        for (vector, plain) in vectors.iter().zip(goldens.embeddings("embeddings")) {
            let differences = vector.iter().zip(&plain).map(|(a, b)| (a - b).abs());
            assert!(differences.fold(0.0, f32::max) > 0.01, "{model}, {kind:?}");
        }
    }
}

#[test]
fn a_prompt_that_is_not_pooled_must_leave_tokens() {
    let folder = copy("xlm-roberta-b");
    change(
        folder.path(),
        "config_sentence_transformers.json",
        |config| config["prompts"]["query"] = json!("search ".repeat(100)),
    );
    let long = encoder(folder.path());
    // The token that ends a text is not the prompt's.
    let tokens = long.tokenize("red", Some("query")).unwrap();
    assert_eq!(tokens.len(), 35);
    let vector = &long.encode(&[&tokens]).unwrap()[0];
    assert!(vector.iter().all(|x| x.is_finite()));
    // Without such a token nothing is left.
    change(folder.path(), "tokenizer.json", |tokenizer| {
        tokenizer["post_processor"] = Value::Null;
    });
    let error = encoder(folder.path())
        .tokenize("red", Some("query"))
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ModelInvalid);
    assert!(error.detail.unwrap().contains("35"));
}

#[test]
fn a_default_prompt_without_a_text_is_damage() {
    let folder = copy("mpnet-b");
    let file = "config_sentence_transformers.json";
    change(folder.path(), file, |config| {
        config["default_prompt_name"] = json!("title");
    });
    let error = inspect(folder.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ModelInvalid);
    assert!(error.message.contains(file) && error.detail.unwrap().contains("title"));
    change(folder.path(), file, |config| {
        *config = json!({"prompts": {"passage": null}, "default_prompt_name": "query"});
    });
    let texts = Goldens::of("mpnet-b").texts();
    let encoder = encoder(folder.path());
    let expected = Goldens::of("mpnet-b").embeddings("embeddings");
    for kind in [None, Some("query"), Some("document")] {
        assert_close(&embed(&encoder, &texts, kind), &expected, "no prompt");
    }
}
