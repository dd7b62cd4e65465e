//! `embed` and `blip_describe` as SQL sees them, against the goldens of
//! transformers and sentence-transformers.

use std::path::Path;

use pg_sight_tests::{Cluster, captioner_goldens, samples, sql_failure};
use serde_json::Value;

fn text<'a>(item: &'a Value, key: &str) -> &'a str {
    item[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is missing"))
}

#[test]
fn descriptions_equal_the_goldens() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let goldens = captioner_goldens();
    assert_eq!(goldens.len(), 32);
    let images: Vec<&[u8]> = goldens.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    let options = r#"{"max_new_tokens": 24}"#;
    for (prompt, key) in [
        (None, "greedy_text"),
        (Some("a photo of"), "prompt_greedy_text"),
    ] {
        let row = client
            .query_one(
                "SELECT blip_describe_batch($1, $2, options => ($3::text)::jsonb)",
                &[&images, &prompt, &options],
            )
            .unwrap();
        let captions: Vec<String> = row.get(0);
        for (caption, (item, _)) in captions.iter().zip(&goldens) {
            assert_eq!(caption, text(item, key));
        }
        // Alone as in the batch.
        let (item, image) = &goldens[5];
        let alone: String = client
            .query_one("SELECT blip_describe($1, $2::text)", &[image, &prompt])
            .unwrap()
            .get(0);
        assert_eq!(alone, text(item, key));
    }
}

#[test]
fn samples_in_every_format_are_described() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    for (item, image) in samples() {
        let caption: String = client
            .query_one("SELECT blip_describe($1)", &[&image])
            .unwrap()
            .get(0);
        assert_eq!(
            caption,
            text(&item, "expected_text"),
            "{}",
            text(&item, "file")
        );
    }
}

#[test]
fn answers_to_several_prompts_are_joined() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let (item, image) = &captioner_goldens()[0];
    let joined: String = client
        .query_one(
            "SELECT blip_describe($1, ARRAY['a photo of', 'a photo of'])",
            &[image],
        )
        .unwrap()
        .get(0);
    let one = text(item, "prompt_greedy_text");
    assert_eq!(joined, format!("{one} {one}"));
    let failure = sql_failure(client.query("SELECT blip_describe($1, ARRAY[]::text[])", &[image]));
    assert_eq!(
        (failure.state.as_str(), failure.hint.is_empty()),
        ("22023", false)
    );
    let failure = sql_failure(client.query("SELECT blip_describe($1, ARRAY['a', NULL])", &[image]));
    assert_eq!(failure.state, "22004");
}

#[test]
fn nulls_give_nulls() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let row = client
        .query_one(
            "SELECT embed(NULL) IS NULL, embed_batch(NULL) IS NULL, blip_describe(NULL) IS NULL,
                    blip_describe(NULL, ARRAY['a']) IS NULL, blip_describe_batch(NULL) IS NULL,
                    embed_batch('{}')::text, blip_describe_batch('{}')::text",
            &[],
        )
        .unwrap();
    for column in 0..5 {
        assert!(row.get::<_, bool>(column), "column {column}");
    }
    assert_eq!((row.get::<_, &str>(5), row.get::<_, &str>(6)), ("{}", "{}"));
    let row = client
        .query_one(
            "SELECT v[1] IS NOT NULL, v[2] IS NULL, v[3] <#> embed('two') < -0.999
             FROM embed_batch(ARRAY['one', NULL, 'two']) AS v",
            &[],
        )
        .unwrap();
    assert!(row.get::<_, bool>(0) && row.get::<_, bool>(1) && row.get::<_, bool>(2));
    let (item, image) = &captioner_goldens()[3];
    let images: Vec<Option<&[u8]>> = vec![None, Some(image), None];
    let captions: Vec<Option<String>> = client
        .query_one("SELECT blip_describe_batch($1)", &[&images])
        .unwrap()
        .get(0);
    let expected = text(item, "greedy_text").to_owned();
    assert_eq!(captions, vec![None, Some(expected), None]);
}

#[test]
fn embeddings_are_normalised_and_batches_equal_single_texts() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let row = client
        .query_one(
            "WITH words AS (
                 SELECT i, repeat('word' || i || ' ', i) AS w FROM generate_series(1, 40) AS i),
             batch AS (SELECT embed_batch(array_agg(w ORDER BY i)) AS v FROM words)
             SELECT max(embed(w) <-> v[i]), max(abs(vector_norm(v[i]) - 1)),
                    min(vector_dims(v[i])), max(vector_dims(v[i]))
             FROM words, batch",
            &[],
        )
        .unwrap();
    let (apart, off): (f64, f64) = (row.get(0), row.get(1));
    assert!(apart < 1e-5 && off < 1e-5, "{apart} {off}");
    assert_eq!((row.get::<_, i32>(2), row.get::<_, i32>(3)), (384, 384));
    let nearest: String = client
        .query_one(
            "SELECT t FROM unnest(ARRAY['red trainers', 'a bowl of soup', 'tax law']) AS t
             ORDER BY embed(t) <#> embed('crimson sneakers') LIMIT 1",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(nearest, "red trainers");
}

#[test]
fn a_call_site_embeds_a_constant_once() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT i, embed('seed') AS v FROM generate_series(1, 5) AS i;
             INSERT INTO t SELECT i, v FROM t, generate_series(1, 200)",
        )
        .unwrap();
    let requests = |client: &mut postgres::Client| -> i64 {
        client
            .query_one("SELECT requests FROM sight_server_status", &[])
            .unwrap()
            .get(0)
    };
    let before = requests(&mut client);
    let rows = client
        .query("SELECT i FROM t ORDER BY v <#> embed('red')", &[])
        .unwrap();
    assert_eq!(rows.len(), 1005);
    // The statement's one embedding, and the status requests themselves.
    let made = requests(&mut client) - before;
    assert!((1..=3).contains(&made), "{made} requests for one statement");
}

#[test]
fn options_are_checked() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let (_, image) = &captioner_goldens()[0];
    let mut failure = |options: &str| {
        sql_failure(client.query(
            "SELECT blip_describe($1, options => ($2::text)::jsonb)",
            &[image, &options],
        ))
    };
    let unknown = failure(r#"{"beams": 3}"#);
    assert_eq!(unknown.state, "22023");
    assert_eq!(unknown.message, "unrecognized generation option \"beams\"");
    assert!(unknown.hint.contains("num_beams"), "{unknown:?}");
    let value = failure(r#"{"max_length": "long"}"#);
    assert_eq!(value.state, "22023");
    assert!(!value.detail.is_empty(), "{value:?}");
    assert_eq!(failure("[]").state, "22023");
    let short: String = client
        .query_one(
            r#"SELECT blip_describe($1, options => '{"max_new_tokens": 3}')"#,
            &[image],
        )
        .unwrap()
        .get(0);
    assert_eq!(short.split(' ').count(), 3, "{short}");
}

/// A tiny encoder with prompts, and what sentence-transformers computed with them.
fn prompted_encoder(cluster: &Cluster, client: &mut postgres::Client) -> Value {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/models/tests/fixtures/encoders");
    let directory = cluster.copy_model(&fixtures.join("mpnet-b"), "mpnet-b");
    client
        .execute(
            "SELECT sight_model_register('prompted', $1)",
            &[&directory.to_str().unwrap()],
        )
        .unwrap();
    serde_json::from_slice(&std::fs::read(fixtures.join("mpnet-b.json")).unwrap()).unwrap()
}

#[test]
fn a_prompt_is_chosen_by_argument_or_setting() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let goldens = prompted_encoder(&cluster, &mut client);
    let text = goldens["texts"][2].as_str().unwrap();
    let of = |vectors: &Value| vectors[2].to_string();
    let distance = |client: &mut postgres::Client, call: &str, golden: &String| -> f64 {
        let query = format!("SELECT {call} <-> ($2::text)::vector");
        client.query_one(&query, &[&text, golden]).unwrap().get(0)
    };
    let default = of(&goldens["default"]);
    let query = of(&goldens["prompts"]["query"]);
    let document = of(&goldens["prompts"]["document"]);
    for (setting, call, golden) in [
        ("", "embed($1, 'prompted')", &default),
        ("", "embed($1, 'prompted', 'query')", &query),
        (
            "",
            "embed($1, 'prompted', prompt_name => 'document')",
            &document,
        ),
        (
            "",
            "(embed_batch(ARRAY['x', $1], 'prompted', 'query'))[2]",
            &query,
        ),
        ("query", "embed($1, 'prompted')", &query),
        ("query", "(embed_batch(ARRAY[$1], 'prompted'))[1]", &query),
        ("query", "embed($1, 'prompted', 'document')", &document),
    ] {
        let set = format!("SET pg_sight.prompt_name = '{setting}'");
        client.batch_execute(&set).unwrap();
        let found = distance(&mut client, call, golden);
        assert!(found < 1e-4, "{call} with \"{setting}\": {found}");
    }
    assert!(distance(&mut client, "embed($1, 'prompted', 'document')", &query) > 1e-2);
    let failure = sql_failure(client.query("SELECT embed('x', 'prompted', 'title')", &[]));
    assert_eq!(failure.state, "22023");
    assert!(failure.message.contains("\"title\"") && failure.hint.contains("query"));
    // Every model has the two, if need be empty.
    let same = "SELECT embed('x', prompt_name => 'query') = embed('x', prompt_name => 'document')";
    assert!(client.query_one(same, &[]).unwrap().get::<_, bool>(0));
}

#[test]
fn a_statement_draws_the_same_sample_throughout() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let (_, image) = &captioner_goldens()[0];
    let query = "SELECT count(DISTINCT blip_describe($1, options =>
            '{\"do_sample\": true, \"temperature\": 5, \"max_new_tokens\": 20}')),
        min(blip_describe($1, options => '{\"do_sample\": true, \"temperature\": 5, \"max_new_tokens\": 20}'))
        FROM generate_series(1, 5) WHERE random() >= 0";
    let mut sample = |query: &str| -> (i64, String) {
        let row = client.query_one(query, &[image]).unwrap();
        (row.get(0), row.get(1))
    };
    let samples = [sample(query), sample(query), sample(query)];
    assert!(samples.iter().all(|(kinds, _)| *kinds == 1));
    assert!(samples.iter().any(|(_, caption)| *caption != samples[0].1));
    let seeded = query.replace("20}", "20, \"seed\": 7, \"num_beams\": 3}");
    assert_eq!(sample(&seeded), sample(&seeded));
}
