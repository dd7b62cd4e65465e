//! The models and pictures of the demo, as the tests use them.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Name under which the demo's captioner is registered.
pub const CAPTIONER: &str = "demo-captioner";
/// Name under which all-MiniLM-L6-v2 is registered.
pub const ENCODER: &str = "all-MiniLM-L6-v2";

/// The folder `demo` of this checkout.
pub fn demo_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../demo")
        .canonicalize()
        .expect("demo is there")
}

/// Directory of all-MiniLM-L6-v2.
///
/// # Panics
/// When `PG_SIGHT_MINILM` does not name it.
pub fn minilm_directory() -> PathBuf {
    let directory = std::env::var_os("PG_SIGHT_MINILM").map(PathBuf::from);
    directory
        .filter(|directory| directory.join("modules.json").is_file())
        .expect("PG_SIGHT_MINILM must name the directory of all-MiniLM-L6-v2; make test sets it")
}

fn pictures(folder: &str) -> Vec<(Value, Vec<u8>)> {
    let list = std::fs::read(demo_directory().join(folder).join(format!("{folder}.json")));
    let list: Value = serde_json::from_slice(&list.expect("the list of pictures is there"))
        .expect("the list of pictures is JSON");
    let items = list["items"].as_array().expect("it has items");
    let pictures = items.iter().map(|item| {
        let file = item["file"].as_str().expect("an item names its file");
        let bytes = std::fs::read(demo_directory().join(folder).join(file));
        (
            item.clone(),
            bytes.unwrap_or_else(|error| panic!("{file}: {error}")),
        )
    });
    pictures.collect()
}

/// The captioner's goldens: what transformers makes of each picture, and its bytes.
pub fn captioner_goldens() -> Vec<(Value, Vec<u8>)> {
    pictures("goldens")
}

/// Drawn products as JPEG, PNG and WebP, with what transformers makes of them.
pub fn samples() -> Vec<(Value, Vec<u8>)> {
    pictures("samples")
}
