//! What a model thread computes with: one trait over text encoders and
//! captioners.

use sight_models::{Captioner, GenerationConfig, GenerationOverrides, Prompt, TextEncoder, Watch};
use sight_protocol::ErrorReply;

use crate::error;

/// A loaded model, as the queue and the model thread see it.
pub trait Engine: Send + Sync + 'static {
    /// One prepared input: a tokenized text, a preprocessed picture.
    type Input: Send + 'static;
    /// What inputs must have in common to be computed in one batch.
    type Options: PartialEq + Send + Sync + 'static;
    type Output: Send + 'static;

    /// The part of a batch's budget that an input takes: tokens or pictures.
    fn cost(input: &Self::Input) -> usize;

    /// Inputs of that cost, or a single one that costs more, and their options: for
    /// a batch that shows that the model works, or gets it going.
    ///
    /// # Errors
    /// The model cannot make any.
    fn samples(&self, cost: usize) -> Result<(Vec<Self::Input>, Self::Options), ErrorReply>;

    /// Computes one batch, in input order. `watch` says whether the answer for an input
    /// is still wanted; `None` answers one that is not. Where a batch takes many steps it
    /// is asked after each that was computed.
    ///
    /// # Errors
    /// An error of the batch; the caller finds out which input is at fault.
    fn compute(
        &self,
        inputs: &[&Self::Input],
        options: &Self::Options,
        watch: &Watch<'_>,
    ) -> Result<Vec<Option<Self::Output>>, ErrorReply>;
}

impl Engine for TextEncoder {
    type Input = sight_models::Tokens;
    type Options = ();
    type Output = Vec<f32>;

    fn cost(input: &Self::Input) -> usize {
        input.len()
    }

    fn samples(&self, cost: usize) -> Result<(Vec<Self::Input>, ()), ErrorReply> {
        let words = cost.min(self.max_tokens()).max(1);
        let text = vec!["a"; words].join(" ");
        let tokens = self.tokenize(&text, None).map_err(error::from_model)?;
        let count = cost / tokens.len().max(1);
        Ok((vec![tokens; count.max(1)], ()))
    }

    fn compute(
        &self,
        inputs: &[&Self::Input],
        (): &(),
        _watch: &Watch<'_>,
    ) -> Result<Vec<Option<Vec<f32>>>, ErrorReply> {
        let vectors = self.encode(inputs).map_err(error::from_computation)?;
        Ok(vectors.into_iter().map(Some).collect())
    }
}

/// How pictures are described.
#[derive(Debug, PartialEq)]
pub struct DescribeOptions {
    /// At least one; the answers are joined by a space.
    pub prompts: Vec<Prompt>,
    pub generation: GenerationConfig,
}

impl Engine for Captioner {
    type Input = sight_models::Pixels;
    type Options = DescribeOptions;
    type Output = String;

    fn cost(_input: &Self::Input) -> usize {
        1
    }

    fn samples(&self, cost: usize) -> Result<(Vec<Self::Input>, DescribeOptions), ErrorReply> {
        let one_token = GenerationOverrides {
            max_new_tokens: Some(1),
            min_length: Some(0),
            min_new_tokens: Some(0),
            num_beams: Some(1),
            do_sample: Some(false),
            ..GenerationOverrides::default()
        };
        let options = DescribeOptions {
            prompts: vec![self.prompt(None).map_err(error::from_model)?],
            generation: self.generation(&one_token).map_err(error::from_model)?,
        };
        Ok((vec![self.blank(); cost.max(1)], options))
    }

    fn compute(
        &self,
        inputs: &[&Self::Input],
        options: &DescribeOptions,
        watch: &Watch<'_>,
    ) -> Result<Vec<Option<String>>, ErrorReply> {
        let images = self
            .encode_images(inputs)
            .map_err(error::from_computation)?;
        let mut answers: Vec<Option<Vec<String>>> = vec![Some(Vec::new()); inputs.len()];
        for prompt in &options.prompts {
            let dropped = |row: usize| answers[row].is_none() || (watch.cancelled)(row);
            if (0..inputs.len()).all(dropped) {
                return Ok(inputs.iter().map(|_| None).collect());
            }
            let watch = Watch {
                cancelled: &dropped,
                generated: watch.generated,
            };
            let captions = self
                .generate(&images, prompt, &options.generation, &watch)
                .map_err(error::from_computation)?;
            for (answer, caption) in answers.iter_mut().zip(captions) {
                match (answer.as_mut(), caption) {
                    (Some(parts), Some(caption)) => parts.push(caption.text),
                    _ => *answer = None,
                }
            }
        }
        let joined = answers
            .into_iter()
            .map(|parts| parts.map(|parts| parts.join(" ")));
        Ok(joined.collect())
    }
}
