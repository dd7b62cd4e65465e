//! InstructBLIP as SQL sees it: a tiny model of random weights, whole and in 4 bits,
//! against what transformers answers with the quantized weights.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg_sight_tests::{Cluster, is_alive, sql_failure, wait_until};
use postgres::Client;
use serde_json::Value;
use tokenizers::Tokenizer;

const INSTRUCTIONS: [&str; 2] = [
    "describe this image in full detail",
    "create an extensive description of this image",
];
const OPTIONS: &str =
    r#"{"num_beams": 10, "max_length": 52, "min_length": 16, "repetition_penalty": 1.5}"#;

fn fixture(path: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/models/tests/fixtures");
    fixtures.join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

/// What transformers answers to the instructions about the first picture, with the
/// weights that quantizing leaves.
fn answers_in_4_bits() -> String {
    let goldens = json("instructblip/q.json");
    let options: Value = serde_json::from_str(OPTIONS).unwrap();
    let places = json("instructblip/q/config.json")["num_query_tokens"].as_u64();
    let tokenizer = Tokenizer::from_file(fixture("instructblip/q/tokenizer.json")).unwrap();
    let answer = |instruction: &str| {
        let cases = goldens["cases"].as_array().unwrap();
        let wanted = |case: &&Value| case["prompt"] == instruction && case["options"] == options;
        let ids = &cases.iter().find(wanted).unwrap()["ids"][0];
        let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        let tokens = tokenizer.encode(instruction, true).unwrap().len();
        let answer = &ids[places.unwrap() as usize + tokens..];
        let text = tokenizer.decode(answer, true).unwrap();
        text.trim().to_owned()
    };
    INSTRUCTIONS.map(answer).join(" ")
}

/// Registers a copy of the model, in whose directory the server may write.
fn register(cluster: &Cluster, client: &mut Client) -> PathBuf {
    let directory = cluster.copy_model(&fixture("instructblip/q"), "instructblip");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    client
        .batch_execute(&format!(
            "CREATE EXTENSION pg_sight CASCADE;
             SELECT sight_model_register('instructblip', '{}');
             SET pg_sight.describe_model = 'instructblip'",
            directory.display()
        ))
        .unwrap();
    directory
}

fn describe(client: &mut Client, picture: &[u8]) -> String {
    let call = "SELECT blip_describe($1, $2::text[], options => ($3::text)::jsonb)";
    let arguments: [&(dyn postgres::types::ToSql + Sync); 3] =
        [&picture, &INSTRUCTIONS.as_slice(), &OPTIONS];
    client.query_one(call, &arguments).unwrap().get(0)
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

#[test]
fn a_language_model_in_4_bits_answers_instructions() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    let directory = register(&cluster, &mut client);
    let picture = fs::read(fixture("blip/pictures/0.png")).unwrap();
    let memory = "SELECT memory_bytes FROM sight_models WHERE name = 'instructblip'";
    let whole = describe(&mut client, &picture);
    let whole_bytes = number(&mut client, memory);
    let kept = directory.join(".pg_sight-4bit.safetensors");
    assert!(!kept.exists());

    let first = cluster.model_server(&mut client).unwrap();
    client
        .batch_execute("ALTER SYSTEM SET pg_sight.load_in_4bit = on")
        .unwrap();
    cluster.reload();
    wait_until("the server is replaced", Duration::from_secs(20), || {
        !is_alive(first)
    });
    let expected = answers_in_4_bits();
    assert_ne!(whole, expected);
    assert_eq!(describe(&mut client, &picture), expected);
    assert!(kept.exists());
    let bytes = number(&mut client, memory);
    assert!(2 * bytes < whole_bytes, "{bytes} of {whole_bytes}");

    // The next load takes what the first has kept.
    client
        .query_one("SELECT sight_model_unload('instructblip')", &[])
        .unwrap();
    assert_eq!(describe(&mut client, &picture), expected);
    let quantized = cluster
        .log()
        .matches("quantizing weights to 4 bits")
        .count();
    assert_eq!(quantized, 1);
}

#[test]
fn instructions_are_bounded_and_tokens_counted() {
    let cluster = Cluster::start(&["pg_sight.load_in_4bit = on"]);
    let mut client = cluster.client();
    register(&cluster, &mut client);
    let picture = fs::read(fixture("blip/pictures/0.png")).unwrap();
    // A single token for the Q-Former.
    let long = "SELECT blip_describe($1, repeat('x', 2000))";
    let failure = sql_failure(client.query(long, &[&picture]));
    assert_eq!(failure.state, "22023");
    assert_eq!(failure.message, "prompt is too long");
    assert!(failure.detail.contains("1024"), "{failure:?}");

    let generated = "SELECT generated_tokens FROM sight_stats WHERE model = 'instructblip'";
    assert_eq!(number(&mut client, generated), 0);
    let seven = "SELECT blip_describe($1, $2::text[], options =>
        '{\"num_beams\": 3, \"max_new_tokens\": 7, \"min_new_tokens\": 7}')";
    client
        .query_one(seven, &[&picture, &INSTRUCTIONS.as_slice()])
        .unwrap();
    assert_eq!(number(&mut client, generated), 14);
}
