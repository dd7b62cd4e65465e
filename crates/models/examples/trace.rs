//! What a model computes on its way to a result, as a file of safetensors.
//!
//!     trace MODEL_DIRECTORY --texts TEXTS.txt OUTPUT
//!     trace MODEL_DIRECTORY --image PICTURE [--prompt TEXT] [--beams N] [--new-tokens N] OUTPUT
//!
//! Texts are one a line; the states of text t are under `t.NAME`, its tokens under
//! `t.ids`. A picture is described, then traced with the tokens of its description:
//! `ids`, `pixels` and the states. tools/compare compares them with transformers.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

use sight_models::{
    Captioner, Device, GenerationOverrides, ImageLimits, Model, Placement, Tensor, TextEncoder,
    Watch, load,
};

const USAGE: &str = "usage: trace MODEL_DIRECTORY --texts TEXTS OUTPUT | \
    trace MODEL_DIRECTORY --image PICTURE [--prompt TEXT] [--beams N] [--new-tokens N] OUTPUT";

type States = HashMap<String, Tensor>;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [directory, kind, input, options @ .., output] = args.as_slice() else {
        return Err(USAGE.into());
    };
    let model = load(Path::new(directory), &Placement::default())?;
    let states = match (&model, kind.as_str()) {
        (Model::Encoder(encoder), "--texts") if options.is_empty() => {
            trace_texts(encoder, &fs::read_to_string(input)?)?
        }
        (Model::Captioner(captioner), "--image") => {
            let (prompt, options) = overrides(options)?;
            trace_picture(captioner, &fs::read(input)?, prompt, &options)?
        }
        _ => return Err(USAGE.into()),
    };
    candle_core::safetensors::save(&states, output)?;
    Ok(())
}

/// The prompt, and how to generate.
fn overrides(options: &[String]) -> Result<(Option<&str>, GenerationOverrides), Box<dyn Error>> {
    let mut prompt = None;
    let mut overrides = GenerationOverrides {
        num_beams: Some(1),
        max_new_tokens: Some(20),
        ..GenerationOverrides::default()
    };
    for pair in options.chunks(2) {
        match pair {
            [name, value] if name == "--prompt" => prompt = Some(value.as_str()),
            [name, value] if name == "--beams" => overrides.num_beams = Some(value.parse()?),
            [name, value] if name == "--new-tokens" => {
                overrides.max_new_tokens = Some(value.parse()?);
            }
            _ => return Err(USAGE.into()),
        }
    }
    Ok((prompt, overrides))
}

fn trace_texts(encoder: &TextEncoder, texts: &str) -> Result<States, Box<dyn Error>> {
    let mut states = States::new();
    for (index, text) in texts.lines().enumerate() {
        let tokens = encoder.tokenize(text, None)?;
        states.insert(format!("{index}.ids"), ids_tensor(tokens.ids())?);
        for (name, state) in encoder.trace(&tokens)? {
            states.insert(format!("{index}.{name}"), state);
        }
    }
    Ok(states)
}

fn trace_picture(
    captioner: &Captioner,
    picture: &[u8],
    prompt: Option<&str>,
    options: &GenerationOverrides,
) -> Result<States, Box<dyn Error>> {
    let limits = ImageLimits {
        max_bytes: u64::MAX,
        max_pixels: u64::MAX,
    };
    let pixels = captioner.preprocess(picture, &limits)?;
    let images = captioner.encode_images(&[&pixels])?;
    let config = captioner.generation(options)?;
    let prompt = captioner.prompt(prompt)?;
    let captions = captioner.generate(&images, &prompt, &config, &Watch::default())?;
    let caption = captions.into_iter().flatten().next();
    let ids = caption.ok_or("no description")?.token_ids;
    let answer = &ids[prompt.ids().len()..];
    let states = captioner.trace(&pixels, &prompt, answer)?;
    let mut states: States = states.into_iter().collect();
    states.insert("ids".to_owned(), ids_tensor(&ids)?);
    let side = ((pixels.values().len() / 3) as f64).sqrt() as usize;
    let pixels = Tensor::from_slice(pixels.values(), (3, side, side), &Device::Cpu)?;
    states.insert("pixels".to_owned(), pixels);
    Ok(states)
}

fn ids_tensor(ids: &[u32]) -> Result<Tensor, Box<dyn Error>> {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    Ok(Tensor::new(ids, &Device::Cpu)?)
}
