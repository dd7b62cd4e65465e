//! Captions of pictures by BLIP.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use tokenizers::Tokenizer;

use crate::blip::config::BlipConfig;
use crate::blip::text::{KeysAndValues, Step, TextDecoder};
use crate::blip::vision::VisionTower;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::{GivesMemoryBack, Placement, compute_on};
use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged};
use crate::generation::{
    Continuation, Decoder, GenerationConfig, GenerationOverrides, Request, StoredGenerationConfig,
    generate, likeliest, not_a_number,
};
use crate::image::{ImageLimits, ImageProcessor, Pixels};
use crate::ops::{HistoryTable, cuda};
use crate::tokenizer;
use crate::trace::Trace;

/// What follows from the configuration files, before any weight is read.
#[derive(Debug)]
pub(crate) struct CaptionerPlan {
    config: BlipConfig,
    processor: ImageProcessor,
    generation: StoredGenerationConfig,
    tokenizer: Tokenizer,
    clean_up_spaces: bool,
}

impl CaptionerPlan {
    /// Reads and checks all configuration files. Errors name the file.
    pub(crate) fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        let config: BlipConfig = directory.json("config.json")?;
        config.check()?;
        let processor = ImageProcessor::read(directory, config.vision_config.image_size)?;
        let generation = directory
            .optional_json("generation_config.json")?
            .unwrap_or_default();
        let (tokenizer, tokenizer_config) = tokenizer::load(directory)?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > config.text_config.vocab_size {
            return Err(damaged(
                "tokenizer.json",
                format!(
                    "It has {vocabulary} tokens, but config.json says {}.",
                    config.text_config.vocab_size
                ),
            ));
        }
        Ok(Self {
            config,
            processor,
            generation,
            tokenizer,
            clean_up_spaces: tokenizer_config
                .clean_up_tokenization_spaces
                .unwrap_or(false),
        })
    }

    pub(crate) fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let mut specs = VisionTower::specs(&self.config.vision_config);
        specs.extend(TextDecoder::specs(&self.config, checkpoint));
        specs
    }
}

/// An image captioner, ready to compute. It may be used by many threads at once.
#[derive(Debug)]
pub struct Captioner {
    plan: Box<CaptionerPlan>,
    vision: VisionTower,
    text: TextDecoder,
    place: Placement,
    /// The last, so that the weights are gone.
    _memory: GivesMemoryBack,
}

/// The tokens that a caption begins with, as the decoder gets them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prompt {
    ids: Vec<u32>,
}

impl Prompt {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// Pictures as the text decoder sees them: the keys and values of its attention
/// to each picture, in all layers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EncodedImages {
    count: usize,
    layers: Vec<KeysAndValues>,
}

impl EncodedImages {
    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A caption. The ids begin with those of the prompt and end with the separator,
/// unless the caption ended by its length; the text is without special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    pub text: String,
    pub token_ids: Vec<u32>,
}

impl Captioner {
    pub(crate) fn read(
        plan: Box<CaptionerPlan>,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            vision: VisionTower::read(&plan.config.vision_config, checkpoint, place)?,
            text: TextDecoder::read(&plan.config, checkpoint, place)?,
            place: place.clone(),
            plan,
            _memory: GivesMemoryBack::to(&place.device),
        })
    }

    /// Decodes and preprocesses one encoded picture; limits are checked before
    /// memory is taken for pixels.
    ///
    /// Errors: [`ErrorKind::InvalidImage`], [`ErrorKind::ImageTooLarge`].
    pub fn preprocess(&self, bytes: &[u8], limits: &ImageLimits) -> Result<Pixels, ModelError> {
        self.plan.processor.preprocess(bytes, limits)
    }

    /// A picture of which nothing is known: all values are 0, the mean of pictures.
    pub fn blank(&self) -> Pixels {
        self.plan.processor.blank()
    }

    /// The configuration of a generation: the model's own (`generation_config.json`)
    /// with the caller's options over it, checked.
    ///
    /// Errors: [`ErrorKind::InvalidOption`], [`ErrorKind::NotSupported`].
    pub fn generation(
        &self,
        options: &GenerationOverrides,
    ) -> Result<GenerationConfig, ModelError> {
        GenerationConfig::new(&self.plan.generation, options)
    }

    /// The token ids of a prompt as the decoder gets them. As in transformers the
    /// first token is replaced by the decoder's own first token, and the last, the
    /// separator, is dropped; an empty prompt is no prompt.
    pub fn prompt(&self, prompt: Option<&str>) -> Result<Prompt, ModelError> {
        let mut ids = match prompt {
            Some(prompt) => tokenizer::encode(&self.plan.tokenizer, prompt)?,
            None => Vec::new(),
        };
        ids.pop();
        let begin = self.plan.config.text_config.bos_token_id;
        match ids.first_mut() {
            Some(first) => *first = begin,
            None => ids.push(begin),
        }
        Ok(Prompt { ids })
    }

    /// Runs the vision tower, and computes the keys and values of the decoder's
    /// attention to it: once for a picture, whatever is asked about it.
    pub fn encode_images(&self, batch: &[&Pixels]) -> Result<EncodedImages, ModelError> {
        self.encode(batch, None)
    }

    /// What is computed for one picture and these tokens of its caption, the first
    /// of all included: `vision.embeddings`, `vision.layer.N`, `vision.output`,
    /// `text.embeddings`, `text.layer.N` (vectors, width) and `text.logits` (tokens,
    /// vocabulary). For comparing models with another implementation of them.
    ///
    /// Errors: [`ErrorKind::InvalidOption`] for no tokens, too many, or one that the
    /// vocabulary does not have.
    pub fn trace(
        &self,
        pixels: &Pixels,
        ids: &[u32],
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let text = &self.plan.config.text_config;
        let unknown = ids.iter().any(|id| *id as usize >= text.vocab_size);
        if unknown || ids.is_empty() || ids.len() > text.max_position_embeddings {
            return Err(
                ModelError::new(ErrorKind::InvalidOption, "invalid tokens of a caption")
                    .with_detail(format!(
                        "They must be 1 to {} ids below {}.",
                        text.max_position_embeddings, text.vocab_size
                    )),
            );
        }
        let mut trace = Trace::default();
        let images = self.encode(&[pixels], Some(&mut trace))?;
        let mut decoder = BlipDecoder::new(self, &images, ids, 1, ids.len())?;
        decoder.begin();
        for id in ids {
            let hidden = decoder.advance(&[*id], Some(&mut trace))?;
            trace.add("text.logits", &decoder.logits(&hidden)?);
        }
        Ok(trace.into_tensors()?)
    }

    fn encode(
        &self,
        batch: &[&Pixels],
        trace: Option<&mut Trace>,
    ) -> Result<EncodedImages, ModelError> {
        if batch.is_empty() {
            return Ok(EncodedImages {
                count: 0,
                layers: Vec::new(),
            });
        }
        let pixels = self.upload(batch)?;
        let layers = compute_on(&self.place.device, || {
            self.text
                .picture_keys(&self.vision.forward(&pixels, trace)?)
        })?;
        Ok(EncodedImages {
            count: batch.len(),
            layers,
        })
    }

    /// Pictures where they are computed, (batch, 3, side, side). Each is rounded before it is
    /// copied, so that a device gets half the bytes, by as many threads as there are.
    fn upload(&self, batch: &[&Pixels]) -> candle_core::Result<Tensor> {
        let side = self.plan.processor.side();
        let Placement { device, dtype } = &self.place;
        let upload = |pixels: &&Pixels| {
            let pixels = Tensor::from_slice(pixels.values(), (1, 3, side, side), &Device::Cpu)?;
            pixels.to_dtype(*dtype)?.to_device(device)
        };
        let pictures: Vec<Tensor> = batch
            .par_iter()
            .map(upload)
            .collect::<candle_core::Result<_>>()?;
        Tensor::cat(&pictures, 0)
    }

    /// Captions pictures, with one prompt for all. `cancelled` is asked before each
    /// decoder step with the number of the picture: a cancelled picture leaves the
    /// batch and yields `None`.
    ///
    /// Errors: [`ErrorKind::InvalidOption`] where a length does not fit the prompt
    /// or the model.
    pub fn generate(
        &self,
        images: &EncodedImages,
        prompt: &Prompt,
        config: &GenerationConfig,
        cancelled: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<Caption>>, ModelError> {
        let text = &self.plan.config.text_config;
        let lengths = config.lengths(prompt.ids.len(), text.max_position_embeddings)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            config,
            lengths,
            prompt: &prompt.ids,
            inputs: images.count,
            end: text.sep_token_id,
            cancelled,
        };
        let width = images.count * config.num_beams;
        let mut decoder = BlipDecoder::new(self, images, &prompt.ids, width, lengths.max)?;
        generate(&mut decoder, &request)?
            .into_iter()
            .map(|ids| ids.map(|ids| self.caption(ids)).transpose())
            .collect()
    }

    fn caption(&self, token_ids: Vec<u32>) -> Result<Caption, ModelError> {
        let text = tokenizer::decode(&self.plan.tokenizer, self.plan.clean_up_spaces, &token_ids)?;
        Ok(Caption { text, token_ids })
    }
}

/// The decoder at work for one request, with the cache that belongs to it.
struct BlipDecoder<'a> {
    captioner: &'a Captioner,
    images: &'a EncodedImages,
    prompt: &'a [u32],
    /// Keys and values of all positions: position p of row r is at `p * width + r`.
    cache: Vec<KeysAndValues>,
    /// Rows of the cache for one position.
    width: usize,
    /// The next position to compute.
    position: usize,
    rows: Vec<Row>,
    /// The rows of the pictures that the sequences attend to, and for which pictures that is.
    pictures: (Vec<usize>, HistoryTable),
}

/// A sequence: its picture, and where in the cache its tokens are.
#[derive(Clone)]
struct Row {
    image: usize,
    history: Vec<u32>,
}

impl<'a> BlipDecoder<'a> {
    /// For sequences of up to `positions` tokens, up to `width` of them.
    fn new(
        captioner: &'a Captioner,
        images: &'a EncodedImages,
        prompt: &'a [u32],
        width: usize,
        positions: usize,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            captioner,
            images,
            prompt,
            cache: captioner.text.cache(width * positions)?,
            width,
            position: 0,
            rows: Vec::new(),
            pictures: Default::default(),
        })
    }

    /// Makes a row for each picture, without tokens.
    fn begin(&mut self) {
        let row = |image| Row {
            image,
            history: Vec::new(),
        };
        self.rows = (0..self.images.count).map(row).collect();
    }

    /// Computes one token for each row; the result is (rows, hidden).
    fn advance(&mut self, tokens: &[u32], trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        let cache_row = self.position * self.width;
        let mut history = HistoryTable::default();
        for (index, row) in self.rows.iter_mut().enumerate() {
            row.history.push((cache_row + index) as u32);
            history.push(row.history.iter().copied());
        }
        self.look_at_pictures();
        let step = Step {
            tokens,
            position: self.position,
            cache_row,
            history: &history,
            pictures: &self.pictures.1,
        };
        self.position += 1;
        let Captioner { text, place, .. } = self.captioner;
        Ok(compute_on(&place.device, || {
            text.step(&step, &self.cache, &self.images.layers, trace)
        })?)
    }

    /// Makes the table of pictures, which mostly stays the same from step to step.
    fn look_at_pictures(&mut self) {
        let images: Vec<usize> = self.rows.iter().map(|row| row.image).collect();
        if self.pictures.0 == images {
            return;
        }
        let patches = self.captioner.plan.config.vision_config.positions();
        let mut table = HistoryTable::default();
        for image in &images {
            let first = image * patches;
            table.push(first as u32..(first + patches) as u32);
        }
        self.pictures = (images, table);
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let Captioner { text, place, .. } = self.captioner;
        Ok(compute_on(&place.device, || text.logits(hidden))?)
    }

    fn scores(&self, hidden: &Tensor) -> Result<Vec<f32>, ModelError> {
        let logits = self.logits(hidden)?;
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// The likeliest token of each row, found where the scores are.
    fn likeliest(&self, hidden: &Tensor, forbidden: Option<u32>) -> Result<Vec<u32>, ModelError> {
        let logits = self.logits(hidden)?;
        let Some(tokens) = cuda::likeliest(&logits, forbidden)? else {
            let scores = logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
            return likeliest(scores, self.vocabulary(), forbidden);
        };
        if tokens.contains(&u32::MAX) {
            return Err(not_a_number());
        }
        Ok(tokens)
    }

    /// Computes the prompt; the result is the last hidden state, (pictures, hidden).
    fn read_prompt(&mut self) -> Result<Tensor, ModelError> {
        self.begin();
        let mut hidden = None;
        for token in self.prompt {
            hidden = Some(self.advance(&vec![*token; self.images.count], None)?);
        }
        hidden
            .ok_or_else(|| ModelError::new(ErrorKind::Internal, "a generation needs a first token"))
    }

    /// Computes a token for each of these rows; the result is (rows, hidden).
    fn go_on(&mut self, rows: &[Continuation]) -> Result<Tensor, ModelError> {
        self.rows = rows
            .iter()
            .map(|row| self.rows[row.parent].clone())
            .collect();
        let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
        self.advance(&tokens, None)
    }
}

impl Decoder for BlipDecoder<'_> {
    fn vocabulary(&self) -> usize {
        self.captioner.plan.config.text_config.vocab_size
    }

    fn prompt(&mut self) -> Result<Vec<f32>, ModelError> {
        let hidden = self.read_prompt()?;
        self.scores(&hidden)
    }

    fn step(&mut self, rows: &[Continuation]) -> Result<Vec<f32>, ModelError> {
        let hidden = self.go_on(rows)?;
        self.scores(&hidden)
    }

    fn prompt_likeliest(&mut self, forbidden: Option<u32>) -> Result<Vec<u32>, ModelError> {
        let hidden = self.read_prompt()?;
        self.likeliest(&hidden, forbidden)
    }

    fn step_likeliest(
        &mut self,
        rows: &[Continuation],
        forbidden: Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        let hidden = self.go_on(rows)?;
        self.likeliest(&hidden, forbidden)
    }
}
