//! Speed of a model in this process, without server and database.
//!
//!     speed MODEL_DIRECTORY TEXTS.txt           texts, one a line
//!     speed MODEL_DIRECTORY TEXTS.txt turns     a round for each line of standard input
//!     speed MODEL_DIRECTORY PICTURE BEAMS       the picture, described over and over
//!
//! Texts are sorted by length and computed in batches of 1024 tokens, as the
//! server does on a CPU. `RAYON_NUM_THREADS` sets the number of threads. With `turns`
//! a round tokenizes, too, and prints its seconds: the peer of `bench/server.py`.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use sight_models::{
    Captioner, GenerationOverrides, ImageLimits, Model, Placement, TextEncoder, Tokens, Watch, load,
};

const ROUNDS: usize = 5;
const BATCH_TOKENS: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [directory, input, rest @ ..] = args.as_slice() else {
        return Err(
            "usage: speed MODEL_DIRECTORY TEXTS [turns] | speed MODEL_DIRECTORY PICTURE BEAMS"
                .into(),
        );
    };
    let start = Instant::now();
    let model = load(Path::new(directory), &Placement::default())?;
    println!("load {:.2} s", start.elapsed().as_secs_f64());
    match model {
        Model::Encoder(encoder) => {
            let texts = fs::read_to_string(input)?;
            if rest.first().is_some_and(|word| word == "turns") {
                take_turns(&encoder, &texts)
            } else {
                embed(&encoder, &texts)
            }
        }
        Model::Captioner(captioner) => {
            let beams = rest.first().map_or(Ok(1), |beams| beams.parse())?;
            describe(&captioner, &fs::read(input)?, beams)
        }
    }
}

/// Does the work once for each line of standard input, and prints the seconds.
fn take_turns(encoder: &TextEncoder, texts: &str) -> Result<(), Box<dyn Error>> {
    for line in io::stdin().lines() {
        line?;
        let start = Instant::now();
        compute(encoder, &tokenize(encoder, texts)?)?;
        println!("{:.6}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn tokenize(encoder: &TextEncoder, texts: &str) -> Result<Vec<Tokens>, Box<dyn Error>> {
    let tokens = texts.lines().map(|text| encoder.tokenize(text, None));
    Ok(tokens.collect::<Result<_, _>>()?)
}

/// Computes texts in the order of their lengths.
fn compute(encoder: &TextEncoder, tokens: &[Tokens]) -> Result<(), Box<dyn Error>> {
    let mut sorted: Vec<&Tokens> = tokens.iter().collect();
    sorted.sort_by_key(|tokens| tokens.len());
    let mut rest = sorted.as_slice();
    while !rest.is_empty() {
        let longest = rest[0].len();
        let mut taken = (BATCH_TOKENS / longest).clamp(1, rest.len());
        while taken > 1 && rest[..taken].iter().map(|text| text.len()).sum::<usize>() > BATCH_TOKENS
        {
            taken -= 1;
        }
        let (batch, after) = rest.split_at(taken);
        rest = after;
        encoder.encode(batch)?;
    }
    Ok(())
}

fn embed(encoder: &TextEncoder, texts: &str) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let tokens = tokenize(encoder, texts)?;
    let count = tokens.len() as f64;
    println!(
        "tokenize {:.0} texts/s",
        count / start.elapsed().as_secs_f64()
    );
    for _ in 0..ROUNDS {
        let start = Instant::now();
        compute(encoder, &tokens)?;
        println!("{:.1} texts/s", count / start.elapsed().as_secs_f64());
    }
    let mut times = Vec::new();
    for tokens in tokens.iter().take(100) {
        let start = Instant::now();
        encoder.encode(&[tokens])?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "one text {:.2} ms (median of {})",
        times[times.len() / 2],
        times.len()
    );
    Ok(())
}

fn describe(captioner: &Captioner, picture: &[u8], beams: u32) -> Result<(), Box<dyn Error>> {
    let limits = ImageLimits {
        max_bytes: u64::MAX,
        max_pixels: u64::MAX,
    };
    let options = GenerationOverrides {
        num_beams: Some(beams),
        max_new_tokens: Some(20),
        ..GenerationOverrides::default()
    };
    let config = captioner.generation(&options)?;
    let prompt = captioner.prompt(None)?;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let pixels = captioner.preprocess(picture, &limits)?;
        let prepared = start.elapsed().as_secs_f64();
        let images = captioner.encode_images(&[&pixels])?;
        let encoded = start.elapsed().as_secs_f64();
        let captions = captioner.generate(&images, &prompt, &config, &Watch::default())?;
        let done = start.elapsed().as_secs_f64();
        let tokens = captions[0]
            .as_ref()
            .map_or(0, |caption| caption.token_ids.len());
        println!(
            "prepare {:.3} s, vision {:.3} s, {tokens} tokens {:.3} s, in all {done:.3} s",
            prepared,
            encoded - prepared,
            done - encoded
        );
    }
    Ok(())
}
