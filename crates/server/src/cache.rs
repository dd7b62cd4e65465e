//! Embeddings of texts that may come again: the least recently used go first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Memory that an entry takes beside its text and its vector, in bytes.
const OVERHEAD_BYTES: usize = 192;

/// What a vector depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The model's directory and the revision of its files.
    pub model: Arc<str>,
    pub prompt_name: Option<Arc<str>>,
    pub text: Box<str>,
}

pub struct EmbeddingCache {
    max_bytes: usize,
    state: Mutex<State>,
}

struct State {
    entries: LruCache<Key, Arc<[f32]>>,
    bytes: usize,
}

impl EmbeddingCache {
    /// Keeps up to `max_bytes`, of which 0 is nothing.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            state: Mutex::new(State {
                entries: LruCache::unbounded(),
                bytes: 0,
            }),
        }
    }

    /// Whether it keeps anything.
    pub fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// The vector of a text, which becomes the last used one.
    pub fn get(&self, key: &Key) -> Option<Arc<[f32]>> {
        self.lock().entries.get(key).cloned()
    }

    /// Keeps a vector, in place of those that were not used for longest. One that
    /// would take more than a sixteenth of the cache is not worth it.
    pub fn put(&self, key: Key, vector: Arc<[f32]>) {
        let bytes = bytes_of(&key, &vector);
        if bytes > self.max_bytes / 16 {
            return;
        }
        let mut state = self.lock();
        state.bytes += bytes;
        if let Some((key, vector)) = state.entries.push(key, vector) {
            state.bytes -= bytes_of(&key, &vector);
        }
        while state.bytes > self.max_bytes {
            let Some((key, vector)) = state.entries.pop_lru() else {
                return;
            };
            state.bytes -= bytes_of(&key, &vector);
        }
    }

    /// How many vectors there are, and the bytes they take.
    pub fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.entries.len(), state.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(key: &Key, vector: &[f32]) -> usize {
    key.text.len() + size_of_val(vector) + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{EmbeddingCache, Key, OVERHEAD_BYTES};

    fn key(model: &str, prompt: Option<&str>, text: &str) -> Key {
        Key {
            model: model.into(),
            prompt_name: prompt.map(Into::into),
            text: text.into(),
        }
    }

    fn vector(value: f32) -> Arc<[f32]> {
        vec![value; 4].into()
    }

    #[test]
    fn a_vector_belongs_to_its_model_prompt_and_text() {
        let cache = EmbeddingCache::new(1 << 20);
        let keys = [
            key("a", None, "x"),
            key("b", None, "x"),
            key("a", Some("query"), "x"),
            key("a", None, "y"),
        ];
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(cache.get(key), None);
            cache.put(key.clone(), vector(number as f32));
        }
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(cache.get(key), Some(vector(number as f32)));
        }
        cache.put(keys[0].clone(), vector(9.0));
        assert_eq!(cache.get(&keys[0]), Some(vector(9.0)));
        assert_eq!(cache.size().0, 4);
    }

    #[test]
    fn it_keeps_to_its_size_and_to_what_was_used_last() {
        let entry = 1 + 16 + OVERHEAD_BYTES;
        let cache = EmbeddingCache::new(20 * entry as u64);
        let text = |number: u8| key("m", None, &char::from(b'A' + number).to_string());
        for number in 0..20 {
            cache.put(text(number), vector(0.0));
        }
        assert_eq!(cache.size(), (20, 20 * entry));
        assert!(cache.get(&text(0)).is_some());
        cache.put(text(20), vector(0.0));
        assert_eq!(cache.size(), (20, 20 * entry));
        assert!(cache.get(&text(0)).is_some(), "it was used");
        assert!(cache.get(&text(1)).is_none(), "it was not");

        cache.put(key("m", None, &"x".repeat(2 * entry)), vector(0.0));
        assert_eq!(cache.size(), (20, 20 * entry), "too large to be kept");
    }

    #[test]
    fn without_memory_it_keeps_nothing() {
        let cache = EmbeddingCache::new(0);
        assert!(!cache.is_on());
        cache.put(key("m", None, "x"), vector(0.0));
        assert_eq!(cache.size(), (0, 0));
    }
}
