//! A text encoder with arbitrary weights, small enough to be made by each test:
//! BERT in the layout of sentence-transformers.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

/// Length of its vectors.
pub const DIMENSIONS: usize = 32;
const LAYERS: usize = 2;
const INNER: usize = 64;
const MAX_TOKENS: usize = 64;
const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "green", "shoe", "hat", "lamp", "old", "new",
];

/// Writes the model's files into a directory.
pub fn write(directory: &Path) {
    let json = |name: &str, value: serde_json::Value| {
        std::fs::write(directory.join(name), value.to_string()).unwrap();
    };
    std::fs::create_dir_all(directory.join("1_Pooling")).unwrap();
    json(
        "config.json",
        json!({
            "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
            "hidden_size": DIMENSIONS, "intermediate_size": INNER, "layer_norm_eps": 1e-12,
            "max_position_embeddings": MAX_TOKENS, "num_attention_heads": 4,
            "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2,
            "position_embedding_type": "absolute", "vocab_size": WORDS.len(),
        }),
    );
    json(
        "modules.json",
        json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]),
    );
    json(
        "1_Pooling/config.json",
        json!({
            "word_embedding_dimension": DIMENSIONS, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        }),
    );
    json(
        "sentence_bert_config.json",
        json!({"max_seq_length": MAX_TOKENS, "do_lower_case": false}),
    );
    json(
        "tokenizer_config.json",
        json!({"tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": MAX_TOKENS}),
    );
    json("tokenizer.json", tokenizer());
    write_weights(&directory.join("model.safetensors"));
}

fn tokenizer() -> serde_json::Value {
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let vocabulary: serde_json::Map<String, serde_json::Value> = WORDS
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": (0..4).map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("[CLS]"), sequence("A", 0), token("[SEP]")],
            "pair": [token("[CLS]"), sequence("A", 0), token("[SEP]"), sequence("B", 1), token("[SEP]")],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

fn write_weights(path: &Path) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let norm = |name: String| {
        [
            (format!("{name}.weight"), vec![DIMENSIONS]),
            (format!("{name}.bias"), vec![DIMENSIONS]),
        ]
    };
    let linear = |name: String, outputs: usize, inputs: usize| {
        [
            (format!("{name}.weight"), vec![outputs, inputs]),
            (format!("{name}.bias"), vec![outputs]),
        ]
    };
    for (name, rows) in [
        ("word", WORDS.len()),
        ("position", MAX_TOKENS),
        ("token_type", 2),
    ] {
        let name = format!("embeddings.{name}_embeddings.weight");
        shapes.push((name, vec![rows, DIMENSIONS]));
    }
    shapes.extend(norm("embeddings.LayerNorm".into()));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            let part = name(&format!("attention.self.{part}"));
            shapes.extend(linear(part, DIMENSIONS, DIMENSIONS));
        }
        shapes.extend(linear(
            name("attention.output.dense"),
            DIMENSIONS,
            DIMENSIONS,
        ));
        shapes.extend(norm(name("attention.output.LayerNorm")));
        shapes.extend(linear(name("intermediate.dense"), INNER, DIMENSIONS));
        shapes.extend(linear(name("output.dense"), DIMENSIONS, INNER));
        shapes.extend(norm(name("output.LayerNorm")));
    }
    let mut state = 1u32;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = shape.iter().product();
            let bytes = (0..values).flat_map(|_| noise(&mut state).to_le_bytes());
            (name, shape, bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    serialize_to_file(views, None, path).unwrap();
}

/// Arbitrary numbers between -0.5 and 0.5, always the same.
fn noise(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 8) as f32 / (1 << 24) as f32 - 0.5
}
