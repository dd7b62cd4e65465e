//! Whole models in 16-bit floats. The CPU computes them with the plain forms of
//! all operations, which are those that other devices run.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sight_models::{
    Captioner, DType, Device, GenerationOverrides, ImageLimits, Model, Pixels, Placement,
    TextEncoder, Watch, load,
};

const ENCODERS: [&str; 4] = ["distilbert-a", "mpnet-a", "roberta-a", "xlm-roberta-a"];
/// A float of 16 bits has 11 binary digits.
const TOLERANCE: f32 = 2e-2;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn place(dtype: DType) -> Placement {
    Placement {
        device: Device::Cpu,
        dtype,
    }
}

fn encoder(name: &str, dtype: DType) -> TextEncoder {
    let directory = path("tests/fixtures/encoders").join(name);
    match load(&directory, &place(dtype)).unwrap() {
        Model::Encoder(encoder) => encoder,
        Model::Captioner(_) => panic!("this is no captioner"),
    }
}

#[test]
fn embeddings_differ_by_rounding_only() {
    let texts = [
        "red",
        "A red shoe on a wooden chair.",
        "",
        "the small blue boots",
    ];
    for name in ENCODERS {
        let embed = |dtype| {
            let encoder = encoder(name, dtype);
            let tokens = texts.map(|text| encoder.tokenize(text, None).unwrap());
            encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap()
        };
        let (full, short) = (embed(DType::F32), embed(DType::F16));
        let pairs = full.iter().flatten().zip(short.iter().flatten());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0, "{name}: these are no short floats");
        assert!(worst < TOLERANCE, "{name}: {worst}");
    }
}

fn captioner(dtype: DType) -> Captioner {
    match load(&path("../../demo/captioner"), &place(dtype)).unwrap() {
        Model::Captioner(captioner) => captioner,
        Model::Encoder(_) => panic!("the demo captioner is no encoder"),
    }
}

fn captions(captioner: &Captioner, pixels: &[Pixels], num_beams: u32) -> Vec<Vec<u32>> {
    let images = captioner
        .encode_images(&pixels.iter().collect::<Vec<_>>())
        .unwrap();
    let options = GenerationOverrides {
        num_beams: Some(num_beams),
        ..GenerationOverrides::default()
    };
    let config = captioner.generation(&options).unwrap();
    let prompt = captioner.prompt(Some("a photo of")).unwrap();
    let captions = captioner.generate(&images, &prompt, &config, &Watch::default());
    let ids = captions
        .unwrap()
        .into_iter()
        .map(|caption| caption.unwrap().token_ids);
    ids.collect()
}

#[test]
fn captions_stay_the_same() {
    let goldens = fs::read(path("../../demo/goldens/goldens.json")).unwrap();
    let goldens: Value = serde_json::from_slice(&goldens).unwrap();
    let limits = ImageLimits {
        max_bytes: 1 << 20,
        max_pixels: 1 << 22,
    };
    let (full, short) = (captioner(DType::F32), captioner(DType::F16));
    let items = goldens["items"].as_array().unwrap().iter().take(12);
    let pixels: Vec<Pixels> = items
        .map(|item| {
            let file = path("../../demo/goldens").join(item["file"].as_str().unwrap());
            full.preprocess(&fs::read(file).unwrap(), &limits).unwrap()
        })
        .collect();
    for num_beams in [1, 3] {
        let expected = captions(&full, &pixels, num_beams);
        let found = captions(&short, &pixels, num_beams);
        let same = expected.iter().zip(&found).filter(|(a, b)| a == b).count();
        // Where two tokens are about equally likely, rounding may decide.
        assert!(
            same + 1 >= pixels.len(),
            "{num_beams} beams: {same} of {}",
            pixels.len()
        );
    }
}
