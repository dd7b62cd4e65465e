//! One model on a device, for bench/gpu.py: does the work that each line of standard input names,
//! and answers with the seconds it took, or with what was asked for.
//!
//!     turns MODEL_DIRECTORY DEVICE DTYPE texts TEXTS.txt BATCH_TOKENS
//!     turns MODEL_DIRECTORY DEVICE DTYPE pictures FOLDER
//!
//! With texts, one a line: `all` tokenizes and embeds all, `tokens` embeds all as they were
//! tokenized before, `one N` tokenizes and embeds text N, `count` answers texts, tokens and
//! batches, `vectors FILE` writes the embeddings in 32-bit floats.
//!
//! With pictures, all decoded before: `describe COUNT NEW_TOKENS` describes the first ones in one
//! batch by greedy search, `vision COUNT` only looks at them, `ids COUNT NEW_TOKENS` answers the
//! tokens.

use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::thread;
use std::time::Instant;

use sight_models::{
    Captioner, GenerationOverrides, ImageLimits, Model, Pixels, Placement, TextEncoder, Tokens,
    Watch, load,
};

type Answer = Result<String, Box<dyn Error>>;

const USAGE: &str = "usage: turns MODEL_DIRECTORY DEVICE DTYPE texts TEXTS BATCH_TOKENS | \
    turns MODEL_DIRECTORY DEVICE DTYPE pictures FOLDER";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [directory, device, dtype, kind, input, rest @ ..] = args.as_slice() else {
        return Err(USAGE.into());
    };
    let place = Placement::open(device, dtype)?;
    match (load(Path::new(directory), &place)?, kind.as_str(), rest) {
        (Model::Encoder(encoder), "texts", [budget]) => {
            let texts = fs::read_to_string(input)?;
            let texts: Vec<&str> = texts.lines().collect();
            let work = Texts {
                tokens: tokenize(&encoder, &texts)?,
                encoder: &encoder,
                texts,
                budget: budget.parse()?,
            };
            take_turns(|words| work.answer(words))
        }
        (Model::Captioner(captioner), "pictures", []) => {
            let work = Pictures {
                pixels: read_pictures(&captioner, Path::new(input))?,
                captioner: &captioner,
                place,
            };
            take_turns(|words| work.answer(words))
        }
        _ => Err(USAGE.into()),
    }
}

fn take_turns(answer: impl Fn(&[&str]) -> Answer) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        writeln!(out, "{}", answer(&words)?)?;
        out.flush()?;
    }
    Ok(())
}

/// The seconds that some work took.
fn clock(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Answer {
    let start = Instant::now();
    work()?;
    Ok(format!("{:.6}", start.elapsed().as_secs_f64()))
}

struct Texts<'a> {
    encoder: &'a TextEncoder,
    texts: Vec<&'a str>,
    tokens: Vec<Tokens>,
    /// Tokens of a batch.
    budget: usize,
}

impl Texts<'_> {
    fn answer(&self, words: &[&str]) -> Answer {
        match words {
            ["all"] => clock(|| {
                self.embed(&tokenize(self.encoder, &self.texts)?)?;
                Ok(())
            }),
            ["tokens"] => clock(|| {
                self.embed(&self.tokens)?;
                Ok(())
            }),
            ["one", index] => {
                let text = self.texts[index.parse::<usize>()?];
                clock(|| {
                    let tokens = self.encoder.tokenize(text, None)?;
                    self.encoder.encode(&[&tokens])?;
                    Ok(())
                })
            }
            ["count"] => {
                let tokens: usize = self.tokens.iter().map(Tokens::len).sum();
                let batches = self.batches(&self.tokens).len();
                Ok(format!("{} {tokens} {batches}", self.texts.len()))
            }
            ["vectors", file] => {
                let vectors = self.embed(&self.tokens)?.into_iter().flatten().flatten();
                fs::write(
                    file,
                    vectors.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
                )?;
                Ok("written".to_owned())
            }
            _ => Err(format!("unknown work {words:?}").into()),
        }
    }

    /// Texts by their numbers, in the order of their lengths, cut into batches.
    fn batches(&self, tokens: &[Tokens]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|text| tokens[*text].len());
        let mut batches = vec![Vec::new()];
        let mut taken = 0;
        for text in order {
            let cost = tokens[text].len();
            if taken + cost > self.budget && taken > 0 {
                batches.push(Vec::new());
                taken = 0;
            }
            taken += cost;
            batches.last_mut().expect("there is one").push(text);
        }
        batches
    }

    fn embed(&self, tokens: &[Tokens]) -> Result<Vec<Option<Vec<f32>>>, Box<dyn Error>> {
        let mut vectors = vec![None; tokens.len()];
        for batch in self.batches(tokens) {
            let inputs: Vec<&Tokens> = batch.iter().map(|text| &tokens[*text]).collect();
            for (text, vector) in batch.iter().zip(self.encoder.encode(&inputs)?) {
                vectors[*text] = Some(vector);
            }
        }
        Ok(vectors)
    }
}

/// Tokenizes texts with all processors, as the server does.
fn tokenize(encoder: &TextEncoder, texts: &[&str]) -> Result<Vec<Tokens>, Box<dyn Error>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = texts.len().div_ceil(threads).max(1);
    let parts = thread::scope(|scope| {
        let parts = texts.chunks(part).map(|part| {
            scope.spawn(|| {
                let tokens = part.iter().map(|text| encoder.tokenize(text, None));
                tokens.collect::<Result<Vec<_>, _>>()
            })
        });
        let threads: Vec<_> = parts.collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    });
    Ok(parts?.concat())
}

struct Pictures<'a> {
    captioner: &'a Captioner,
    pixels: Vec<Pixels>,
    place: Placement,
}

fn read_pictures(captioner: &Captioner, folder: &Path) -> Result<Vec<Pixels>, Box<dyn Error>> {
    let limits = ImageLimits {
        max_bytes: u64::MAX,
        max_pixels: u64::MAX,
    };
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_none_or(|kind| kind != "json"));
    files.sort();
    let pixels = files.iter().map(|file| {
        let bytes = fs::read(file)?;
        Ok(captioner.preprocess(&bytes, &limits)?)
    });
    pixels.collect()
}

impl Pictures<'_> {
    fn answer(&self, words: &[&str]) -> Answer {
        match words {
            ["describe", count, new_tokens] => clock(|| {
                self.describe(count.parse()?, new_tokens.parse()?)?;
                Ok(())
            }),
            ["vision", count] => clock(|| {
                let pixels: Vec<&Pixels> = self.pixels.iter().take(count.parse()?).collect();
                let _images = self.captioner.encode_images(&pixels)?;
                Ok(self.place.device.synchronize()?)
            }),
            ["ids", count, new_tokens] => {
                let ids = self.describe(count.parse()?, new_tokens.parse()?)?;
                Ok(format!("{ids:?}"))
            }
            _ => Err(format!("unknown work {words:?}").into()),
        }
    }

    fn describe(&self, count: usize, new_tokens: u32) -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
        let options = GenerationOverrides {
            num_beams: Some(1),
            min_new_tokens: Some(new_tokens),
            max_new_tokens: Some(new_tokens),
            ..GenerationOverrides::default()
        };
        let config = self.captioner.generation(&options)?;
        let prompt = self.captioner.prompt(None)?;
        let pixels: Vec<&Pixels> = self.pixels.iter().take(count).collect();
        let images = self.captioner.encode_images(&pixels)?;
        let captions = self
            .captioner
            .generate(&images, &prompt, &config, &Watch::default())?;
        let ids = captions.into_iter().flatten();
        Ok(ids.map(|caption| caption.token_ids).collect())
    }
}
