//! Frames that are damaged in every way: neither end panics or believes sizes that are
//! not there. The fuzz targets `requests` and `responses` run the same.

use std::path::Path;

use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use proptest::sample::Index;

mod support;
use support::exercise::{exercise_requests, exercise_responses};
use support::seeds::{Seeds, requests, responses};

/// Replaces, removes and inserts bytes.
fn damage(seed: &[u8], changes: &[(Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (place, kind, value) in changes {
        let at = place.index(bytes.len() + 1);
        match kind % 4 {
            0 => bytes.insert(at, *value),
            1 => bytes.truncate(at),
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            _ if at < bytes.len() => bytes[at] = *value,
            _ => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn damaged_frames_are_errors(
        seed in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>(), any::<u8>()), 0..6),
    ) {
        let pick = |seeds: Seeds| seeds[seed.index(seeds.len())].1.clone();
        exercise_requests(&damage(&pick(requests()), &changes));
        exercise_responses(&damage(&pick(responses()), &changes));
    }

    #[test]
    fn any_bytes_are_taken(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise_requests(&data);
        exercise_responses(&data);
        prop_assert!(data.len() < 300);
    }
}

#[test]
fn undamaged_frames_are_read() {
    for (_, bytes) in requests() {
        exercise_requests(&bytes);
    }
    for (_, bytes) in responses() {
        exercise_responses(&bytes);
    }
    assert_eq!((requests().len(), responses().len()), (12, 9));
}

/// `PG_SIGHT_ACCEPT=1` writes the files.
#[test]
fn the_seeds_of_the_fuzzer_have_every_message() {
    let seeds_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (target, seeds) in [("requests", requests()), ("responses", responses())] {
        let folder = seeds_folder.join(target);
        for (name, bytes) in seeds {
            let file = folder.join(name);
            if std::env::var_os("PG_SIGHT_ACCEPT").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&file, &bytes).unwrap();
            }
            let found = std::fs::read(&file).unwrap_or_default();
            assert!(found == bytes, "{} is not of this version", file.display());
        }
    }
}
