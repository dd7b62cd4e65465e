//! Databases of other encodings than UTF8.

use pg_sight_tests::{Cluster, ENCODER, sql_failure};
use postgres::Client;

/// A database of an encoding, with an encoder under a name that is not ASCII.
fn database(cluster: &Cluster, encoding: &str) -> Client {
    cluster
        .client()
        .batch_execute(&format!(
            "CREATE DATABASE {encoding} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        ))
        .unwrap();
    let mut client = cluster.client_of("postgres", &encoding.to_lowercase());
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    let directory = cluster.copy_model(&cluster.folder().join(ENCODER), encoding);
    let register = "SELECT sight_model_register($1, $2)";
    let parameters: [&(dyn postgres::types::ToSql + Sync); 2] =
        [&"modèle", &directory.to_str().unwrap()];
    client.execute(register, &parameters).unwrap();
    client
        .batch_execute("SET pg_sight.embed_model = 'modèle'")
        .unwrap();
    client
}

#[test]
fn texts_are_converted_both_ways() {
    let cluster = Cluster::with_models();
    let vector = "SELECT embed('un café à Zürich')::text";
    let expected: String = cluster.client().query_one(vector, &[]).unwrap().get(0);
    let mut client = database(&cluster, "LATIN1");
    let actual: String = client.query_one(vector, &[]).unwrap().get(0);
    assert_eq!(actual, expected);
    let batch = "SELECT (embed_batch(ARRAY['x', 'un café à Zürich']))[2]::text";
    let actual: String = client.query_one(batch, &[]).unwrap().get(0);
    assert_eq!(actual, expected);
    let failure = sql_failure(client.query("SELECT embed('x', 'encodé')", &[]));
    assert_eq!(failure.state, "PS010");
    assert_eq!(failure.message, "model \"encodé\" is not registered");
    // No character of the model's answer, its errors or its files may be lost.
    let loaded: String = client
        .query_one("SELECT name FROM sight_models WHERE loaded", &[])
        .unwrap()
        .get(0);
    assert_eq!(loaded, "modèle");
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let cluster = Cluster::with_models();
    let mut client = database(&cluster, "SQL_ASCII");
    let failure = sql_failure(client.query("SELECT embed(E'caf\\xe9')", &[]));
    assert_eq!(failure.state, "22021");
    assert!(client.query_one("SELECT embed('café')", &[]).is_ok());
}
