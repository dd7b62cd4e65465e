//! Changes to the scores of the next token, as transformers' logits processors
//! make them, and in their order.

use crate::generation::Request;

/// Whether [`process`] does no more than forbid the end of short sequences.
pub(super) fn only_bound_length(request: &Request<'_>) -> bool {
    request.config.repetition_penalty == 1.0 && request.config.no_repeat_ngram_size == 0
}

/// The token that must not follow `length` tokens, where [`only_bound_length`] is true.
pub(super) fn forbidden_after(length: usize, request: &Request<'_>) -> Option<u32> {
    (length < request.lengths.min).then_some(request.end)
}

/// Changes the scores of what may follow `tokens`. A beam search passes the
/// log-softmax of logits, others pass logits.
pub(super) fn process(request: &Request<'_>, tokens: &[u32], scores: &mut [f32]) {
    if request.config.repetition_penalty != 1.0 {
        penalize_repetition(request.config.repetition_penalty, tokens, scores);
    }
    if request.config.no_repeat_ngram_size > 0 {
        forbid_ngrams(request.config.no_repeat_ngram_size, tokens, scores);
    }
    if tokens.len() < request.lengths.min
        && let Some(score) = scores.get_mut(request.end as usize)
    {
        *score = f32::NEG_INFINITY;
    }
}

/// Makes every token that occurred less likely, once however often it did
/// (Keskar et al. 2019, with the sign rule of transformers).
fn penalize_repetition(penalty: f32, tokens: &[u32], scores: &mut [f32]) {
    let mut seen = tokens.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
    }
}

/// Forbids tokens that would repeat a sequence of `size` tokens.
fn forbid_ngrams(size: usize, tokens: &[u32], scores: &mut [f32]) {
    if tokens.len() < size {
        return;
    }
    let suffix = &tokens[tokens.len() + 1 - size..];
    for window in tokens.windows(size) {
        let (last, before) = window.split_last().expect("size is not zero");
        if before == suffix
            && let Some(score) = scores.get_mut(*last as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: f32 = f32::NEG_INFINITY;

    #[test]
    fn repetition_lowers_scores_of_either_sign_once() {
        let mut scores = [2.0, -2.0, 1.0, 0.0];
        penalize_repetition(2.0, &[0, 1, 0, 9], &mut scores);
        assert_eq!(scores, [1.0, -4.0, 1.0, 0.0]);
    }

    #[test]
    fn ngrams_occur_once() {
        let mut scores = [0.0; 4];
        forbid_ngrams(2, &[1, 2, 3, 1], &mut scores);
        assert_eq!(scores, [0.0, 0.0, NEVER, 0.0]);
        let mut scores = [0.0; 4];
        forbid_ngrams(3, &[1, 2, 3, 1, 2], &mut scores);
        assert_eq!(scores, [0.0, 0.0, 0.0, NEVER]);
        let mut scores = [0.0; 4];
        forbid_ngrams(1, &[1, 3], &mut scores);
        assert_eq!(scores, [0.0, NEVER, 0.0, NEVER]);
        let mut scores = [0.0; 4];
        forbid_ngrams(5, &[1, 1, 1, 1], &mut scores);
        assert_eq!(scores, [0.0; 4]);
    }
}
