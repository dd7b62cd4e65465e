//! Weights in the layouts that checkpoints come in: files of PyTorch, shards,
//! short floats, old names and prefixes all give the model that safetensors give,
//! and what cannot be read is refused. tools/fixtures/torch_files.py wrote the
//! files of PyTorch; the other layouts are made here.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sight_models::{ErrorKind, Model, ModelError, Placement, inspect, load};

const MODEL: &str = "mpnet-b";
const WEIGHTS: &str = "model.safetensors";
const TORCH: &str = "pytorch_model.bin";

type Tensors = HashMap<String, Tensor>;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}

/// A model of which only the weights are to be written.
struct Bare {
    folder: tempfile::TempDir,
    tensors: Tensors,
}

impl Bare {
    fn of(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = fixture("encoders").join(model);
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        for part in ["", "1_Pooling"] {
            for entry in fs::read_dir(source.join(part)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() && entry.file_name() != WEIGHTS {
                    let to = folder.path().join(part).join(entry.file_name());
                    fs::copy(entry.path(), to).unwrap();
                }
            }
        }
        let tensors = candle_core::safetensors::load(source.join(WEIGHTS), &Device::Cpu);
        Self {
            folder,
            tensors: tensors.unwrap(),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn save(&self, file: &str, tensors: &Tensors) {
        candle_core::safetensors::save(tensors, self.path(file)).unwrap();
    }

    /// Puts a file of PyTorch into the model under another name.
    fn put(&self, file: &str, to: &str) {
        fs::copy(fixture("torch").join(file), self.path(to)).unwrap();
    }

    fn embeddings(&self) -> Vec<Vec<f32>> {
        inspect(self.folder.path()).unwrap();
        let Model::Encoder(encoder) = load(self.folder.path(), &Placement::default()).unwrap()
        else {
            panic!("this is no captioner")
        };
        let tokens = ["red shoes", "an old lamp"].map(|text| encoder.tokenize(text, None).unwrap());
        encoder.encode(&tokens.each_ref()).unwrap()
    }

    /// The embeddings with these weights.
    fn expected(&self, tensors: &Tensors) -> Vec<Vec<f32>> {
        self.save(WEIGHTS, tensors);
        let embeddings = self.embeddings();
        fs::remove_file(self.path(WEIGHTS)).unwrap();
        embeddings
    }

    /// The error of inspecting, which loading must give too.
    fn error(&self) -> ModelError {
        let error = inspect(self.folder.path()).unwrap_err();
        let loaded = load(self.folder.path(), &Placement::default());
        assert_eq!(loaded.unwrap_err(), error);
        assert!(error.detail.is_some(), "{error}");
        error
    }
}

fn rounded(tensors: &Tensors, dtype: DType) -> Tensors {
    let round =
        |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap());
    tensors.iter().map(round).collect()
}

fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    let rename = |(old, tensor): (&String, &Tensor)| (name(old), tensor.clone());
    tensors.iter().map(rename).collect()
}

#[test]
fn files_of_pytorch_give_what_safetensors_give() {
    let model = Bare::of(MODEL);
    let expected = model.expected(&model.tensors);
    model.put("float32.bin", TORCH);
    assert_eq!(model.embeddings(), expected);
    let expected = model.expected(&rounded(&model.tensors, DType::BF16));
    model.put("bfloat16.bin", TORCH);
    assert_eq!(model.embeddings(), expected);
}

#[test]
fn shards_of_pytorch_are_found_through_their_index() {
    let model = Bare::of(MODEL);
    let expected = model.expected(&rounded(&model.tensors, DType::F16));
    let shards = [1, 2].map(|number| format!("pytorch_model-0000{number}-of-00002.bin"));
    for file in shards
        .iter()
        .map(String::as_str)
        .chain(["pytorch_model.bin.index.json"])
    {
        model.put(file, file);
    }
    assert_eq!(model.embeddings(), expected);
    // A tensor that no shard has is missing in the index's file.
    fs::copy(model.path(&shards[0]), model.path(&shards[1])).unwrap();
    let error = model.error();
    assert_eq!(error.kind, ErrorKind::ModelInvalid);
    assert!(error.message.contains("pytorch_model.bin.index.json"));
    fs::remove_file(model.path(&shards[1])).unwrap();
    let error = model.error();
    assert_eq!(error.kind, ErrorKind::ModelMissing);
    assert!(error.message.contains(&shards[1]));
}

#[test]
fn shards_of_safetensors_are_found_through_their_index() {
    let model = Bare::of(MODEL);
    let expected = model.expected(&model.tensors);
    let mut shards = [Tensors::new(), Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in model.tensors.iter().enumerate() {
        map.insert(
            name.clone(),
            json!(format!("part-{}.safetensors", index % 3)),
        );
        shards[index % 3].insert(name.clone(), tensor.clone());
    }
    for (index, shard) in shards.iter().enumerate() {
        model.save(&format!("part-{index}.safetensors"), shard);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(
        model.path("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert_eq!(model.embeddings(), expected);
}

#[test]
fn safetensors_win_over_files_of_pytorch() {
    let model = Bare::of(MODEL);
    let expected = model.expected(&model.tensors);
    model.put("code.bin", TORCH);
    model.save(WEIGHTS, &model.tensors);
    assert_eq!(model.embeddings(), expected);
}

#[test]
fn short_floats_are_widened() {
    let model = Bare::of("bert-a");
    for dtype in [DType::F16, DType::BF16] {
        let short = rounded(&model.tensors, dtype);
        let wide = model.expected(&rounded(&short, DType::F32));
        assert_eq!(model.expected(&short), wide);
        assert_ne!(wide, model.expected(&model.tensors));
    }
}

#[test]
fn old_names_prefixes_and_buffers_change_nothing() {
    let model = Bare::of("bert-a");
    let expected = model.expected(&model.tensors);
    let old = renamed(&model.tensors, |name| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    });
    assert!(old.contains_key("embeddings.LayerNorm.gamma"));
    assert_eq!(model.expected(&old), expected);
    for prefix in ["bert.", "model."] {
        let mut prefixed = renamed(&old, |name| format!("{prefix}{name}"));
        let positions = Tensor::arange(0_i64, 64, &Device::Cpu).unwrap();
        prefixed.insert(format!("{prefix}embeddings.position_ids"), positions);
        let head = Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap();
        prefixed.insert("cls.predictions.decoder.weight".to_owned(), head);
        assert_eq!(model.expected(&prefixed), expected, "{prefix}");
    }
}

#[test]
fn files_that_hold_something_else_are_refused_with_a_hint() {
    let model = Bare::of(MODEL);
    for (file, kind, part) in [
        ("legacy.bin", ErrorKind::NotSupported, "before version 1.6"),
        ("code.bin", ErrorKind::NotSupported, ".system"),
        ("transposed.bin", ErrorKind::NotSupported, "[3, 2]"),
    ] {
        model.put(file, TORCH);
        let error = model.error();
        assert_eq!(error.kind, kind, "{file}: {error}");
        assert!(error.message.contains(TORCH), "{error}");
        assert!(error.detail.as_ref().unwrap().contains(part), "{error}");
        assert!(error.hint.is_some(), "{error}");
    }
    for content in ["", "PK", "PK\u{3}\u{4}", "no weights"] {
        fs::write(model.path(TORCH), content).unwrap();
        let error = model.error();
        assert_eq!(error.kind, ErrorKind::ModelInvalid, "{content:?}");
        assert!(error.message.contains(TORCH), "{error}");
    }
}

#[test]
fn a_truncated_file_of_pytorch_is_damage() {
    let model = Bare::of(MODEL);
    let whole = fs::read(fixture("torch/float32.bin")).unwrap();
    for length in (4..whole.len()).step_by(1777).chain([whole.len() - 1]) {
        fs::write(model.path(TORCH), &whole[..length]).unwrap();
        let error = model.error();
        assert_eq!(error.kind, ErrorKind::ModelInvalid, "{length}: {error}");
        assert!(error.message.contains(TORCH), "{error}");
    }
}

#[test]
fn a_file_with_wrong_bytes_is_read_or_refused() {
    let model = Bare::of(MODEL);
    let whole = fs::read(fixture("torch/bfloat16.bin")).unwrap();
    let mut refused = 0;
    for place in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0xff;
        fs::write(model.path(TORCH), bytes).unwrap();
        refused += usize::from(inspect(model.folder.path()).is_err());
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn shapes_in_files_of_pytorch_are_checked() {
    let model = Bare::of(MODEL);
    model.put("float32.bin", TORCH);
    let config = model.path("config.json");
    let mut changed: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    changed["intermediate_size"] = json!(41);
    fs::write(&config, changed.to_string()).unwrap();
    let error = model.error();
    assert_eq!(error.kind, ErrorKind::ModelInvalid);
    let detail = error.detail.unwrap();
    assert!(error.message.contains(TORCH) && detail.contains("intermediate.dense.weight"));
    assert!(
        detail.contains("[40, 24]") && detail.contains("[41, 24]"),
        "{detail}"
    );
}

/// A copy of the model that has Dense modules.
fn with_dense() -> Bare {
    let model = Bare::of("bert-b");
    model.save(WEIGHTS, &model.tensors);
    for part in ["2_Dense", "3_Dense"] {
        fs::create_dir(model.path(part)).unwrap();
        for entry in fs::read_dir(fixture("encoders/bert-b").join(part)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), model.path(part).join(entry.file_name())).unwrap();
        }
    }
    model
}

#[test]
fn dense_modules_that_do_not_fit_are_named() {
    let summary = inspect(with_dense().folder.path()).unwrap();
    assert_eq!(summary.dimensions, Some(28));
    let without = Bare::of("bert-b");
    let elements = without
        .tensors
        .values()
        .map(|tensor| tensor.elem_count() as u64);
    assert_eq!(
        summary.parameters,
        elements.sum::<u64>() + 48 * 20 + 20 + 20 * 28
    );
    for (file, key, value, kind) in [
        ("2_Dense", "in_features", json!(24), ErrorKind::ModelInvalid),
        ("3_Dense", "in_features", json!(21), ErrorKind::ModelInvalid),
        (
            "3_Dense",
            "out_features",
            json!(27),
            ErrorKind::ModelInvalid,
        ),
        ("3_Dense", "bias", json!(true), ErrorKind::ModelInvalid),
        (
            "2_Dense",
            "activation_function",
            json!("torch.nn.Mish"),
            ErrorKind::NotSupported,
        ),
    ] {
        let model = with_dense();
        let config = model.path(file).join("config.json");
        let mut changed: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        changed[key] = value;
        fs::write(&config, changed.to_string()).unwrap();
        let error = model.error();
        assert_eq!(error.kind, kind, "{key}: {error}");
        assert!(error.message.contains(file), "{key}: {error}");
    }
    for (folder, missing) in [("2_Dense", "model.safetensors"), ("3_Dense", "config.json")] {
        let model = with_dense();
        fs::remove_file(model.path(folder).join(missing)).unwrap();
        let error = model.error();
        assert_eq!(error.kind, ErrorKind::ModelMissing);
        assert!(
            error.message.contains(&format!("{folder}/{missing}")),
            "{error}"
        );
    }
}

#[test]
fn dense_modules_come_before_normalising() {
    let model = with_dense();
    let modules = model.path("modules.json");
    let mut changed: Value = serde_json::from_slice(&fs::read(&modules).unwrap()).unwrap();
    changed.as_array_mut().unwrap().swap(3, 4);
    fs::write(&modules, changed.to_string()).unwrap();
    let error = model.error();
    assert_eq!(error.kind, ErrorKind::NotSupported);
    assert!(error.detail.unwrap().contains("3_Dense") && error.hint.is_some());
}
