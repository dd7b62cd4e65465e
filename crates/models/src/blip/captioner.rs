//! Captions of pictures by BLIP.

use std::collections::BTreeMap;

use candle_core::Tensor;
use tokenizers::Tokenizer;

use crate::blip::config::BlipConfig;
use crate::blip::text::{Step, TextDecoder};
use crate::blip::vision::VisionTower;
use crate::captioner::{EncodedImages, EncodedStates, Prompt};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::{Placement, compute_on};
use crate::error::{ErrorKind, ModelError};
use crate::generation::{Continuation, LogitsDecoder};
use crate::kv_cache::KeysAndValues;
use crate::ops::HistoryTable;
use crate::tokenizer;
use crate::trace::Trace;

/// The network of a BLIP captioner.
#[derive(Debug)]
pub(crate) struct BlipCaptioner {
    config: BlipConfig,
    vision: VisionTower,
    text: TextDecoder,
    place: Placement,
}

impl BlipCaptioner {
    pub(crate) fn specs(config: &BlipConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let mut specs = VisionTower::specs(&config.vision_config);
        specs.extend(TextDecoder::specs(config, checkpoint));
        specs
    }

    pub(crate) fn read(
        config: BlipConfig,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            vision: VisionTower::read(&config.vision_config, checkpoint, place)?,
            text: TextDecoder::read(&config, checkpoint, place)?,
            place: place.clone(),
            config,
        })
    }

    /// See [`Captioner::prompt`](crate::Captioner::prompt).
    pub(crate) fn prompt(
        &self,
        tokenizer: &Tokenizer,
        prompt: Option<&str>,
    ) -> Result<Prompt, ModelError> {
        let mut ids = match prompt {
            Some(prompt) => tokenizer::encode(tokenizer, prompt)?,
            None => Vec::new(),
        };
        ids.pop();
        let begin = self.config.text_config.bos_token_id;
        match ids.first_mut() {
            Some(first) => *first = begin,
            None => ids.push(begin),
        }
        Ok(Prompt {
            ids,
            instruction: Vec::new(),
            question: Vec::new(),
        })
    }

    /// See [`Captioner::trace`](crate::Captioner::trace).
    pub(crate) fn trace(
        &self,
        pixels: Option<&Tensor>,
        prompt: &Prompt,
        answer: &[u32],
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let text = &self.config.text_config;
        let ids = [prompt.ids(), answer].concat();
        let unknown = ids.iter().any(|id| *id as usize >= text.vocab_size);
        if unknown || ids.len() > text.max_position_embeddings {
            return Err(
                ModelError::new(ErrorKind::InvalidOption, "invalid tokens of a caption")
                    .with_detail(format!(
                        "They must be up to {} ids below {}.",
                        text.max_position_embeddings, text.vocab_size
                    )),
            );
        }
        let mut trace = Trace::default();
        let images = self.encode(pixels, Some(&mut trace))?;
        let mut decoder = BlipDecoder::new(self, &images, &ids, 1, ids.len())?;
        decoder.begin();
        for id in &ids {
            let hidden = decoder.advance(&[*id], Some(&mut trace))?;
            trace.add("text.logits", &decoder.logits(&hidden)?);
        }
        Ok(trace.into_tensors()?)
    }

    /// Runs the vision tower over (pictures, 3, side, side), and computes the keys and
    /// values of the decoder's attention to it.
    pub(crate) fn encode(
        &self,
        pixels: Option<&Tensor>,
        trace: Option<&mut Trace>,
    ) -> Result<EncodedImages, ModelError> {
        let (count, layers) = match pixels {
            None => (0, Vec::new()),
            Some(pixels) => {
                let layers = compute_on(&self.place.device, || {
                    self.text.picture_keys(&self.vision.forward(pixels, trace)?)
                })?;
                (pixels.dim(0)?, layers)
            }
        };
        let states = EncodedStates::Keys(layers);
        Ok(EncodedImages { count, states })
    }

    /// Tokens of the longest caption.
    pub(crate) fn positions(&self) -> usize {
        self.config.text_config.max_position_embeddings
    }

    /// The token that ends a caption.
    pub(crate) fn end(&self) -> u32 {
        self.config.text_config.sep_token_id
    }

    /// A decoder for sequences of up to `positions` tokens, up to `width` of them.
    pub(crate) fn decoder<'a>(
        &'a self,
        images: &'a EncodedImages,
        prompt: &'a Prompt,
        width: usize,
        positions: usize,
    ) -> Result<BlipDecoder<'a>, ModelError> {
        BlipDecoder::new(self, images, &prompt.ids, width, positions)
    }
}

/// The decoder at work for one request, with the cache that belongs to it.
pub(crate) struct BlipDecoder<'a> {
    captioner: &'a BlipCaptioner,
    images: usize,
    /// Keys and values of the pictures, in all layers.
    keys: &'a [KeysAndValues],
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
        captioner: &'a BlipCaptioner,
        images: &'a EncodedImages,
        prompt: &'a [u32],
        width: usize,
        positions: usize,
    ) -> Result<Self, ModelError> {
        let EncodedStates::Keys(keys) = &images.states else {
            return Err(ModelError::new(
                ErrorKind::Internal,
                "pictures were encoded by a model of another kind",
            ));
        };
        Ok(Self {
            captioner,
            images: images.count,
            keys,
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
        self.rows = (0..self.images).map(row).collect();
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
        let BlipCaptioner { text, place, .. } = self.captioner;
        Ok(compute_on(&place.device, || {
            text.step(&step, &self.cache, self.keys, trace)
        })?)
    }

    /// Makes the table of pictures, which mostly stays the same from step to step.
    fn look_at_pictures(&mut self) {
        let images: Vec<usize> = self.rows.iter().map(|row| row.image).collect();
        if self.pictures.0 == images {
            return;
        }
        let patches = self.captioner.config.vision_config.positions();
        let mut table = HistoryTable::default();
        for image in &images {
            let first = image * patches;
            table.push(first as u32..(first + patches) as u32);
        }
        self.pictures = (images, table);
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let BlipCaptioner { text, place, .. } = self.captioner;
        Ok(compute_on(&place.device, || text.logits(hidden))?)
    }

    /// Computes the prompt; the result is the last hidden state, (pictures, hidden).
    fn read_prompt(&mut self) -> Result<Tensor, ModelError> {
        self.begin();
        let mut hidden = None;
        for token in self.prompt {
            hidden = Some(self.advance(&vec![*token; self.images], None)?);
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

impl LogitsDecoder for BlipDecoder<'_> {
    fn vocabulary(&self) -> usize {
        self.captioner.config.text_config.vocab_size
    }

    fn prompt(&mut self) -> Result<Tensor, ModelError> {
        let hidden = self.read_prompt()?;
        self.logits(&hidden)
    }

    fn step(&mut self, rows: &[Continuation]) -> Result<Tensor, ModelError> {
        let hidden = self.go_on(rows)?;
        self.logits(&hidden)
    }
}
