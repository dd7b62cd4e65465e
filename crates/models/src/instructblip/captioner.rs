//! Answers about pictures by InstructBLIP.

use std::collections::BTreeMap;

use candle_core::Tensor;
use tokenizers::Tokenizer;

use crate::blip::VisionTower;
use crate::captioner::{EncodedImages, EncodedStates, Prompt};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::{Placement, compute_on};
use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged};
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

/// Tokens of the longest instruction: memory and time of attention grow with their square.
/// Those of the Q-Former do not bound them, to which a word of any length may be one token.
const MAX_INSTRUCTION_TOKENS: usize = 1024;

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
    place: Placement,
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
            place: place.clone(),
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
        check_length(words.len(), MAX_INSTRUCTION_TOKENS, "language model")?;
        let ids = match &config.text {
            TextConfig::T5(t5) => vec![t5.begin],
            TextConfig::Llama(llama) => {
                let read = config.queries + words.len();
                check_length(read, llama.positions(), "language model")?;
                let mut ids = vec![image; config.queries];
                ids.extend(&words);
                ids
            }
        };
        Ok(Prompt {
            ids,
            instruction: words,
            question,
        })
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
        let states = compute_on(&self.place.device, || self.vision.forward(pixels, trace))?;
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
        Ok(compute_on(&self.place.device, || {
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

    /// Tokens of the longest sequence.
    pub(crate) fn positions(&self) -> usize {
        self.plan.config.text.positions()
    }

    /// The token that ends an answer.
    pub(crate) fn end(&self) -> u32 {
        self.plan.config.text.end()
    }

    /// A decoder for sequences of up to `positions` tokens, up to `width` of them. A trace
    /// gets what is computed before the decoder begins.
    pub(crate) fn decoder<'a>(
        &'a self,
        images: &EncodedImages,
        prompt: &'a Prompt,
        width: usize,
        positions: usize,
        mut trace: Option<&mut Trace>,
    ) -> Result<AnswerDecoder<'a>, ModelError> {
        let beginning = Beginning {
            vectors: self.ask(images, prompt, trace.as_deref_mut())?,
            sequences: images.count,
            tokens: &prompt.instruction,
        };
        AnswerDecoder::new(&self.language, beginning, width, positions, trace)
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
        let decoder = self.decoder(&images, prompt, 1, positions, Some(&mut trace))?;
        let mut sequence = decoder.sequences;
        let hidden = sequence.begin(Some(&mut trace))?;
        trace.add("text.logits", &sequence.logits(&hidden)?);
        for id in answer {
            let hidden = sequence.advance(&[*id], Some(&mut trace))?;
            trace.add("text.logits", &sequence.logits(&hidden)?);
        }
        Ok(trace.into_tensors()?)
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
