//! The number of compute threads, alone in its process because it is set once.

use std::path::Path;

use sight_models::{ErrorKind, Model, Placement, load, set_threads};

#[test]
fn threads_are_set_once_and_compute() {
    set_threads(1).unwrap();
    assert_eq!(rayon::current_num_threads(), 1);
    let error = set_threads(2).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-bert");
    let Ok(Model::Encoder(encoder)) = load(&tiny, &Placement::default()) else {
        panic!("the tiny model is an encoder");
    };
    let tokens = encoder.tokenize("a red shoe", None).unwrap();
    let many = vec![&tokens; 600];
    let vectors = encoder.encode(&many).unwrap();
    assert!(vectors.iter().all(|vector| vector == &vectors[0]));
}
