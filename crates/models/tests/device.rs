//! All stored results once more, on the device and with the numbers that the environment names:
//! what the other tests compare with the CPU's own kernels, this compares with whatever computes.
//!
//!     PG_SIGHT_TEST_DEVICE   as `pg_sight.device`; without it the CPU
//!     PG_SIGHT_TEST_ROOT     the folder of this crate, where the program runs elsewhere than
//!                            where it was built
//!     PG_SIGHT_MINILM        all-MiniLM-L6-v2, which is compared too where it is there
//!
//! Tolerances are of components of embeddings, and of states relative to their largest value.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use sight_models::{
    Captioner, DType, Device, FourBits, GenerationOverrides, ImageLimits, Model, Pixels, Placement,
    Tensor, TextEncoder, Tokens, Watch, load, open,
};

#[path = "support/overrides.rs"]
mod overrides;
use overrides::overrides;

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
const BLIPS: [&str; 3] = ["a", "b", "c"];
const INSTRUCTBLIPS: [&str; 3] = ["a", "b", "t"];
const SHARE_OF_ANSWERS: f32 = 0.75;
const LIMITS: ImageLimits = ImageLimits {
    max_bytes: 1 << 20,
    max_pixels: 1 << 22,
};

fn root() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    env::var_os("PG_SIGHT_TEST_ROOT").map_or_else(here, PathBuf::from)
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn demo(name: &str) -> PathBuf {
    root().join("../../demo").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Where to compute, with each type of numbers there is.
fn places() -> Vec<Placement> {
    let device = env::var("PG_SIGHT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let Placement { device, .. } = Placement::open(&device, "auto").unwrap();
    let dtypes = if device.is_cpu() {
        // In which the CPU computes with the plain forms.
        vec![DType::F32, DType::F16]
    } else {
        vec![DType::F32, DType::F16, DType::BF16]
    };
    let place = |dtype| Placement {
        device: device.clone(),
        dtype,
    };
    dtypes.into_iter().map(place).collect()
}

/// What rounding may come to, by the binary digits of the numbers: 24, 11 or 8.
fn tolerance(place: &Placement) -> f32 {
    match place.dtype {
        DType::F16 => 1e-2,
        DType::BF16 => 6e-2,
        _ => 1e-5,
    }
}

/// The same in short numbers for a model of three networks, each of which goes on with the
/// rounding of the one before it.
fn tolerance_of_three(place: &Placement) -> f32 {
    match place.dtype {
        DType::F32 => tolerance(place),
        _ => 3.0 * tolerance(place),
    }
}

fn what(name: &str, place: &Placement) -> String {
    format!("{name}, {} on {}", place.dtype_name(), place.device_name())
}

fn encoder(directory: &Path, place: &Placement) -> TextEncoder {
    match load(directory, place).unwrap() {
        Model::Encoder(encoder) => encoder,
        _ => panic!("this is no encoder"),
    }
}

fn captioner(directory: &Path, place: &Placement) -> Captioner {
    match load(directory, place).unwrap() {
        Model::Captioner(captioner) => captioner,
        _ => panic!("this is no captioner"),
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

fn assert_near(difference: f32, place: &Placement, name: &str) {
    assert_within(difference, tolerance(place), &what(name, place));
}

fn assert_within(difference: f32, tolerance: f32, what: &str) {
    println!("{what}: {difference:.1e} of {tolerance:.0e}");
    assert!(difference < tolerance, "{what}: {difference}");
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

fn generate(
    captioner: &Captioner,
    pixels: &[Pixels],
    prompt: Option<&str>,
    options: &GenerationOverrides,
) -> Vec<Vec<u32>> {
    let images = captioner
        .encode_images(&pixels.iter().collect::<Vec<_>>())
        .unwrap();
    let prompt = captioner.prompt(prompt).unwrap();
    let config = captioner.generation(options).unwrap();
    let captions = captioner.generate(&images, &prompt, &config, &Watch::default());
    let ids = captions
        .unwrap()
        .into_iter()
        .map(|caption| caption.unwrap().token_ids);
    ids.collect()
}

fn on_cpu(state: &Tensor) -> Tensor {
    state
        .to_dtype(DType::F32)
        .unwrap()
        .to_device(&Device::Cpu)
        .unwrap()
}

/// The larger number; NaN is the largest.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

fn largest(x: &Tensor) -> f32 {
    let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    x.into_iter().map(f32::abs).fold(0.0, larger)
}

/// The largest difference of states from those of transformers, which are stored with the
/// number of their picture before their name; relative to the largest value of each.
fn worst_state(
    captioner: &Captioner,
    (index, pixels): (usize, &Pixels),
    prompt: Option<&str>,
    answer: &[u32],
    expected: &HashMap<String, Tensor>,
) -> f32 {
    let prompt = captioner.prompt(prompt).unwrap();
    let states = captioner.trace(pixels, &prompt, answer).unwrap();
    let errors = states.into_iter().map(|(name, state)| {
        let expected = &expected[&format!("{index}.{name}")];
        largest(&(on_cpu(&state) - expected).unwrap()) / largest(expected)
    });
    errors.fold(0.0, larger)
}

fn stored_states(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}

/// The small pictures that tiny captioners look at.
fn picture(captioner: &Captioner, index: usize) -> Pixels {
    let picture = fs::read(fixture(&format!("blip/pictures/{index}.png"))).unwrap();
    captioner.preprocess(&picture, &LIMITS).unwrap()
}

#[test]
fn every_layer_of_a_captioner_gives_what_transformers_gives() {
    for place in places() {
        for model in BLIPS {
            let states = stored_states(&format!("blip/{model}.safetensors"));
            let traced = json(&fixture(&format!("blip/{model}.json")))["traced"].clone();
            let traced: Vec<Vec<u32>> = serde_json::from_value(traced).unwrap();
            let captioner = captioner(&fixture("blip").join(model), &place);
            let begin = captioner.prompt(None).unwrap().ids().len();
            let errors = traced.iter().enumerate().map(|(index, ids)| {
                let pixels = picture(&captioner, index);
                worst_state(&captioner, (index, &pixels), None, &ids[begin..], &states)
            });
            let worst = errors.fold(0.0, larger);
            assert_near(worst, &place, &format!("states of captioner {model}"));
        }
    }
}

#[test]
fn every_layer_of_instructblip_gives_what_transformers_gives() {
    for place in places() {
        for model in INSTRUCTBLIPS {
            let states = stored_states(&format!("instructblip/{model}.safetensors"));
            let goldens = json(&fixture(&format!("instructblip/{model}.json")));
            let captioner = captioner(&fixture("instructblip").join(model), &place);
            let traced = goldens["traced"].as_array().unwrap().iter().enumerate();
            let errors = traced.map(|(index, traced)| {
                let pixels = picture(&captioner, index);
                let answer: Vec<u32> = serde_json::from_value(traced["answer"].clone()).unwrap();
                let prompt = traced["prompt"].as_str();
                worst_state(&captioner, (index, &pixels), prompt, &answer, &states)
            });
            let worst = errors.fold(0.0, larger);
            let what = what(&format!("states of InstructBLIP {model}"), &place);
            assert_within(worst, tolerance_of_three(&place), &what);
        }
    }
}

/// The weights are random, so that tokens are often about equally likely: with `float16`
/// SHARE_OF_ANSWERS must be the same. `bfloat16` is too coarse to say which token it should be;
/// there only the states are compared.
#[test]
fn answers_of_instructblip_are_those_of_transformers() {
    let places = places().into_iter();
    for place in places.filter(|place| place.dtype != DType::BF16) {
        for model in INSTRUCTBLIPS {
            let goldens = json(&fixture(&format!("instructblip/{model}.json")));
            let captioner = captioner(&fixture("instructblip").join(model), &place);
            let pixels: Vec<Pixels> = (0..3).map(|index| picture(&captioner, index)).collect();
            for beams in [false, true] {
                let (mut same, mut all) = (0, 0);
                for case in goldens["cases"].as_array().unwrap() {
                    let options = &case["options"];
                    if (options["num_beams"].as_u64().unwrap_or(1) > 1) != beams {
                        continue;
                    }
                    let expected: Vec<Vec<u32>> =
                        serde_json::from_value(case["ids"].clone()).unwrap();
                    let prompt = case["prompt"].as_str();
                    let answers = generate(&captioner, &pixels, prompt, &overrides(options));
                    let pairs = answers.iter().zip(&expected);
                    same += pairs.filter(|(a, b)| a == b).count();
                    all += expected.len();
                }
                let name = format!("InstructBLIP {model}, beams {beams}");
                let what = what(&name, &place);
                println!("{what}: {same} of {all} answers are equal");
                assert!(all >= 12, "{what}: {all}");
                let needed = match place.dtype {
                    DType::F32 => all,
                    _ => (all as f32 * SHARE_OF_ANSWERS) as usize,
                };
                assert!(same >= needed, "{what}: {same} of {all}");
            }
        }
    }
}

/// A captioner with its language model in 4 bits; the file of quantized weights is made in
/// `folder`, where the model is found by links.
fn in_4_bits(folder: &Path, place: &Placement) -> Captioner {
    for entry in fs::read_dir(fixture("instructblip/q")).unwrap() {
        let entry = entry.unwrap();
        // All but the first find the links there.
        let _ = symlink(entry.path(), folder.join(entry.file_name()));
    }
    let options = FourBits {
        folders: Vec::new(),
        log: &|_| {},
    };
    match open(folder).unwrap().load_in_4_bits(place, &options) {
        Ok(Model::Captioner(captioner)) => captioner,
        other => panic!("{other:?}"),
    }
}

/// Against transformers on the quantized weights. In short numbers tokens are too often about
/// equally likely; of those the states are compared.
#[test]
fn answers_in_4_bits_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let goldens = json(&fixture("instructblip/q.json"));
    let places = places().into_iter();
    for place in places.filter(|place| place.dtype == DType::F32) {
        let captioner = in_4_bits(folder.path(), &place);
        let pixels: Vec<Pixels> = (0..3).map(|index| picture(&captioner, index)).collect();
        let (mut same, mut all) = (0, 0);
        for case in goldens["cases"].as_array().unwrap() {
            let expected: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
            let (prompt, options) = (case["prompt"].as_str(), overrides(&case["options"]));
            let together = generate(&captioner, &pixels, prompt, &options);
            let alone = pixels
                .iter()
                .flat_map(|one| generate(&captioner, std::slice::from_ref(one), prompt, &options));
            let answers = together.into_iter().zip(alone).zip(&expected);
            same += answers
                .map(|((a, b), expected)| usize::from(a == *expected) + usize::from(b == *expected))
                .sum::<usize>();
            all += 2 * expected.len();
        }
        let what = what("InstructBLIP in 4 bits", &place);
        println!("{what}: {same} of {all} answers are equal");
        assert!(all >= 60 && same == all, "{what}: {same} of {all}");
    }
}

/// In all types of numbers, against those of the same weights in 32-bit floats on the CPU.
#[test]
fn states_in_4_bits_differ_by_rounding_only() {
    let folder = tempfile::tempdir().unwrap();
    let states = |place: &Placement| {
        let captioner = in_4_bits(folder.path(), place);
        let prompt = captioner.prompt(Some("this image is a shoe")).unwrap();
        let states = captioner.trace(&picture(&captioner, 0), &prompt, &[5, 6, 7]);
        let logits = states.unwrap().remove("text.logits");
        on_cpu(&logits.unwrap())
    };
    let expected = states(&Placement::default());
    for place in places() {
        let error = largest(&(states(&place) - &expected).unwrap()) / largest(&expected);
        // There inputs are rounded to 8 bits.
        let tolerance = tolerance_of_three(&place).max(6e-2);
        assert_within(error, tolerance, &what("states in 4 bits", &place));
    }
}

/// With short numbers one in twenty may come out otherwise, where two tokens are about
/// equally likely.
#[test]
fn captions_are_those_of_transformers() {
    let goldens = json(&demo("goldens/goldens.json"));
    let items = goldens["items"].as_array().unwrap();
    for place in places() {
        let captioner = captioner(&demo("captioner"), &place);
        let pixels = items.iter().map(|item| {
            let file = demo("goldens").join(item["file"].as_str().unwrap());
            captioner
                .preprocess(&fs::read(file).unwrap(), &LIMITS)
                .unwrap()
        });
        let pixels: Vec<Pixels> = pixels.collect();
        for (key, prompt, num_beams) in [
            ("greedy_ids", None, 1),
            ("prompt_greedy_ids", goldens["prompt"].as_str(), 1),
            ("beam3_ids", None, 3),
        ] {
            let options = GenerationOverrides {
                max_new_tokens: Some(24),
                num_beams: Some(num_beams),
                ..GenerationOverrides::default()
            };
            let ids = |item: &Value| serde_json::from_value(item[key].clone()).unwrap();
            let expected: Vec<Vec<u32>> = items.iter().map(ids).collect();
            let captions = generate(&captioner, &pixels, prompt, &options);
            let same = captions
                .iter()
                .zip(&expected)
                .filter(|(a, b)| a == b)
                .count();
            let what = what(key, &place);
            println!("{what}: {same} of {} captions are equal", items.len());
            let needed = match place.dtype {
                DType::F32 => items.len(),
                _ => items.len() * 19 / 20,
            };
            assert!(same >= needed, "{what}: {same} of {}", items.len());
        }
    }
}

/// The quick way of a greedy search, which leaves the scores on the device, against the one
/// that looks at all scores.
#[test]
fn the_likeliest_token_is_that_of_the_scores() {
    for place in places() {
        let captioner = captioner(&demo("captioner"), &place);
        let items = json(&demo("goldens/goldens.json"));
        let files = items["items"].as_array().unwrap().iter().take(8);
        let pixels = files.map(|item| {
            let file = demo("goldens").join(item["file"].as_str().unwrap());
            captioner
                .preprocess(&fs::read(file).unwrap(), &LIMITS)
                .unwrap()
        });
        let pixels: Vec<Pixels> = pixels.collect();
        for min_new_tokens in [None, Some(12)] {
            let quick = GenerationOverrides {
                min_new_tokens,
                max_new_tokens: Some(16),
                num_beams: Some(1),
                ..GenerationOverrides::default()
            };
            // No sequence is so long that this could forbid anything.
            let slow = GenerationOverrides {
                no_repeat_ngram_size: Some(100),
                ..quick.clone()
            };
            let [quick, slow] = [quick, slow].map(|o| generate(&captioner, &pixels, None, &o));
            assert_eq!(quick, slow, "{}", what("likeliest", &place));
            let shortest = quick.iter().map(Vec::len).min().unwrap();
            assert!(shortest > min_new_tokens.unwrap_or(0) as usize);
        }
    }
}
