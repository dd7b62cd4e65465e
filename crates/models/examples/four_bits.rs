//! Loads a captioner with its language model in 4 bits, describes a picture, and says
//! what that took.
//!
//!     four_bits MODEL_DIRECTORY PICTURE [--device NAME] [--prompt TEXT] [--beams N]
//!               [--new-tokens N] [--full]
//!
//! The device is as `pg_sight.device`, by default the CPU. The quantized weights are kept beside
//! the model; with `--full` nothing is quantized.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use sight_models::{FourBits, GenerationOverrides, ImageLimits, Model, Placement, Watch, open};

const USAGE: &str = "usage: four_bits MODEL_DIRECTORY PICTURE [--device NAME] [--prompt TEXT] \
    [--beams N] [--new-tokens N] [--full]";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [directory, picture, options @ ..] = args.as_slice() else {
        return Err(USAGE.into());
    };
    let mut prompt = "describe this image in full detail".to_owned();
    let (mut beams, mut tokens, mut full, mut device) = (1, 20, false, "cpu");
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--full" => full = true,
            "--device" => device = options.next().ok_or(USAGE)?,
            "--prompt" => prompt = options.next().ok_or(USAGE)?.clone(),
            "--beams" => beams = options.next().ok_or(USAGE)?.parse()?,
            "--new-tokens" => tokens = options.next().ok_or(USAGE)?.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    let begun = Instant::now();
    let place = Placement::open(device, "auto")?;
    let opened = open(Path::new(directory))?;
    println!("opened after {:.1} s", begun.elapsed().as_secs_f64());
    let four_bits = FourBits {
        folders: Vec::new(),
        log: &|line| println!("{line}"),
    };
    let model = if full {
        opened.load(&place)?
    } else {
        println!(
            "weights: {} MB",
            opened.memory_bytes_in_4_bits(&place) >> 20
        );
        opened.load_in_4_bits(&place, &four_bits)?
    };
    report("loaded", begun, &place);
    let Model::Captioner(captioner) = model else {
        return Err("this is no captioner".into());
    };
    let limits = ImageLimits {
        max_bytes: u64::MAX,
        max_pixels: u64::MAX,
    };
    let begun = Instant::now();
    let pixels = captioner.preprocess(&fs::read(picture)?, &limits)?;
    let images = captioner.encode_images(&[&pixels])?;
    report("encoded the picture", begun, &place);
    let prompt = captioner.prompt(Some(&prompt))?;
    let generate = |tokens: u32| {
        let config = captioner.generation(&GenerationOverrides {
            max_new_tokens: Some(tokens),
            min_new_tokens: Some(tokens),
            num_beams: Some(beams),
            ..GenerationOverrides::default()
        })?;
        captioner.generate(&images, &prompt, &config, &Watch::default())
    };
    let begun = Instant::now();
    generate(1)?;
    report("one token", begun, &place);
    let first = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let captions = generate(tokens)?;
    report("all tokens", begun, &place);
    let steps = f64::from(tokens - 1) / (begun.elapsed().as_secs_f64() - first);
    println!("{steps:.2} steps/s of {beams} beams");
    for caption in captions.into_iter().flatten() {
        println!(
            "{:?} {}",
            &caption.token_ids[prompt.ids().len()..],
            caption.text
        );
    }
    Ok(())
}

/// Prints the time since `begun`, and the memory that the process and, of the device, all take.
fn report(what: &str, begun: Instant, place: &Placement) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let words = line.map(|line| line.split_whitespace().nth(1));
        let kilobytes = words.flatten().and_then(|word| word.parse::<u64>().ok());
        kilobytes.unwrap_or(0) >> 10
    };
    let device = place.memory().map(|memory| memory.used_bytes >> 20);
    let device = device.map_or_else(String::new, |used| format!(", {used} MB of the device"));
    println!(
        "{what}: {:.2} s, {} MB resident, {} MB at most{device}",
        begun.elapsed().as_secs_f64(),
        memory("VmRSS:"),
        memory("VmHWM:")
    );
}
