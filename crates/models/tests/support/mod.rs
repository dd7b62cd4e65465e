//! What the tests of tiny captioners have in common.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sight_models::{
    Captioner, GenerationOverrides, ImageLimits, Model, ModelError, Pixels, Placement, Tensor,
    Watch, load,
};

mod overrides;
pub use overrides::overrides;

const PICTURES: usize = 3;
/// Of a state: the largest difference over the largest value.
const TOLERANCE: f32 = 1e-5;

pub fn fixture(path: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(path)
}

pub fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

pub fn captioner(directory: &Path) -> Captioner {
    match load(directory, &Placement::default()).unwrap() {
        Model::Captioner(captioner) => captioner,
        Model::Encoder(_) => panic!("this is no encoder"),
    }
}

/// The pictures that all goldens are of.
pub fn pictures(captioner: &Captioner) -> Vec<Pixels> {
    let limits = ImageLimits {
        max_bytes: 1 << 20,
        max_pixels: 1 << 20,
    };
    let picture = |index| {
        let bytes = fs::read(fixture(&format!("blip/pictures/{index}.png"))).unwrap();
        captioner.preprocess(&bytes, &limits).unwrap()
    };
    (0..PICTURES).map(picture).collect()
}

/// A copy of a model that a test may change.
pub fn copy(model: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(model, folder.path());
    folder
}

/// Changes a JSON file, which may be absent.
pub fn change(folder: &Path, file: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(file);
    let mut value = match path.exists() {
        true => json(&path),
        false => Value::Object(serde_json::Map::new()),
    };
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The token ids of the captions.
pub fn captions(
    captioner: &Captioner,
    pictures: &[&Pixels],
    prompt: Option<&str>,
    options: &GenerationOverrides,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let images = captioner.encode_images(pictures)?;
    let prompt = captioner.prompt(prompt)?;
    let config = captioner.generation(options)?;
    let captions = captioner.generate(&images, &prompt, &config, &Watch::default())?;
    let captions = captions.into_iter();
    let ids = captions.map(|caption| caption.expect("nothing was cancelled").token_ids);
    Ok(ids.collect())
}

/// Compares a batch of all pictures, and each picture alone, with a case.
pub fn assert_case(captioner: &Captioner, case: &Value, options: &GenerationOverrides, what: &str) {
    let pictures = pictures(captioner);
    let prompt = case["prompt"].as_str();
    let expected: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
    let all: Vec<&Pixels> = pictures.iter().collect();
    let batch = captions(captioner, &all, prompt, options).unwrap();
    assert_eq!(batch, expected, "{what}, {prompt:?}, batch");
    for (picture, expected) in pictures.iter().zip(&expected) {
        let alone = captions(captioner, &[picture], prompt, options).unwrap();
        assert_eq!(&alone[0], expected, "{what}, {prompt:?}, alone");
    }
}

pub fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let largest = |x: &Tensor| {
        let x = x.abs().unwrap().flatten_all().unwrap();
        x.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let error = largest(&(actual - expected).unwrap()) / largest(expected);
    assert!(error < TOLERANCE, "{what}: {error}");
}
