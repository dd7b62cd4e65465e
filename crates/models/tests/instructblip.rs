//! InstructBLIP captioners against transformers: tiny models of random weights that
//! tools/fixtures/tiny_instructblip.py wrote.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sight_models::{
    Architecture, Captioner, DType, Device, ErrorKind, FourBits, GenerationOverrides, Model,
    Pixels, Placement, Task, Tensor, Watch, inspect, load, open,
};

mod support;
use support::{assert_case, assert_close, captioner, captions, change, overrides, pictures};

const MODELS: [&str; 3] = ["a", "b", "t"];

fn fixture(name: &str) -> PathBuf {
    support::fixture("instructblip").join(name)
}

fn copy(model: &str) -> tempfile::TempDir {
    support::copy(&fixture(model))
}

/// What transformers computed.
struct Goldens {
    all: Value,
    /// Hidden states by name; none of the model in 4 bits.
    states: HashMap<String, Tensor>,
}

impl Goldens {
    fn of(model: &str) -> Self {
        let states = fixture(&format!("{model}.safetensors"));
        Self {
            all: support::json(&fixture(&format!("{model}.json"))),
            states: match states.exists() {
                true => candle_core::safetensors::load(states, &Device::Cpu).unwrap(),
                false => HashMap::new(),
            },
        }
    }

    fn cases(&self) -> &[Value] {
        self.all["cases"].as_array().unwrap()
    }
}

/// Compares all cases.
fn assert_cases(captioner: &Captioner, goldens: &Goldens, what: &str) {
    assert!(goldens.cases().len() >= 14);
    for case in goldens.cases() {
        let what = format!("{what}, {}", case["options"]);
        assert_case(captioner, case, &overrides(&case["options"]), &what);
    }
}

fn assert_traces(captioner: &Captioner, goldens: &Goldens, what: &str) {
    let pictures = pictures(captioner);
    let mut compared = 0;
    for (index, traced) in goldens.all["traced"].as_array().unwrap().iter().enumerate() {
        let prompt = captioner.prompt(traced["prompt"].as_str()).unwrap();
        let answer: Vec<u32> = serde_json::from_value(traced["answer"].clone()).unwrap();
        let trace = captioner.trace(&pictures[index], &prompt, &answer);
        for (name, state) in trace.unwrap() {
            let name = format!("{index}.{name}");
            assert_close(&state, &goldens.states[&name], &format!("{what}, {name}"));
            compared += 1;
        }
    }
    assert_eq!(compared, goldens.states.len(), "{what}");
}

/// Vectors of a picture.
fn queries(model: &str) -> usize {
    let config = support::json(&fixture(model).join("config.json"));
    config["num_query_tokens"].as_u64().unwrap() as usize
}

#[test]
fn the_directory_is_recognised() {
    let summary = inspect(&fixture("a")).unwrap();
    assert_eq!(summary.task, Task::Describe);
    assert_eq!(summary.architecture, Architecture::InstructBlip);
    assert_eq!(summary.dimensions, None);
    assert!(fixture("b/model.safetensors.index.json").exists());
    assert!(inspect(&fixture("b")).unwrap().parameters > 10_000);
}

#[test]
fn instructions_become_what_the_processor_makes_of_them() {
    for model in MODELS {
        let (captioner, goldens) = (captioner(&fixture(model)), Goldens::of(model));
        let prompts = goldens.all["prompts"].as_object().unwrap();
        assert_eq!(prompts.len(), 4);
        for (text, expected) in prompts {
            let prompt = captioner.prompt(Some(text)).unwrap();
            let expected_ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
            let (places, words) = expected_ids.split_at(queries(model));
            assert!(places.iter().all(|id| *id == places[0]));
            assert_eq!(prompt.instruction_ids(), words, "{model}, {text}");
            // A T5 reads them in its encoder: its answers begin with its own first token.
            let begin = if model == "t" {
                &[0]
            } else {
                &expected_ids[..]
            };
            assert_eq!(prompt.ids(), begin, "{model}, {text}");
            let question = json!(prompt.question_ids());
            assert_eq!(question, expected["question"], "{model}, {text}");
        }
        let none = captioner.prompt(None).unwrap();
        assert_eq!(none, captioner.prompt(Some("")).unwrap());
    }
}

#[test]
fn every_layer_gives_what_transformers_gives() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        assert!(goldens.states.len() > 20, "{model}");
        assert_traces(&captioner(&fixture(model)), &goldens, model);
    }
}

#[test]
fn answers_are_those_of_transformers_under_all_options() {
    for model in MODELS {
        assert_cases(&captioner(&fixture(model)), &Goldens::of(model), model);
    }
}

/// Loads a model with its language model in 4 bits; also what was logged.
fn in_4_bits(directory: &Path) -> (Captioner, Vec<String>) {
    let log = std::sync::Mutex::new(Vec::new());
    let options = FourBits {
        folders: Vec::new(),
        log: &|line| log.lock().unwrap().push(line.to_owned()),
    };
    let opened = open(directory).unwrap();
    let model = opened.load_in_4_bits(&Placement::default(), &options);
    let Model::Captioner(captioner) = model.unwrap() else {
        panic!("this is no encoder");
    };
    (captioner, log.into_inner().unwrap())
}

#[test]
fn answers_in_4_bits_are_those_of_transformers_with_the_quantized_weights() {
    for model in ["q", "qt"] {
        assert_answers_in_4_bits(model);
    }
}

fn assert_answers_in_4_bits(model: &str) {
    let folder = copy(model);
    let goldens = Goldens::of(model);
    let revision = inspect(folder.path()).unwrap().revision;
    let (captioner, log) = in_4_bits(folder.path());
    assert_eq!(log.len(), 1, "{log:?}");
    assert_cases(&captioner, &goldens, &format!("{model} quantized at load"));
    let (captioner, log) = in_4_bits(folder.path());
    assert!(log.is_empty(), "{log:?}");
    assert_cases(&captioner, &goldens, &format!("{model} of the file"));
    assert!(folder.path().join(".pg_sight-4bit.safetensors").exists());
    assert_eq!(inspect(folder.path()).unwrap().revision, revision);
    // The whole weights give other answers.
    let whole = load(folder.path(), &Placement::default()).unwrap();
    let Model::Captioner(whole) = whole else {
        panic!("this is no encoder");
    };
    let pictures = pictures(&whole);
    let all: Vec<&Pixels> = pictures.iter().collect();
    let differs = |case: &&Value| {
        let options = overrides(&case["options"]);
        let ids = captions(&whole, &all, case["prompt"].as_str(), &options).unwrap();
        json!(ids) != case["ids"]
    };
    let differing = goldens.cases().iter().filter(differs).count();
    assert!(differing > goldens.cases().len() / 5, "{differing}");
}

#[test]
fn short_floats_differ_by_rounding_only() {
    // The plain forms of all operations, which other devices compute.
    for model in ["a", "b", "t", "q", "qt"] {
        let trace = |dtype, quantized: bool| {
            let folder = copy(model);
            let place = Placement {
                device: Device::Cpu,
                dtype,
            };
            let opened = open(folder.path()).unwrap();
            let options = FourBits {
                folders: Vec::new(),
                log: &|_| {},
            };
            let loaded = match quantized {
                true => opened.load_in_4_bits(&place, &options),
                false => opened.load(&place),
            };
            let Model::Captioner(captioner) = loaded.unwrap() else {
                panic!("this is no encoder");
            };
            let prompt = captioner.prompt(Some("this image is a shoe")).unwrap();
            let picture = &pictures(&captioner)[0];
            let trace = captioner.trace(picture, &prompt, &[5, 6, 7]).unwrap();
            let logits = trace["text.logits"].to_dtype(DType::F32).unwrap();
            assert_eq!(logits.dim(0).unwrap(), 4);
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for quantized in [false, true] {
            let full = trace(DType::F32, quantized);
            let largest = full.iter().fold(0.0_f32, |worst, x| worst.max(x.abs()));
            let short = trace(DType::F16, quantized);
            let pairs = full.iter().zip(&short);
            let worst = pairs.fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            let error = worst / largest;
            let what = format!("{model}, quantized {quantized}: {error}");
            // The rounding of inputs to 8 bits may go either way then.
            let bound = if quantized { 0.15 } else { 0.06 };
            assert!(error > 0.0 && error < bound, "{what}");
        }
    }
}

#[test]
fn an_output_layer_of_the_word_embeddings_takes_memory_of_its_own() {
    let place = Placement::default();
    let words = |model: &str| {
        let config = support::json(&fixture(model).join("config.json"));
        let text = &config["text_config"];
        let hidden = text["hidden_size"].as_u64().or(text["d_model"].as_u64());
        text["vocab_size"].as_u64().unwrap() * hidden.unwrap()
    };
    for (model, tied) in [("a", false), ("b", true), ("t", true)] {
        let opened = open(&fixture(model)).unwrap();
        let stored = opened.summary().unwrap().parameters;
        let expected = stored + if tied { words(model) } else { 0 };
        assert_eq!(opened.memory_bytes(&place), expected * 4, "{model}");
    }
    // In 4 bits the words stay whole.
    let folder = copy("q");
    change(folder.path(), "config.json", |config| {
        config["text_config"]["tie_word_embeddings"] = json!(true);
    });
    let bytes = |folder: &Path| {
        let opened = open(folder).unwrap();
        opened.memory_bytes_in_4_bits(&place)
    };
    let untied = bytes(folder.path());
    let stored = shards_without(folder.path(), "language_model.lm_head.weight");
    assert_eq!(stored, words("q"));
    assert_eq!(bytes(folder.path()), untied);
}

/// Takes a tensor out of the files of a model; the result is how many elements it had.
fn shards_without(folder: &Path, name: &str) -> u64 {
    let mut elements = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "safetensors")
        {
            continue;
        }
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        if let Some(tensor) = tensors.remove(name) {
            elements = tensor.elem_count() as u64;
            candle_core::safetensors::save(&tensors, &path).unwrap();
        }
    }
    elements
}

#[test]
fn memory_in_4_bits_is_a_part_of_that_in_full() {
    let place = Placement::default();
    let bytes = |model: &str| {
        let opened = open(&fixture(model)).unwrap();
        let whole = opened.memory_bytes(&place);
        (whole, opened.memory_bytes_in_4_bits(&place))
    };
    let (whole, quantized) = bytes("q");
    assert!(quantized * 2 < whole, "{quantized} of {whole}");
    // Nothing in it fills blocks of 256.
    let (whole, quantized) = bytes("a");
    assert_eq!(whole, quantized);
}

#[test]
fn the_text_is_the_answer_alone() {
    let captioner = captioner(&fixture("a"));
    let pictures = pictures(&captioner);
    let images = captioner.encode_images(&[&pictures[0]]).unwrap();
    let options = GenerationOverrides {
        max_new_tokens: Some(12),
        min_new_tokens: Some(12),
        ..GenerationOverrides::default()
    };
    let config = captioner.generation(&options).unwrap();
    let prompt = captioner.prompt(Some("this image is a shoe")).unwrap();
    let caption = captioner.generate(&images, &prompt, &config, &Watch::default());
    let caption = caption.unwrap().remove(0).unwrap();
    assert_eq!(&caption.token_ids[..prompt.ids().len()], prompt.ids());
    assert_eq!(caption.token_ids.len(), prompt.ids().len() + 12);
    assert!(!caption.text.contains("this image is a shoe"));
    assert!(!caption.text.is_empty() && caption.text.trim() == caption.text);
}

#[test]
fn checkpoints_that_name_no_image_token_answer_alike() {
    // The places of the picture get another token, which counts only where the
    // repetition of it is penalised.
    let folder = copy("a");
    change(folder.path(), "config.json", |config| {
        config.as_object_mut().unwrap().remove("image_token_index");
    });
    let goldens = Goldens::of("a");
    assert_traces(&captioner(folder.path()), &goldens, "from the tokenizer");
    change(folder.path(), "tokenizer.json", |file| {
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| token["content"] != "<image>");
    });
    let captioner = captioner(folder.path());
    assert_traces(&captioner, &goldens, "none");
    let prompt = captioner.prompt(None).unwrap();
    let tokens = goldens.all["prompts"][""]["ids"][0].as_u64().unwrap();
    assert_eq!(u64::from(prompt.ids()[0]), tokens, "the next free one");
}

#[test]
fn an_output_layer_of_its_own_is_used_where_one_is_stored() {
    let folder = copy("t");
    let goldens = Goldens::of("t");
    let path = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let words = tensors["language_model.shared.weight"].clone();
    let output = "language_model.lm_head.weight".to_owned();
    tensors.insert(output.clone(), words.clone());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    // As transformers 4 says that outputs are not scaled.
    change(folder.path(), "config.json", |config| {
        let text = config["text_config"].as_object_mut().unwrap();
        assert_eq!(text.remove("scale_decoder_outputs").unwrap(), json!(false));
        text.insert("tie_word_embeddings".to_owned(), json!(false));
    });
    assert_traces(&captioner(folder.path()), &goldens, "a copy of the words");
    tensors.insert(output, (words * 0.5).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let captioner = captioner(folder.path());
    let prompt = captioner.prompt(None).unwrap();
    let trace = captioner
        .trace(&pictures(&captioner)[0], &prompt, &[])
        .unwrap();
    let whole = self::captioner(&fixture("t"));
    let expected = whole.trace(&pictures(&whole)[0], &prompt, &[]).unwrap();
    let half = (&expected["text.logits"] * 0.5).unwrap();
    assert_close(&trace["text.logits"], &half, "half of it");
}

#[test]
fn instructions_that_cannot_be_answered_are_errors() {
    let captioner = captioner(&fixture("a"));
    let picture = &pictures(&captioner)[0];
    let options = GenerationOverrides::default();
    for (prompt, words) in [
        (" this image".repeat(40), "prompt is too long"),
        (" this image".repeat(400), "prompt is too long"),
        ("what is <image>".to_owned(), "invalid prompt"),
    ] {
        let error = captions(&captioner, &[picture], Some(&prompt), &options).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption, "{prompt}");
        assert_eq!(error.message, words, "{prompt}");
        assert!(error.detail.is_some() && error.hint.is_some());
    }
    let options = GenerationOverrides {
        max_length: Some(6),
        ..GenerationOverrides::default()
    };
    let prompt = Some("describe this image");
    let error = captions(&captioner, &[picture], prompt, &options).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidOption);
    assert!(error.message.contains("max_length"), "{error}");
}

#[test]
fn lengths_are_bounded_where_the_model_does_not_bound_them() {
    // One unknown token for the Q-Former, and many for the language model.
    let word = "x".repeat(2000);
    for model in MODELS {
        let captioner = captioner(&fixture(model));
        let error = captioner.prompt(Some(&word)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption, "{model}");
        assert_eq!(error.message, "prompt is too long", "{model}");
        let detail = error.detail.unwrap();
        assert!(detail.contains("up to 1024"), "{model}: {detail}");
        assert!(detail.contains("language model"), "{model}: {detail}");
    }
    let captioner = captioner(&fixture("t"));
    let picture = &pictures(&captioner)[0];
    let long = captioner.prompt(Some(&"x".repeat(1000))).unwrap();
    assert!(long.instruction_ids().len() > 900 && long.question_ids().len() < 10);
    for (options, option) in [
        (json!({"max_new_tokens": 2048}), "max_new_tokens"),
        (json!({"max_new_tokens": u32::MAX}), "max_new_tokens"),
        (json!({"max_length": 2049}), "max_length"),
    ] {
        let error = captions(&captioner, &[picture], None, &overrides(&options)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption, "{options}");
        assert!(error.message.contains(option), "{error}");
        assert!(error.detail.unwrap().contains("2048 positions"));
    }
    let options = overrides(&json!({"max_length": 2048}));
    captions(&captioner, &[picture], None, &options).unwrap();
}

#[test]
fn no_pictures_give_no_answers_and_cancelled_ones_leave() {
    let captioner = captioner(&fixture("a"));
    let options = overrides(&json!({"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 3}));
    assert_eq!(captions(&captioner, &[], None, &options).unwrap().len(), 0);
    let pictures = pictures(&captioner);
    let all: Vec<&Pixels> = pictures.iter().collect();
    let expected = captions(&captioner, &all, None, &options).unwrap();
    let images = captioner.encode_images(&all).unwrap();
    let prompt = captioner.prompt(None).unwrap();
    let config = captioner.generation(&options).unwrap();
    let asked = std::cell::Cell::new(0);
    let cancelled = |index: usize| {
        asked.set(asked.get() + 1);
        index == 1 && asked.get() > 6
    };
    let watch = Watch {
        cancelled: &cancelled,
        ..Watch::default()
    };
    let captions = captioner.generate(&images, &prompt, &config, &watch);
    let captions = captions.unwrap();
    assert!(captions[1].is_none());
    for index in [0, 2] {
        let caption = captions[index].as_ref().unwrap();
        assert_eq!(caption.token_ids, expected[index]);
    }
}

#[test]
fn every_missing_and_misshapen_part_is_named() {
    for (file, words) in [
        ("config.json", "config.json"),
        (
            "qformer_tokenizer/tokenizer.json",
            "qformer_tokenizer/tokenizer.json",
        ),
        ("tokenizer.json", "tokenizer.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
    ] {
        let folder = copy("a");
        fs::remove_file(folder.path().join(file)).unwrap();
        let error = inspect(folder.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelMissing, "{file}");
        assert!(error.message.contains(words), "{error}");
    }
    let folder = copy("a");
    let path = folder.path().join("model.safetensors");
    let whole = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for name in whole.keys() {
        let mut tensors = whole.clone();
        tensors.remove(name);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = inspect(folder.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelInvalid);
        assert!(error.detail.unwrap().contains(name), "{name}");
    }
    for (key, value) in [
        ("vocab_size", json!(77)),
        ("num_hidden_layers", json!(9)),
        ("intermediate_size", json!(49)),
        ("num_key_value_heads", json!(1)),
    ] {
        let folder = copy("a");
        change(folder.path(), "config.json", |config| {
            config["text_config"][key] = value.clone();
        });
        let error = load(folder.path(), &Placement::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelInvalid, "{key}");
        assert!(error.detail.unwrap().contains("language_model"), "{key}");
    }
}
