//! The demo captioner against what transformers gave for the same pictures.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sight_models::{
    Architecture, Caption, Captioner, EncodedImages, ErrorKind, GenerationOverrides, ImageLimits,
    Model, Pixels, Placement, Task, Watch, inspect, load,
};

#[path = "support/overrides.rs"]
mod overrides;
use overrides::overrides;

const LIMITS: ImageLimits = ImageLimits {
    max_bytes: 1 << 20,
    max_pixels: 1 << 22,
};

fn demo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../demo")
        .join(path)
}

fn captioner() -> Captioner {
    match load(&demo("captioner"), &Placement::default()).unwrap() {
        Model::Captioner(captioner) => captioner,
        Model::Encoder(_) => panic!("the demo captioner is no encoder"),
    }
}

/// A list of pictures with their expected results.
struct Goldens {
    all: Value,
    folder: PathBuf,
}

impl Goldens {
    fn read(file: &str) -> Self {
        let path = demo(file);
        Self {
            all: serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(),
            folder: path.parent().unwrap().to_owned(),
        }
    }

    fn items(&self) -> &[Value] {
        self.all["items"].as_array().unwrap()
    }

    fn pixels(&self, captioner: &Captioner) -> Vec<Pixels> {
        let preprocess = |item: &Value| {
            let bytes = fs::read(self.folder.join(item["file"].as_str().unwrap())).unwrap();
            captioner.preprocess(&bytes, &LIMITS).unwrap()
        };
        self.items().iter().map(preprocess).collect()
    }

    fn ids(&self, key: &str) -> Vec<Vec<u32>> {
        let ids = |item: &Value| serde_json::from_value(item[key].clone()).unwrap();
        self.items().iter().map(ids).collect()
    }
}

fn encode(captioner: &Captioner, pixels: &[Pixels]) -> EncodedImages {
    captioner
        .encode_images(&pixels.iter().collect::<Vec<_>>())
        .unwrap()
}

fn generate(
    captioner: &Captioner,
    images: &EncodedImages,
    prompt: Option<&str>,
    options: &GenerationOverrides,
) -> Vec<Caption> {
    let prompt = captioner.prompt(prompt).unwrap();
    let config = captioner.generation(options).unwrap();
    captioner
        .generate(images, &prompt, &config, &Watch::default())
        .unwrap()
        .into_iter()
        .map(|caption| caption.expect("nothing was cancelled"))
        .collect()
}

fn assert_ids(captions: &[Caption], expected: &[Vec<u32>], what: &str) {
    assert_eq!(captions.len(), expected.len());
    for (index, (caption, expected)) in captions.iter().zip(expected).enumerate() {
        assert_eq!(&caption.token_ids, expected, "{what} of picture {index}");
    }
}

fn beams(num_beams: u32) -> GenerationOverrides {
    GenerationOverrides {
        max_new_tokens: Some(24),
        num_beams: Some(num_beams),
        ..GenerationOverrides::default()
    }
}

#[test]
fn the_directory_is_recognised() {
    let summary = inspect(&demo("captioner")).unwrap();
    assert_eq!(summary.task, Task::Describe);
    assert_eq!(summary.architecture, Architecture::Blip);
    assert_eq!(summary.dimensions, None);
    assert_eq!(summary.parameters, 1_782_729);
    assert_eq!(summary.revision.len(), 16);
}

#[test]
fn goldens_and_samples_are_captioned_token_for_token() {
    let captioner = captioner();
    for (file, prompted) in [
        ("goldens/goldens.json", "prompt_greedy_ids"),
        ("samples/samples.json", "prompt_ids"),
    ] {
        let goldens = Goldens::read(file);
        let prompt = goldens.all["prompt"].as_str();
        let images = encode(&captioner, &goldens.pixels(&captioner));
        let captions = generate(&captioner, &images, None, &beams(1));
        assert_ids(&captions, &goldens.ids("greedy_ids"), "greedy");
        for (caption, item) in captions.iter().zip(goldens.items()) {
            assert_eq!(caption.text, item["greedy_text"].as_str().unwrap());
        }
        let captions = generate(&captioner, &images, prompt, &beams(1));
        assert_ids(&captions, &goldens.ids(prompted), "prompted greedy");
        let captions = generate(&captioner, &images, None, &beams(3));
        assert_ids(&captions, &goldens.ids("beam3_ids"), "beam search");
    }
}

#[test]
fn prompted_beams_are_those_of_transformers() {
    let captioner = captioner();
    let goldens = Goldens::read("goldens/goldens.json");
    let images = encode(&captioner, &goldens.pixels(&captioner));
    let captions = generate(
        &captioner,
        &images,
        goldens.all["prompt"].as_str(),
        &beams(3),
    );
    assert_ids(
        &captions,
        &goldens.ids("prompt_beam3_ids"),
        "prompted beams",
    );
    for (caption, item) in captions.iter().zip(goldens.items()) {
        assert_eq!(caption.text, item["prompt_beam3_text"].as_str().unwrap());
    }
}

#[test]
fn forced_lengths_and_penalties_are_those_of_transformers() {
    let captioner = captioner();
    let goldens = Goldens::read("goldens/goldens.json");
    let images = encode(&captioner, &goldens.pixels(&captioner));
    for name in [
        "stress_greedy",
        "minlen_greedy",
        "stress_beam3",
        "minlen_beam3",
    ] {
        let settings = &goldens.all["stress"][name];
        let options = overrides(settings);
        let captions = generate(&captioner, &images, None, &options);
        assert_ids(&captions, &goldens.ids(&format!("{name}_ids")), name);
    }
}

#[test]
fn further_options_are_those_of_transformers() {
    let captioner = captioner();
    let goldens = Goldens::read("goldens/goldens.json");
    let images = encode(&captioner, &goldens.pixels(&captioner));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption_options.json");
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let settings = &case["options"];
        let options = overrides(settings);
        let expected: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
        let captions = generate(&captioner, &images, case["prompt"].as_str(), &options);
        assert_ids(&captions, &expected, &settings.to_string());
    }
}

#[test]
fn a_batch_gives_what_single_pictures_give() {
    let captioner = captioner();
    let pixels = Goldens::read("samples/samples.json").pixels(&captioner);
    let images = encode(&captioner, &pixels);
    for options in [beams(1), beams(3)] {
        let batch = generate(&captioner, &images, None, &options);
        for (pixels, expected) in pixels.iter().zip(&batch) {
            let single = encode(&captioner, std::slice::from_ref(pixels));
            assert_eq!(&generate(&captioner, &single, None, &options)[0], expected);
        }
    }
}

#[test]
fn sampled_captions_repeat_with_their_seed_in_any_batch() {
    let captioner = captioner();
    let samples = Goldens::read("samples/samples.json");
    let pixels = samples.pixels(&captioner);
    let images = encode(&captioner, &pixels);
    let sampled = |seed, top_k| GenerationOverrides {
        do_sample: Some(true),
        temperature: Some(4.0),
        top_k: Some(top_k),
        seed: Some(seed),
        ..beams(1)
    };
    let captions = generate(&captioner, &images, None, &sampled(1, 0));
    assert_eq!(
        generate(&captioner, &images, None, &sampled(1, 0)),
        captions
    );
    assert_ne!(
        generate(&captioner, &images, None, &sampled(2, 0)),
        captions
    );
    let alone = encode(&captioner, &pixels[3..4]);
    let alone = generate(&captioner, &alone, None, &sampled(1, 0));
    assert_eq!(alone[0], captions[3]);
    let greedy = generate(&captioner, &images, None, &beams(1));
    assert_ne!(captions, greedy);
    assert_eq!(generate(&captioner, &images, None, &sampled(1, 1)), greedy);
}

#[test]
fn pixels_are_those_of_the_image_processor() {
    let captioner = captioner();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sample_pixels.json");
    let expected: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let samples = Goldens::read("samples/samples.json");
    let (mean, std) = (
        [0.481_454_66_f32, 0.457_827_5, 0.408_210_73],
        [0.268_629_54_f32, 0.261_302_6, 0.275_777_1],
    );
    for (item, pixels) in samples.items().iter().zip(samples.pixels(&captioner)) {
        let file = item["file"].as_str().unwrap();
        let bytes: Vec<u8> = serde_json::from_value(expected[file].clone()).unwrap();
        assert_eq!(bytes.len(), 3 * 24 * 24);
        let (mut off, mut far, mut worst) = (0, 0, 0);
        for (index, expected) in bytes.iter().enumerate() {
            // The file has every fourth pixel of every fourth row, by channel.
            let (channel, rest) = (index / 576, index % 576);
            let place = channel * 96 * 96 + (rest / 24) * 4 * 96 + (rest % 24) * 4;
            let sample = (pixels.values()[place] * std[channel] + mean[channel]) * 255.0;
            assert!((sample - sample.round()).abs() < 1e-3);
            let difference = (sample.round() as u8).abs_diff(*expected);
            off += usize::from(difference > 0);
            far += usize::from(difference > 1);
            worst = worst.max(difference);
        }
        // JPEG decoders round differently; everything else is exact.
        let (off_limit, far_limit, worst_limit) = match file.ends_with(".jpg") {
            true => (bytes.len() / 6, 3, 2),
            false => (0, 0, 0),
        };
        assert!(off <= off_limit, "{file}: {off} samples differ");
        assert!(
            far <= far_limit,
            "{file}: {far} samples differ by 2 or more"
        );
        assert!(
            worst <= worst_limit,
            "{file}: one sample differs by {worst}"
        );
    }
}

#[test]
fn cancelled_pictures_yield_nothing_and_the_others_go_on() {
    let captioner = captioner();
    let goldens = Goldens::read("goldens/goldens.json");
    let images = encode(&captioner, &goldens.pixels(&captioner)[..4]);
    let prompt = captioner.prompt(None).unwrap();
    let config = captioner.generation(&beams(1)).unwrap();
    let asked = Cell::new(0);
    let cancelled = |index: usize| {
        asked.set(asked.get() + 1);
        index == 2 && asked.get() > 8
    };
    let watch = Watch {
        cancelled: &cancelled,
        ..Watch::default()
    };
    let captions = captioner
        .generate(&images, &prompt, &config, &watch)
        .unwrap();
    assert!(captions[2].is_none());
    let expected = goldens.ids("greedy_ids");
    for index in [0, 1, 3] {
        assert_eq!(captions[index].as_ref().unwrap().token_ids, expected[index]);
    }
}

#[test]
fn prompts_become_what_the_decoder_gets() {
    let captioner = captioner();
    let ids = |prompt| captioner.prompt(prompt).unwrap().ids().to_vec();
    assert_eq!(ids(None), [455]);
    assert_eq!(ids(Some("")), [455]);
    assert_eq!(ids(Some("a photo of")), [455, 155, 257, 258]);
    assert_eq!(ids(Some("A  Photo,of")), [455, 155, 257, 115, 258]);
}

#[test]
fn a_prompt_that_leaves_no_room_is_an_invalid_option() {
    let captioner = captioner();
    let goldens = Goldens::read("goldens/goldens.json");
    let images = encode(&captioner, &goldens.pixels(&captioner)[..1]);
    let prompt = captioner.prompt(Some(&"red ".repeat(400))).unwrap();
    let config = captioner
        .generation(&GenerationOverrides::default())
        .unwrap();
    let error = captioner
        .generate(&images, &prompt, &config, &Watch::default())
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidOption);
    assert!(error.detail.is_some());
}

#[test]
fn no_pictures_give_no_captions() {
    let captioner = captioner();
    let images = captioner.encode_images(&[]).unwrap();
    assert!(images.is_empty());
    assert!(generate(&captioner, &images, None, &beams(1)).is_empty());
}

#[test]
fn bad_pictures_are_errors_and_a_single_pixel_is_none() {
    let captioner = captioner();
    let sample = fs::read(demo("samples/01_blue_sneaker.jpg")).unwrap();
    for bytes in [
        &sample[..sample.len() / 2],
        b"not a picture".as_slice(),
        b"".as_slice(),
    ] {
        let error = captioner.preprocess(bytes, &LIMITS).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidImage);
        assert!(error.detail.is_some() && error.hint.is_some());
    }
    let small = ImageLimits {
        max_pixels: 1000,
        ..LIMITS
    };
    let error = captioner.preprocess(&sample, &small).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageTooLarge);
    // A red GIF of one pixel.
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let pixels = captioner.preprocess(gif, &LIMITS).unwrap();
    let captions = generate(&captioner, &encode(&captioner, &[pixels]), None, &beams(1));
    assert_eq!(captions.len(), 1);
}
