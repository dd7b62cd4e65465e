//! Directories that hold no model, half a model, or another one: each gives an
//! error that names the file, and nothing panics.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use sight_models::{Device, ErrorKind, ModelError, Placement, inspect, load};

/// A copy of a committed model that may be damaged.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        copy(&source, folder.path());
        Self(folder)
    }

    fn captioner() -> Self {
        Self::of("../../demo/captioner")
    }

    fn encoder() -> Self {
        Self::of("tests/fixtures/tiny-bert")
    }

    fn change(&self, file: &str, change: impl Fn(&mut Value)) {
        let path = self.0.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
    }

    /// The error of inspecting, which loading must give too.
    fn error(&self) -> ModelError {
        let error = inspect(self.0.path()).unwrap_err();
        assert_eq!(
            load(self.0.path(), &Placement::default()).unwrap_err(),
            error
        );
        assert!(error.detail.is_some(), "{error}");
        error
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn every_missing_file_is_named() {
    let encoder = [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    let captioner = [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    let cases = encoder
        .map(|file| (Copy::encoder(), file))
        .into_iter()
        .chain(captioner.map(|file| (Copy::captioner(), file)));
    for (model, file) in cases {
        fs::remove_file(model.0.path().join(file)).unwrap();
        let error = model.error();
        assert_eq!(error.kind, ErrorKind::ModelMissing, "{file}");
        assert_eq!(
            error.message,
            format!("model file \"{file}\" does not exist")
        );
        let detail = error.detail.unwrap();
        assert!(detail.contains(&*model.0.path().to_string_lossy()));
    }
}

#[test]
fn every_corrupted_file_is_named() {
    for file in [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        for content in [
            "",
            "{",
            "[1, 2]",
            "\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}",
        ] {
            let model = Copy::captioner();
            fs::write(model.0.path().join(file), content).unwrap();
            let error = model.error();
            assert_eq!(error.kind, ErrorKind::ModelInvalid, "{file} {content:?}");
            assert!(error.message.contains(file), "{file} {content:?}: {error}");
            assert!(error.hint.is_some());
        }
    }
}

#[test]
fn truncated_weights_are_found_before_loading() {
    for model in [Copy::encoder(), Copy::captioner()] {
        let path = model.0.path().join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        for length in [7, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = model.error();
            assert_eq!(error.kind, ErrorKind::ModelInvalid, "{length} bytes");
            assert_eq!(
                error.message,
                "file \"model.safetensors\" of the model is damaged"
            );
        }
    }
}

#[test]
fn a_wrong_shape_names_the_tensor_and_both_shapes() {
    let model = Copy::captioner();
    model.change("config.json", |c| {
        c["text_config"]["intermediate_size"] = json!(500)
    });
    let detail = model.error().detail.unwrap();
    assert!(detail.contains("intermediate.dense.weight"), "{detail}");
    assert!(
        detail.contains("[512, 128]") && detail.contains("[500, 128]"),
        "{detail}"
    );
}

#[test]
fn every_tensor_is_checked() {
    for model in [Copy::encoder(), Copy::captioner()] {
        let path = model.0.path().join("model.safetensors");
        let whole = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        // Only shapes matter here: zeros of half the size make it quick.
        let zeros: HashMap<String, Tensor> = whole
            .iter()
            .map(|(name, tensor)| {
                let zeros = Tensor::zeros(tensor.shape(), DType::F16, &Device::Cpu);
                (name.clone(), zeros.unwrap())
            })
            .collect();
        candle_core::safetensors::save(&zeros, &path).unwrap();
        inspect(model.0.path()).unwrap();
        for name in whole.keys() {
            let mut tensors = zeros.clone();
            tensors.remove(name);
            candle_core::safetensors::save(&tensors, &path).unwrap();
            let error = inspect(model.0.path()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ModelInvalid);
            assert!(error.detail.unwrap().contains(name), "{name}");
        }
    }
}

#[test]
fn unknown_kinds_of_models_are_refused_by_name() {
    let model = Copy::encoder();
    model.change("config.json", |c| c["model_type"] = json!("gpt2"));
    let error = model.error();
    assert_eq!(error.kind, ErrorKind::NotSupported);
    assert!(error.detail.as_ref().unwrap().contains("\"gpt2\""));
    assert!(error.hint.is_some());
    model.change("config.json", |c| c["model_type"] = Value::Null);
    assert_eq!(model.error().kind, ErrorKind::ModelInvalid);
}

#[test]
fn files_that_contradict_each_other_are_found() {
    let model = Copy::captioner();
    model.change("preprocessor_config.json", |c| {
        c["size"] = json!({"height": 64, "width": 64})
    });
    assert!(model.error().detail.unwrap().contains("64"));

    let model = Copy::encoder();
    model.change("1_Pooling/config.json", |c| {
        c["embedding_dimension"] = json!(47)
    });
    assert_eq!(model.error().kind, ErrorKind::ModelInvalid);

    let model = Copy::encoder();
    model.change("config.json", |c| c["vocab_size"] = json!(10));
    assert!(model.error().detail.unwrap().contains("10"));

    let model = Copy::encoder();
    model.change("sentence_bert_config.json", |c| {
        c["max_seq_length"] = json!(2)
    });
    assert_eq!(model.error().kind, ErrorKind::ModelInvalid);
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let error = inspect(Path::new("/nonexistent/model")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ModelMissing);
    assert!(error.message.contains("/nonexistent/model"));
}
