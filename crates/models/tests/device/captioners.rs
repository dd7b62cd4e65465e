//! Captioners.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;
use sight_models::{
    Captioner, DType, FourBits, GenerationOverrides, ImageLimits, Model, Pixels, Placement, Tensor,
    Watch, load, open,
};

use crate::overrides::overrides;
use crate::{
    assert_near, assert_within, demo, fixture, json, larger, largest, on_cpu, places,
    stored_states, tolerance, tolerance_of_three, what,
};

const BLIPS: [&str; 3] = ["a", "b", "c"];
const INSTRUCTBLIPS: [&str; 3] = ["a", "b", "t"];
/// Those whose layers fill blocks, so that they can be in 4 bits.
const QUANTIZED: [&str; 2] = ["q", "qt"];
const SHARE_OF_ANSWERS: f32 = 0.75;
const LIMITS: ImageLimits = ImageLimits {
    max_bytes: 1 << 20,
    max_pixels: 1 << 22,
};

fn captioner(directory: &Path, place: &Placement) -> Captioner {
    match load(directory, place).unwrap() {
        Model::Captioner(captioner) => captioner,
        _ => panic!("this is no captioner"),
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

/// Compares answers with the stored ones; of those in short numbers `SHARE_OF_ANSWERS` must be
/// the same. The weights are random, so that tokens are often about equally likely.
fn assert_answers(captioner: &Captioner, cases: &[&Value], place: &Placement, name: &str) {
    let pixels: Vec<Pixels> = (0..3).map(|index| picture(captioner, index)).collect();
    let (mut same, mut all) = (0, 0);
    for case in cases {
        let expected: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
        let options = overrides(&case["options"]);
        let answers = generate(captioner, &pixels, case["prompt"].as_str(), &options);
        same += answers
            .iter()
            .zip(&expected)
            .filter(|(a, b)| a == b)
            .count();
        all += expected.len();
    }
    let what = what(name, place);
    println!("{what}: {same} of {all} answers are equal");
    assert!(all >= 12, "{what}: {all}");
    let needed = match place.dtype {
        DType::F32 => all,
        _ => (all as f32 * SHARE_OF_ANSWERS) as usize,
    };
    assert!(same >= needed, "{what}: {same} of {all}");
}

/// `bfloat16` is too coarse to say which token of random weights it should be: there only the
/// states are compared.
#[test]
fn answers_of_captioners_are_those_of_transformers() {
    let places = places().into_iter();
    for place in places.filter(|place| place.dtype != DType::BF16) {
        for model in BLIPS {
            let goldens = json(&fixture(&format!("blip/{model}.json")));
            let cases: Vec<&Value> = goldens["cases"].as_array().unwrap().iter().collect();
            let captioner = captioner(&fixture("blip").join(model), &place);
            assert_answers(&captioner, &cases, &place, &format!("captioner {model}"));
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

#[test]
fn answers_of_instructblip_are_those_of_transformers() {
    let places = places().into_iter();
    for place in places.filter(|place| place.dtype != DType::BF16) {
        for model in INSTRUCTBLIPS {
            let goldens = json(&fixture(&format!("instructblip/{model}.json")));
            let captioner = captioner(&fixture("instructblip").join(model), &place);
            for beams in [false, true] {
                let cases = goldens["cases"].as_array().unwrap().iter();
                let has_beams = |case: &&Value| case["options"]["num_beams"].as_u64() > Some(1);
                let cases: Vec<&Value> = cases.filter(|case| has_beams(case) == beams).collect();
                let name = format!("InstructBLIP {model}, beams {beams}");
                assert_answers(&captioner, &cases, &place, &name);
            }
        }
    }
}

/// A captioner with its language model in 4 bits; the file of quantized weights is made in
/// `folder`, where the model is found by links.
fn in_4_bits(model: &str, folder: &Path, place: &Placement) -> Captioner {
    for entry in fs::read_dir(fixture("instructblip").join(model)).unwrap() {
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

/// Which of the goldens in 4 bits a device gives: on the CPU what layers get is rounded.
fn golden_of(place: &Placement) -> &'static str {
    if place.device.is_cpu() {
        "ids"
    } else {
        "exact"
    }
}

/// Against transformers on the quantized weights, which on the CPU rounds what layers get as
/// we do there. In short numbers tokens are too often about equally likely; of those the
/// states are compared.
#[test]
fn answers_in_4_bits_are_those_of_transformers() {
    let places = places().into_iter();
    for place in places.filter(|place| place.dtype == DType::F32) {
        for model in QUANTIZED {
            let folder = tempfile::tempdir().unwrap();
            let captioner = in_4_bits(model, folder.path(), &place);
            let pixels: Vec<Pixels> = (0..3).map(|index| picture(&captioner, index)).collect();
            let key = golden_of(&place);
            let goldens = json(&fixture(&format!("instructblip/{model}.json")));
            let (mut same, mut all) = (0, 0);
            for case in goldens["cases"].as_array().unwrap() {
                let Ok(expected) = serde_json::from_value::<Vec<Vec<u32>>>(case[key].clone())
                else {
                    continue;
                };
                let (prompt, options) = (case["prompt"].as_str(), overrides(&case["options"]));
                let mut answers = generate(&captioner, &pixels, prompt, &options);
                for one in &pixels {
                    let one = std::slice::from_ref(one);
                    answers.extend(generate(&captioner, one, prompt, &options));
                }
                let pairs = answers.iter().zip(expected.iter().chain(&expected));
                same += pairs.filter(|(a, b)| a == b).count();
                all += answers.len();
            }
            let what = what(&format!("InstructBLIP {model} in 4 bits"), &place);
            println!("{what}: {same} of {all} answers are equal");
            assert!(all >= 100 && same == all, "{what}: {same} of {all}");
        }
    }
}

/// In all types of numbers, against transformers with the quantized weights. A rounding to 8
/// bits that goes the other way, as most may in short numbers on the CPU, is more than another
/// last digit of a sum.
#[test]
fn scores_in_4_bits_are_those_of_transformers() {
    for model in QUANTIZED {
        let folder = tempfile::tempdir().unwrap();
        let expected = stored_states(&format!("instructblip/{model}.safetensors"));
        let traced = json(&fixture(&format!("instructblip/{model}.json")))["traced"].clone();
        let answer: Vec<u32> = serde_json::from_value(traced["answer"].clone()).unwrap();
        for place in places() {
            let captioner = in_4_bits(model, folder.path(), &place);
            let prompt = captioner.prompt(traced["prompt"].as_str()).unwrap();
            let states = captioner.trace(&picture(&captioner, 0), &prompt, &answer);
            let logits = on_cpu(&states.unwrap()["text.logits"]);
            let expected = &expected[&format!("{}.text.logits", golden_of(&place))];
            let error = largest(&(logits - expected).unwrap()) / largest(expected);
            let tolerance = match (place.device.is_cpu(), place.dtype) {
                (false, _) => 3.0 * tolerance(&place),
                (true, DType::F32) => 3e-2,
                (true, _) => 0.15,
            };
            let name = format!("scores of {model} in 4 bits");
            assert_within(error, tolerance, &what(&name, &place));
        }
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
