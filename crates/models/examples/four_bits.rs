//! Loads a captioner with its language model in 4 bits, describes a picture, and says what that
//! took.
//!
//!     four_bits MODEL_DIRECTORY PICTURE [OPTION VALUE]... [--full]
//!
//!     --device NAME            as `pg_sight.device`, by default the CPU
//!     --prompt TEXT            several times for several answers
//!     --beams N                --repetition-penalty X
//!     --min-length N           --max-length N
//!     --new-tokens N           so many exactly (20 where no length is given)
//!
//! The quantized weights are kept beside the model; with `--full` nothing is quantized.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sight_models::{
    Captioner, EncodedImages, FourBits, GenerationOverrides, ImageLimits, Model, Placement, Watch,
    open,
};

const USAGE: &str = "usage: four_bits MODEL_DIRECTORY PICTURE [--device NAME] [--prompt TEXT]... \
    [--beams N] [--repetition-penalty X] [--min-length N] [--max-length N] [--new-tokens N] [--full]";
const LIMITS: ImageLimits = ImageLimits {
    max_bytes: u64::MAX,
    max_pixels: u64::MAX,
};

struct Arguments {
    directory: String,
    picture: String,
    device: String,
    prompts: Vec<String>,
    options: GenerationOverrides,
    full: bool,
}

impl Arguments {
    fn read() -> Result<Self, Box<dyn Error>> {
        let args: Vec<String> = env::args().skip(1).collect();
        let [directory, picture, given @ ..] = args.as_slice() else {
            return Err(USAGE.into());
        };
        let mut read = Self {
            directory: directory.clone(),
            picture: picture.clone(),
            device: "cpu".to_owned(),
            prompts: Vec::new(),
            options: GenerationOverrides {
                num_beams: Some(1),
                ..GenerationOverrides::default()
            },
            full: false,
        };
        let (mut given, mut tokens) = (given.iter(), None);
        let options = &mut read.options;
        while let Some(name) = given.next() {
            let mut value = || given.next().ok_or(USAGE);
            match name.as_str() {
                "--full" => read.full = true,
                "--device" => read.device = value()?.clone(),
                "--prompt" => read.prompts.push(value()?.clone()),
                "--beams" => options.num_beams = Some(value()?.parse()?),
                "--repetition-penalty" => options.repetition_penalty = Some(value()?.parse()?),
                "--min-length" => options.min_length = Some(value()?.parse()?),
                "--max-length" => options.max_length = Some(value()?.parse()?),
                "--new-tokens" => tokens = Some(value()?.parse()?),
                _ => return Err(USAGE.into()),
            }
        }
        if tokens.is_none() && options.max_length.is_none() {
            tokens = Some(20);
        }
        if tokens.is_some() {
            (options.min_new_tokens, options.max_new_tokens) = (tokens, tokens);
        }
        if read.prompts.is_empty() {
            let usual = "describe this image in full detail";
            read.prompts.push(usual.to_owned());
        }
        Ok(read)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::read()?;
    let place = Placement::open(&arguments.device, "auto")?;
    let (ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Memory of a device is told for the moment alone.
            while !ended.load(Ordering::Relaxed) {
                let used = place.memory().map_or(0, |memory| memory.used_bytes);
                peak.fetch_max(used, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let done = run(&arguments, &place);
        ended.store(true, Ordering::Relaxed);
        done
    })?;
    if !place.device.is_cpu() {
        let most = peak.into_inner() >> 20;
        println!("all programs took {most} MB of the device at most");
    }
    Ok(())
}

fn run(arguments: &Arguments, place: &Placement) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let opened = open(Path::new(&arguments.directory))?;
    let four_bits = FourBits {
        folders: Vec::new(),
        log: &|line| println!("{line}"),
    };
    let model = if arguments.full {
        opened.load(place)?
    } else {
        let bytes = opened.memory_bytes_in_4_bits(place);
        println!("weights of {} MB", bytes >> 20);
        opened.load_in_4_bits(place, &four_bits)?
    };
    report("loaded", begun);
    let Model::Captioner(captioner) = model else {
        return Err("this is no captioner".into());
    };
    let begun = Instant::now();
    let picture = fs::read(&arguments.picture)?;
    let pixels = captioner.preprocess(&picture, &LIMITS)?;
    let images = captioner.encode_images(&[&pixels])?;
    report("encoded the picture", begun);
    for prompt in &arguments.prompts {
        answer(&captioner, &images, prompt, &arguments.options)?;
    }
    Ok(())
}

fn answer(
    captioner: &Captioner,
    images: &EncodedImages,
    prompt: &str,
    options: &GenerationOverrides,
) -> Result<(), Box<dyn Error>> {
    let prompt = captioner.prompt(Some(prompt))?;
    let generate = |options: &GenerationOverrides| {
        let config = captioner.generation(options)?;
        captioner.generate(images, &prompt, &config, &Watch::default())
    };
    let begun = Instant::now();
    generate(&GenerationOverrides {
        min_new_tokens: Some(1),
        max_new_tokens: Some(1),
        ..options.clone()
    })?;
    report("one token", begun);
    let first = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let captions = generate(options)?;
    let seconds = begun.elapsed().as_secs_f64();
    report("all tokens", begun);
    for caption in captions.into_iter().flatten() {
        let tokens = &caption.token_ids[prompt.ids().len()..];
        let rate = tokens.len() as f64 / seconds;
        let further = (tokens.len() as f64 - 1.0) / (seconds - first);
        println!(
            "{} tokens, {rate:.2} a second, {further:.2} after the first",
            tokens.len()
        );
        println!("[{}]", caption.text);
    }
    Ok(())
}

/// Prints the time since `begun`, and the memory that the process takes.
fn report(what: &str, begun: Instant) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let words = line.map(|line| line.split_whitespace().nth(1));
        let kilobytes = words.flatten().and_then(|word| word.parse::<u64>().ok());
        kilobytes.unwrap_or(0) >> 10
    };
    println!(
        "{what}: {:.2} s, {} MB resident, {} MB at most",
        begun.elapsed().as_secs_f64(),
        memory("VmRSS:"),
        memory("VmHWM:")
    );
}
