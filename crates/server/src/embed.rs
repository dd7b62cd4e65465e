//! Requests to embed texts.

use std::sync::Arc;

use sight_models::TextEncoder;
use sight_protocol::{
    Counter, EmbeddingBatch, ErrorReply, Limits, MAX_FRAME_BYTES, ModelRef, ModelTask, Response,
    embeddings_body,
};

use crate::activity::Ticket;
use crate::cache::Key;
use crate::error;
use crate::model_thread::ModelHandle;
use crate::models::LoadedModel;
use crate::pipeline::{Cut, Pipeline};
use crate::service::{Answer, Service, check_text};

/// Texts of one request that are tokenized and queued together.
const TEXT_WINDOW: usize = 1024;
/// Texts that one blocking thread tokenizes at a time.
const TEXT_PIECE: usize = 64;
/// The texts of larger requests are not put into the cache, where they would take the
/// place of those that come again.
const MOST_TEXTS_TO_CACHE: usize = 64;
/// Part of an answer's frame that is left for everything but vectors.
const FRAME_MARGIN_BYTES: usize = 1024;

/// The vectors of a request, as far as they are known.
struct Vectors {
    known: Vec<Option<Arc<[f32]>>>,
    /// Keys of the texts in the cache; empty where that is off.
    keys: Vec<Key>,
}

impl Vectors {
    /// Looks the texts up in the cache.
    fn look_up(
        service: &Service,
        model: &ModelRef,
        revision: &str,
        prompt_name: Option<&str>,
        texts: &[String],
    ) -> Self {
        if !service.cache.is_on() {
            let known = vec![None; texts.len()];
            let keys = Vec::new();
            return Self { known, keys };
        }
        let model: Arc<str> = format!("{revision} {}", model.directory).into();
        let prompt_name: Option<Arc<str>> = prompt_name.map(Into::into);
        let keys = texts.iter().map(|text| Key {
            model: Arc::clone(&model),
            prompt_name: prompt_name.clone(),
            text: text.as_str().into(),
        });
        let keys: Vec<Key> = keys.collect();
        let known = keys.iter().map(|key| service.cache.get(key)).collect();
        Self { known, keys }
    }

    /// Positions of the texts that have no vector yet.
    fn missing(&self) -> Vec<usize> {
        let missing = self.known.iter().enumerate();
        let missing = missing.filter(|(_, vector)| vector.is_none());
        missing.map(|(position, _)| position).collect()
    }

    /// Adds what has been computed for the texts at these positions.
    fn add(&mut self, service: &Service, positions: &[usize], vectors: Vec<Vec<f32>>) {
        let worth_keeping = positions.len() <= MOST_TEXTS_TO_CACHE;
        for (&position, vector) in positions.iter().zip(vectors) {
            let vector: Arc<[f32]> = vector.into();
            if worth_keeping && let Some(key) = self.keys.get(position) {
                service.cache.put(key.clone(), Arc::clone(&vector));
            }
            self.known[position] = Some(vector);
        }
    }

    fn answer(self, dimensions: usize) -> Answer {
        let vectors: Vec<&[f32]> = self.known.iter().flatten().map(|row| &**row).collect();
        let batch = EmbeddingBatch {
            rows: as_u32(vectors.len()),
            dimensions: as_u32(dimensions),
        };
        Answer {
            response: Response::Embeddings(batch),
            body: embeddings_body(&vectors.concat()),
        }
    }
}

impl Service {
    pub async fn embed(
        &self,
        ticket: &Arc<Ticket>,
        model: &ModelRef,
        texts: Vec<String>,
        prompt_name: Option<String>,
    ) -> Result<Answer, ErrorReply> {
        check_texts(&texts, model.limits)?;
        let revision = self.models.revision(model).await?;
        let mut vectors = Vectors::look_up(self, model, &revision, prompt_name.as_deref(), &texts);
        let missing = vectors.missing();
        let hits = texts.len() - missing.len();
        if let (true, Some(Some(first))) = (missing.is_empty(), vectors.known.first()) {
            let dimensions = first.len();
            check_answer_size(texts.len(), dimensions)?;
            ticket.counters().add(Counter::CacheHits, hits);
            return Ok(vectors.answer(dimensions));
        }
        let loaded = self.models.get_revision(model, revision).await?;
        let LoadedModel::Encoder(encoder) = &*loaded else {
            return Err(error::wrong_task(&model.name, ModelTask::Describe));
        };
        let dimensions = encoder.engine.dimensions();
        check_answer_size(texts.len(), dimensions)?;
        let texts = take(texts, &missing);
        let computed = self
            .compute_texts(ticket, encoder, texts, prompt_name)
            .await;
        // The error names one of those that were not in the cache.
        let computed = computed.map_err(|error| match error.item {
            Some(item) => error::at_item(error, missing[item as usize]),
            None => error,
        })?;
        vectors.add(self, &missing, computed);
        ticket.counters().add(Counter::CacheHits, hits);
        Ok(vectors.answer(dimensions))
    }

    async fn compute_texts(
        &self,
        ticket: &Arc<Ticket>,
        encoder: &ModelHandle<TextEncoder>,
        texts: Vec<String>,
        prompt_name: Option<String>,
    ) -> Result<Vec<Vec<f32>>, ErrorReply> {
        let pipeline = Pipeline {
            model: encoder,
            ticket,
            options: Arc::new(()),
            cut: Cut {
                window: TEXT_WINDOW,
                piece: TEXT_PIECE,
            },
            preparing: &self.preparing,
        };
        let tokenize = move |encoder: &TextEncoder, text: &String| {
            let tokens = encoder.tokenize(text, prompt_name.as_deref());
            tokens.map_err(error::from_model)
        };
        pipeline.run(texts, tokenize).await
    }
}

/// The texts at these positions, which are in ascending order.
fn take(texts: Vec<String>, positions: &[usize]) -> Vec<String> {
    if positions.len() == texts.len() {
        return texts;
    }
    let mut texts: Vec<Option<String>> = texts.into_iter().map(Some).collect();
    let taken = positions.iter().filter_map(|&at| texts[at].take());
    taken.collect()
}

fn check_texts(texts: &[String], limits: Limits) -> Result<(), ErrorReply> {
    for (item, text) in texts.iter().enumerate() {
        check_text(text, limits).map_err(|error| error::at_item(error, item))?;
    }
    Ok(())
}

/// Checks before the work that its vectors fit into one frame.
fn check_answer_size(texts: usize, dimensions: usize) -> Result<(), ErrorReply> {
    let vector_bytes = dimensions.max(1) * size_of::<f32>();
    let limit = (MAX_FRAME_BYTES - FRAME_MARGIN_BYTES) / vector_bytes;
    if texts > limit {
        return Err(error::too_many_texts(texts, limit));
    }
    Ok(())
}

/// Counts that a frame's size bounds far below the range of `u32`.
fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use sight_protocol::{ErrorCode, Limits};

    use super::{check_answer_size, check_texts, take};

    #[test]
    fn a_text_over_the_limit_is_named() {
        let limits = Limits {
            max_text_bytes: 4,
            max_image_bytes: 0,
            max_image_pixels: 0,
        };
        let error = check_texts(&["four".into(), "fives".into()], limits).unwrap_err();
        assert_eq!((error.code, error.item), (ErrorCode::TextTooLarge, Some(1)));
        assert_eq!(check_texts(&["four".into()], limits), Ok(()));
    }

    #[test]
    fn an_answer_that_fits_no_frame_is_refused_beforehand() {
        assert!(check_answer_size(600_000, 384).is_ok());
        assert!(check_answer_size(700_000, 384).is_err());
    }

    #[test]
    fn texts_are_taken_by_their_positions() {
        let texts = || ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(take(texts(), &[0, 2]), ["a", "c"]);
        assert_eq!(take(texts(), &[0, 1, 2]), ["a", "b", "c"]);
        assert!(take(texts(), &[]).is_empty());
    }
}
