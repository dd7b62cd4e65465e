//! Answers about pictures by InstructBLIP.

use std::collections::BTreeMap;

use candle_core::Tensor;
use tokenizers::Tokenizer;

use crate::blip::VisionTower;
use crate::captioner::{EncodedImages, EncodedStates, Prompt};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::{Placement, compute};
use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged};
use crate::generation::{GenerationConfig, Request, generate};
use crate::instructblip::causal::Beginning;
use crate::instructblip::config::{InstructConfig, TextConfig};
use crate::instructblip::language::{AnswerDecoder, LanguageModel};
use crate::instructblip::qformer::QFormer;
use crate::linear::Linear;
use crate::projection::{ProjectionSpec, Projections};
use crate::quantized::{FourBits, QuantizedWeights};
use crate::tokenizer;
use crate::trace::Trace;

const QUESTION_FOLDER: &str = "qformer_tokenizer/";
const PROJECTION: &str = "language_projection";
/// What transformers' processor calls the token that stands for a vector of a
/// picture.
const IMAGE_TOKEN: &str = "<image>";

/// What follows from the configuration files, before any weight is read.
#[derive(Debug)]
pub(crate) struct InstructPlan {
    config: InstructConfig,
    /// Tokenizes the instruction for the Q-Former.
    question: Tokenizer,
}

impl InstructPlan {
    pub(crate) fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        let config = InstructConfig::read(directory)?;
        let (question, _) = tokenizer::load_from(directory, QUESTION_FOLDER)?;
        let vocabulary = question.get_vocab_size(true);
        if vocabulary > config.qformer.vocab_size {
            return Err(damaged(
                &format!("{QUESTION_FOLDER}tokenizer.json"),
                format!(
                    "It has {vocabulary} tokens, but qformer_config in config.json says {}.",
                    config.qformer.vocab_size
                ),
            ));
        }
        Ok(Self { config, question })
    }

    /// Height and width of what the vision tower takes.
    pub(crate) fn picture_side(&self) -> usize {
        self.config.vision.image_size
    }

    /// The linear layers of the language model.
    pub(crate) fn language_layers(&self, checkpoint: &Checkpoint) -> Vec<ProjectionSpec> {
        LanguageModel::projections(&self.config.text, checkpoint)
    }

    pub(crate) fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let InstructConfig {
            vision,
            qformer,
            text,
            ..
        } = &self.config;
        let mut specs = VisionTower::specs(vision);
        specs.extend(QFormer::specs(
            qformer,
            self.config.queries,
            vision.hidden_size,
        ));
        specs.extend(Linear::specs(
            PROJECTION,
            qformer.hidden_size,
            text.hidden(),
        ));
        specs.extend(LanguageModel::specs(text, checkpoint));
        specs
    }
}

/// The network of an InstructBLIP captioner.
#[derive(Debug)]
pub(crate) struct InstructCaptioner {
    plan: InstructPlan,
    vision: VisionTower,
    qformer: QFormer,
    projection: Linear,
    language: LanguageModel,
}

impl InstructCaptioner {
    pub(crate) fn read(
        plan: InstructPlan,
        checkpoint: &Checkpoint,
        place: &Placement,
        four_bits: Option<&FourBits<'_>>,
    ) -> Result<Self, ModelError> {
        let config = &plan.config;
        let (asked, spoken) = (config.qformer.hidden_size, config.text.hidden());
        let seen = config.vision.hidden_size;
        let layers = plan.language_layers(checkpoint);
        if four_bits.is_some() && !place.device.is_cpu() {
            return Err(ModelError::new(
                ErrorKind::NotSupported,
                format!("4 bits are not supported on {}", place.device_name()),
            )
            .with_hint(
                "Turn pg_sight.load_in_4bit off, which takes two bytes of the device's memory \
                 for each parameter, or set pg_sight.device to \"cpu\".",
            ));
        }
        let quantized = four_bits
            .map(|options| QuantizedWeights::open(checkpoint, &layers, options))
            .transpose()?;
        let source = Projections {
            checkpoint,
            place,
            quantized,
        };
        // First, as most memory is needed while layers are quantized.
        let language = LanguageModel::read(&config.text, &source)?;
        Ok(Self {
            vision: VisionTower::read(&config.vision, checkpoint, place)?,
            qformer: QFormer::read(&config.qformer, config.queries, seen, checkpoint, place)?,
            projection: Linear::read(checkpoint, PROJECTION, asked, spoken, place)?,
            language,
            plan,
        })
    }

    /// The tokens of an instruction. As in transformers' processor the places of the
    /// picture come before the token that begins a text.
    pub(crate) fn prompt(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
    ) -> Result<Prompt, ModelError> {
        let config = &self.plan.config;
        let question = tokenizer::encode(&self.plan.question, instruction)?;
        check_length(
            question.len(),
            config.qformer.max_position_embeddings,
            "Q-Former",
        )?;
        // A processor of today adds this token to a tokenizer that has none.
        let image = config
            .image_token
            .or_else(|| tokenizer.token_to_id(IMAGE_TOKEN))
            .unwrap_or(tokenizer.get_vocab_size(true) as u32);
        let words = tokenizer::encode(tokenizer, instruction)?;
        let vocabulary = config.text.vocabulary();
        if let Some(id) = words
            .iter()
            .find(|id| **id == image || **id as usize >= vocabulary)
        {
            return Err(ModelError::new(ErrorKind::InvalidOption, "invalid prompt")
                .with_detail(format!(
                    "It has the token {id}, which the model has for other things than text."
                ))
                .with_hint("Leave out special tokens: the model puts them where it needs them."));
        }
        let read = config.queries + words.len();
        check_length(read, config.text.positions(), "language model")?;
        let mut ids = match &config.text {
            TextConfig::T5(t5) => vec![t5.begin],
            TextConfig::Llama(_) => vec![image; config.queries],
        };
        if matches!(config.text, TextConfig::Llama(_)) {
            ids.extend(&words);
        }
        Ok(Prompt {
            ids,
            instruction: words,
            question,
        })
    }

    /// How many tokens of an answer are not part of its text.
    pub(crate) fn unspoken(&self, prompt: &Prompt) -> usize {
        prompt.ids.len()
    }

    /// Runs the vision tower over (pictures, 3, side, side).
    pub(crate) fn encode(
        &self,
        pixels: Option<&Tensor>,
        trace: Option<&mut Trace>,
    ) -> Result<EncodedImages, ModelError> {
        let Some(pixels) = pixels else {
            let states = EncodedStates::Keys(Vec::new());
            return Ok(EncodedImages { count: 0, states });
        };
        let states = compute(|| self.vision.forward(pixels, trace))?;
        Ok(EncodedImages {
            count: pixels.dim(0)?,
            states: EncodedStates::Vision(states),
        })
    }

    /// What the language model gets of the pictures, (pictures * queries, hidden).
    fn ask(
        &self,
        images: &EncodedImages,
        prompt: &Prompt,
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor, ModelError> {
        let EncodedStates::Vision(vision) = &images.states else {
            return Err(ModelError::new(
                ErrorKind::Internal,
                "pictures were encoded by a model of another kind",
            ));
        };
        Ok(compute(|| {
            let found = self.qformer.forward(
                vision,
                images.count,
                &prompt.question,
                trace.as_deref_mut(),
            )?;
            let projected = self.projection.forward(&found)?;
            crate::trace::add(&mut trace, || "projection", &projected);
            Ok::<_, candle_core::Error>(projected)
        })?)
    }

    /// The decoder for these pictures and `width` sequences of up to `positions`
    /// tokens; `vectors` is what [`InstructCaptioner::ask`] gave.
    fn decoder<'a>(
        &'a self,
        vectors: &'a Tensor,
        pictures: usize,
        prompt: &'a Prompt,
        width: usize,
        positions: usize,
        trace: Option<&mut Trace>,
    ) -> Result<AnswerDecoder<'a>, ModelError> {
        let beginning = Beginning {
            vectors,
            sequences: pictures,
            tokens: &prompt.instruction,
        };
        let (language, text) = (&self.language, &self.plan.config.text);
        AnswerDecoder::new(language, text, beginning, width, positions, trace)
    }

    /// See [`Captioner::trace`](crate::Captioner::trace).
    pub(crate) fn trace(
        &self,
        pixels: Option<&Tensor>,
        prompt: &Prompt,
        answer: &[u32],
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let text = &self.plan.config.text;
        let positions = prompt.ids.len() + answer.len();
        let unknown = answer.iter().any(|id| *id as usize >= text.vocabulary());
        if unknown || positions > text.positions() {
            return Err(
                ModelError::new(ErrorKind::InvalidOption, "invalid tokens of an answer")
                    .with_detail(format!(
                        "They must be ids below {}, up to {} with those of the prompt.",
                        text.vocabulary(),
                        text.positions()
                    )),
            );
        }
        let mut trace = Trace::default();
        let images = self.encode(pixels, Some(&mut trace))?;
        let vectors = self.ask(&images, prompt, Some(&mut trace))?;
        let of_encoder = Some(&mut trace);
        let mut decoder = self.decoder(&vectors, images.count, prompt, 1, positions, of_encoder)?;
        let hidden = decoder.begin(Some(&mut trace))?;
        trace.add("text.logits", &decoder.logits(&hidden)?);
        for id in answer {
            let hidden = decoder.advance(&[*id], Some(&mut trace))?;
            trace.add("text.logits", &decoder.logits(&hidden)?);
        }
        Ok(trace.into_tensors()?)
    }

    /// The tokens of each answer, those of the prompt first; see
    /// [`Captioner::generate`](crate::Captioner::generate).
    pub(crate) fn generate(
        &self,
        images: &EncodedImages,
        prompt: &Prompt,
        config: &GenerationConfig,
        cancelled: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<Vec<u32>>>, ModelError> {
        let text = &self.plan.config.text;
        let lengths = config.lengths(prompt.ids.len(), text.positions())?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            config,
            lengths,
            prompt: &prompt.ids,
            inputs: images.count,
            end: text.end(),
            cancelled,
        };
        let vectors = self.ask(images, prompt, None)?;
        let width = images.count * config.num_beams;
        let mut decoder = self.decoder(&vectors, images.count, prompt, width, lengths.max, None)?;
        generate(&mut decoder, &request)
    }
}

fn check_length(tokens: usize, limit: usize, part: &str) -> Result<(), ModelError> {
    if tokens <= limit {
        return Ok(());
    }
    Err(
        ModelError::new(ErrorKind::InvalidOption, "prompt is too long")
            .with_detail(format!(
                "It has {tokens} tokens for the model's {part}, which takes up to {limit}."
            ))
            .with_hint("Shorten the prompt."),
    )
}
