//! BLIP captioners of several sizes and settings against transformers: tiny models
//! of random weights that tools/fixtures/tiny_blip.py wrote.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sight_models::{
    Captioner, Device, ErrorKind, GenerationOverrides, ImageLimits, Model, Pixels, Placement,
    Tensor, load,
};

const MODELS: [&str; 3] = ["a", "b", "c"];
const PICTURES: usize = 3;
/// Of a state: the largest difference over the largest value.
const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/blip")
        .join(name)
}

fn captioner(directory: &Path) -> Captioner {
    match load(directory, &Placement::default()).unwrap() {
        Model::Captioner(captioner) => captioner,
        Model::Encoder(_) => panic!("this is no encoder"),
    }
}

fn pictures(captioner: &Captioner) -> Vec<Pixels> {
    let limits = ImageLimits {
        max_bytes: 1 << 20,
        max_pixels: 1 << 20,
    };
    let picture = |index| {
        let bytes = fs::read(fixture(&format!("pictures/{index}.png"))).unwrap();
        captioner.preprocess(&bytes, &limits).unwrap()
    };
    (0..PICTURES).map(picture).collect()
}

/// What transformers computed.
struct Goldens {
    ids: Value,
    states: HashMap<String, Tensor>,
}

impl Goldens {
    fn of(model: &str) -> Self {
        let ids = fs::read(fixture(&format!("{model}.json"))).unwrap();
        let states = fixture(&format!("{model}.safetensors"));
        Self {
            ids: serde_json::from_slice(&ids).unwrap(),
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

/// A copy of a model that a test may change.
fn copy(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn change(folder: &Path, file: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(file);
    let mut value =
        fs::read(&path).map_or(json!({}), |file| serde_json::from_slice(&file).unwrap());
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn overrides(options: &Value) -> GenerationOverrides {
    let count = |key: &str| options[key].as_u64().map(|value| value as u32);
    let number = |key: &str| options[key].as_f64().map(|value| value as f32);
    GenerationOverrides {
        max_length: count("max_length"),
        max_new_tokens: count("max_new_tokens"),
        min_length: count("min_length"),
        min_new_tokens: count("min_new_tokens"),
        num_beams: count("num_beams"),
        no_repeat_ngram_size: count("no_repeat_ngram_size"),
        repetition_penalty: number("repetition_penalty"),
        length_penalty: number("length_penalty"),
        early_stopping: serde_json::from_value(options["early_stopping"].clone()).unwrap(),
        ..GenerationOverrides::default()
    }
}

fn captions(
    captioner: &Captioner,
    pictures: &[&Pixels],
    prompt: Option<&str>,
    options: &GenerationOverrides,
) -> Vec<Vec<u32>> {
    let images = captioner.encode_images(pictures).unwrap();
    let prompt = captioner.prompt(prompt).unwrap();
    let config = captioner.generation(options).unwrap();
    let captions = captioner.generate(&images, &prompt, &config, &|_| false);
    let captions = captions.unwrap().into_iter();
    captions
        .map(|caption| caption.expect("nothing was cancelled").token_ids)
        .collect()
}

/// Compares a batch of all pictures, and each picture alone, with a case.
fn assert_case(captioner: &Captioner, case: &Value, options: &GenerationOverrides, what: &str) {
    let pictures = pictures(captioner);
    let prompt = case["prompt"].as_str();
    let expected: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
    let batch = captions(
        captioner,
        &pictures.iter().collect::<Vec<_>>(),
        prompt,
        options,
    );
    assert_eq!(batch, expected, "{what}, batch");
    for (picture, expected) in pictures.iter().zip(&expected) {
        let alone = captions(captioner, &[picture], prompt, options);
        assert_eq!(&alone[0], expected, "{what}, alone");
    }
}

fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let largest = |x: &Tensor| {
        let x = x.abs().unwrap().flatten_all().unwrap();
        x.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let error = largest(&(actual - expected).unwrap()) / largest(expected);
    assert!(error < TOLERANCE, "{what}: {error}");
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
            *stored =
                serde_json::from_slice(&fs::read(fixture("c/generation_config.json")).unwrap())
                    .unwrap();
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
        assert_ne!(json!(without), case["ids"], "{option}");
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
