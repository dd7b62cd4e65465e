//! Captioners of all architectures behind one interface.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use tokenizers::Tokenizer;

use crate::blip::{BlipCaptioner, BlipConfig};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::{GivesMemoryBack, Placement};
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged};
use crate::generation::{
    Decoder, GenerationConfig, GenerationOverrides, Request, StoredGenerationConfig, Watch,
    generate,
};
use crate::image::{ImageLimits, ImageProcessor, Pixels};
use crate::instructblip::{InstructCaptioner, InstructPlan};
use crate::kv_cache::KeysAndValues;
use crate::projection::ProjectionSpec;
use crate::quantized::FourBits;
use crate::tokenizer;

/// What follows from the configuration files, before any weight is read.
#[derive(Debug)]
pub(crate) struct CaptionerPlan {
    files: CaptionerFiles,
    network: NetworkPlan,
}

#[derive(Debug)]
enum NetworkPlan {
    Blip(Box<BlipConfig>),
    InstructBlip(Box<InstructPlan>),
}

/// What captioners of all architectures have beside their network.
#[derive(Debug)]
struct CaptionerFiles {
    processor: ImageProcessor,
    generation: StoredGenerationConfig,
    tokenizer: Tokenizer,
    clean_up_spaces: bool,
}

impl CaptionerFiles {
    /// `side` is what the vision tower takes.
    fn read(directory: &ModelDirectory, side: usize) -> Result<Self, ModelError> {
        let processor = ImageProcessor::read(directory, side)?;
        let generation = directory
            .optional_json("generation_config.json")?
            .unwrap_or_default();
        let (tokenizer, tokenizer_config) = tokenizer::load(directory)?;
        Ok(Self {
            processor,
            generation,
            tokenizer,
            clean_up_spaces: tokenizer_config
                .clean_up_tokenization_spaces
                .unwrap_or(false),
        })
    }
}

impl CaptionerPlan {
    /// Reads and checks all configuration files of a BLIP captioner. Errors name the
    /// file.
    pub(crate) fn blip(directory: &ModelDirectory) -> Result<Self, ModelError> {
        let config: BlipConfig = directory.json("config.json")?;
        config.check()?;
        let files = CaptionerFiles::read(directory, config.vision_config.image_size)?;
        let vocabulary = files.tokenizer.get_vocab_size(true);
        if vocabulary > config.text_config.vocab_size {
            return Err(damaged(
                "tokenizer.json",
                format!(
                    "It has {vocabulary} tokens, but config.json says {}.",
                    config.text_config.vocab_size
                ),
            ));
        }
        let network = NetworkPlan::Blip(Box::new(config));
        Ok(Self { files, network })
    }

    /// The same of an InstructBLIP captioner.
    pub(crate) fn instruct_blip(directory: &ModelDirectory) -> Result<Self, ModelError> {
        let plan = InstructPlan::read(directory)?;
        let mut files = CaptionerFiles::read(directory, plan.picture_side())?;
        tokenizer::set_begin_and_end(directory, &mut files.tokenizer)?;
        let network = NetworkPlan::InstructBlip(Box::new(plan));
        Ok(Self { files, network })
    }

    /// The layers that are loaded in 4 bits where that is wanted.
    pub(crate) fn language_layers(&self, checkpoint: &Checkpoint) -> Vec<ProjectionSpec> {
        match &self.network {
            NetworkPlan::Blip(_) => Vec::new(),
            NetworkPlan::InstructBlip(plan) => plan.language_layers(checkpoint),
        }
    }

    pub(crate) fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        match &self.network {
            NetworkPlan::Blip(config) => BlipCaptioner::specs(config, checkpoint),
            NetworkPlan::InstructBlip(plan) => plan.specs(checkpoint),
        }
    }
}

/// An image captioner, ready to compute. It may be used by many threads at once.
#[derive(Debug)]
pub struct Captioner {
    files: CaptionerFiles,
    network: Network,
    place: Placement,
    /// The last, so that the weights are gone.
    _memory: GivesMemoryBack,
}

#[derive(Debug)]
enum Network {
    Blip(Box<BlipCaptioner>),
    InstructBlip(Box<InstructCaptioner>),
}

/// What a caption begins with, or, for InstructBLIP, what it answers: the tokens as
/// the decoder gets them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// Tokens of the instruction as the language model of InstructBLIP reads it.
    pub(crate) instruction: Vec<u32>,
    /// Tokens of the instruction as the Q-Former of InstructBLIP reads it.
    pub(crate) question: Vec<u32>,
}

impl Prompt {
    /// The tokens that the ids of a caption begin with. For InstructBLIP with a Llama
    /// these are the places of the picture, and then those of the instruction; with a
    /// T5, which reads them in its encoder, only the first token of every answer.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The tokens of the instruction in the vocabulary of the language model; none
    /// for BLIP.
    pub fn instruction_ids(&self) -> &[u32] {
        &self.instruction
    }

    /// The tokens of the instruction in the vocabulary of the Q-Former; none for
    /// BLIP.
    pub fn question_ids(&self) -> &[u32] {
        &self.question
    }
}

/// Pictures as a captioner computed them once, for all prompts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EncodedImages {
    pub(crate) count: usize,
    pub(crate) states: EncodedStates,
}

#[derive(Debug, Clone)]
pub(crate) enum EncodedStates {
    /// Keys and values of the attention of BLIP's text decoder, in all layers.
    Keys(Vec<KeysAndValues>),
    /// The output of the vision tower, (pictures * positions, hidden).
    Vision(Tensor),
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

/// A caption. The ids begin with those of the prompt and end with the token that
/// ends a sequence, unless the caption ended by its length. The text is without
/// special tokens; BLIP's begins with the prompt, which an answer of InstructBLIP
/// does not repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    pub text: String,
    pub token_ids: Vec<u32>,
}

impl Captioner {
    pub(crate) fn read(
        plan: CaptionerPlan,
        checkpoint: &Checkpoint,
        place: &Placement,
        four_bits: Option<&FourBits<'_>>,
    ) -> Result<Self, ModelError> {
        let network = match plan.network {
            NetworkPlan::Blip(config) => {
                Network::Blip(Box::new(BlipCaptioner::read(*config, checkpoint, place)?))
            }
            NetworkPlan::InstructBlip(plan) => {
                let captioner = InstructCaptioner::read(*plan, checkpoint, place, four_bits)?;
                Network::InstructBlip(Box::new(captioner))
            }
        };
        Ok(Self {
            files: plan.files,
            network,
            place: place.clone(),
            _memory: GivesMemoryBack::to(&place.device),
        })
    }

    /// Decodes and preprocesses one encoded picture; limits are checked before
    /// memory is taken for pixels.
    ///
    /// Errors: [`ErrorKind::InvalidImage`](crate::ErrorKind::InvalidImage),
    /// [`ErrorKind::ImageTooLarge`](crate::ErrorKind::ImageTooLarge).
    pub fn preprocess(&self, bytes: &[u8], limits: &ImageLimits) -> Result<Pixels, ModelError> {
        self.files.processor.preprocess(bytes, limits)
    }

    /// A picture of which nothing is known: all values are 0, the mean of pictures.
    pub fn blank(&self) -> Pixels {
        self.files.processor.blank()
    }

    /// The configuration of a generation: the model's own (`generation_config.json`)
    /// with the caller's options over it, checked.
    ///
    /// Errors: [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption),
    /// [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported).
    pub fn generation(
        &self,
        options: &GenerationOverrides,
    ) -> Result<GenerationConfig, ModelError> {
        GenerationConfig::new(&self.files.generation, options)
    }

    /// The token ids of a prompt. As in transformers, BLIP's decoder gets its own
    /// first token in place of the first, and not the last, the separator; an empty
    /// prompt is no prompt. For InstructBLIP the instruction is tokenized twice, for
    /// the Q-Former and for the language model; without one it is empty.
    ///
    /// Errors: [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) where it
    /// is too long for a model that answers it.
    pub fn prompt(&self, prompt: Option<&str>) -> Result<Prompt, ModelError> {
        match &self.network {
            Network::Blip(blip) => blip.prompt(&self.files.tokenizer, prompt),
            Network::InstructBlip(instruct) => {
                instruct.prompt(&self.files.tokenizer, prompt.unwrap_or_default())
            }
        }
    }

    /// Runs the vision tower, and computes what is the same whatever is asked about
    /// a picture.
    pub fn encode_images(&self, batch: &[&Pixels]) -> Result<EncodedImages, ModelError> {
        let pixels = self.pixels(batch)?;
        match &self.network {
            Network::Blip(blip) => blip.encode(pixels.as_ref(), None),
            Network::InstructBlip(instruct) => instruct.encode(pixels.as_ref(), None),
        }
    }

    /// What is computed for one picture, a prompt, and these tokens after it:
    /// `vision.embeddings`, `vision.layer.N`, `vision.output`, `text.embeddings`,
    /// `text.layer.N` (vectors, width) and `text.logits` (tokens, vocabulary); for
    /// InstructBLIP also `qformer.embeddings`, `qformer.layer.N`, `projection` and, of
    /// a T5, `encoder.layer.N`, no `text.embeddings`, and
    /// `text.logits` only from the last token of the prompt on. For comparing models
    /// with another implementation of them.
    ///
    /// Errors: [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) for too
    /// many tokens, or one that the vocabulary does not have.
    pub fn trace(
        &self,
        pixels: &Pixels,
        prompt: &Prompt,
        answer: &[u32],
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let pixels = self.pixels(&[pixels])?;
        match &self.network {
            Network::Blip(blip) => blip.trace(pixels.as_ref(), prompt, answer),
            Network::InstructBlip(instruct) => instruct.trace(pixels.as_ref(), prompt, answer),
        }
    }

    /// Pictures where they are computed, (pictures, 3, side, side); `None` for no pictures.
    /// Each is rounded before it is copied, so that a device gets half the bytes, by as many
    /// threads as there are.
    fn pixels(&self, batch: &[&Pixels]) -> Result<Option<Tensor>, ModelError> {
        if batch.is_empty() {
            return Ok(None);
        }
        let side = self.files.processor.side();
        let Placement { device, dtype } = &self.place;
        let upload = |pixels: &&Pixels| {
            let pixels = Tensor::from_slice(pixels.values(), (1, 3, side, side), &Device::Cpu)?;
            pixels.to_dtype(*dtype)?.to_device(device)
        };
        let pictures: Vec<Tensor> = batch
            .par_iter()
            .map(upload)
            .collect::<candle_core::Result<_>>()?;
        Ok(Some(Tensor::cat(&pictures, 0)?))
    }

    /// Captions pictures, with one prompt for all. `watch` is asked and told with the
    /// number of the picture: a cancelled picture leaves the batch and yields `None`.
    ///
    /// Errors: [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) where a
    /// length does not fit the prompt or the model.
    pub fn generate(
        &self,
        images: &EncodedImages,
        prompt: &Prompt,
        config: &GenerationConfig,
        watch: &Watch<'_>,
    ) -> Result<Vec<Option<Caption>>, ModelError> {
        let (positions, end) = match &self.network {
            Network::Blip(blip) => (blip.positions(), blip.end()),
            Network::InstructBlip(instruct) => (instruct.positions(), instruct.end()),
        };
        let lengths = config.lengths(prompt.ids.len(), positions)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            config,
            lengths,
            prompt: &prompt.ids,
            inputs: images.count,
            end,
            watch,
        };
        let width = images.count * config.num_beams;
        let mut decoder: Box<dyn Decoder + '_> = match &self.network {
            Network::Blip(blip) => Box::new(blip.decoder(images, prompt, width, lengths.max)?),
            Network::InstructBlip(instruct) => {
                Box::new(instruct.decoder(images, prompt, width, lengths.max, None)?)
            }
        };
        let unspoken = match &self.network {
            Network::Blip(_) => 0,
            Network::InstructBlip(_) => prompt.ids.len(),
        };
        generate(&mut *decoder, &request)?
            .into_iter()
            .map(|ids| ids.map(|ids| self.caption(ids, unspoken)).transpose())
            .collect()
    }

    /// The caption of these tokens, the first of which are not part of the text.
    fn caption(&self, token_ids: Vec<u32>, unspoken: usize) -> Result<Caption, ModelError> {
        let files = &self.files;
        let spoken = token_ids.get(unspoken..).unwrap_or_default();
        let text = tokenizer::decode(&files.tokenizer, files.clean_up_spaces, spoken)?;
        let text = match &self.network {
            Network::Blip(_) => text,
            // Where a word begins, the first token is a space too.
            Network::InstructBlip(_) => text.trim().to_owned(),
        };
        Ok(Caption { text, token_ids })
    }
}
