//! A streaming standby: it has a model server of its own, and keeps it when it
//! is promoted.

use std::time::Duration;

use pg_sight_tests::{CAPTIONER, Cluster, captioner_goldens, sql_failure, wait_until};
use postgres::Client;

const NEAREST: &str = "SELECT id FROM product ORDER BY desc_vec <#> embed('seat') LIMIT 1";

fn count(client: &mut Client) -> i64 {
    let row = client.query_one("SELECT count(*) FROM product", &[]);
    row.unwrap().get(0)
}

fn nearest(client: &mut Client) -> i32 {
    client.query_one(NEAREST, &[]).unwrap().get(0)
}

#[test]
fn a_standby_describes_embeds_and_searches_also_after_its_promotion() {
    let primary = Cluster::with_models();
    let mut client = primary.client();
    client
        .batch_execute(
            "CREATE TABLE product (
                 id int PRIMARY KEY, image bytea, description text, desc_vec vector(384));
             CREATE TRIGGER describe BEFORE INSERT OR UPDATE ON product FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
             INSERT INTO product (id, description) VALUES (1, 'a shoe'), (2, 'a table');
             CREATE INDEX ON product USING faiss_ivf (desc_vec vector_ip_ops) WITH (lists = 1)",
        )
        .unwrap();
    let standby = primary.standby();
    let mut reader = standby.client();
    let state: String = reader
        .query_one("SELECT state FROM sight_server_status", &[])
        .unwrap()
        .get(0);
    assert_eq!(
        state, "stopped",
        "a base backup leaves the run directory out"
    );

    client
        .batch_execute("INSERT INTO product (id, description) VALUES (3, 'a wooden chair')")
        .unwrap();
    wait_until("the row has arrived", Duration::from_secs(20), || {
        count(&mut reader) == 3
    });
    reader.batch_execute("SET enable_seqscan = off").unwrap();
    assert_eq!(nearest(&mut reader), 3);
    let (golden, image) = &captioner_goldens()[0];
    let caption: String = reader
        .query_one("SELECT blip_describe($1)", &[image])
        .unwrap()
        .get(0);
    assert_eq!(Some(caption.as_str()), golden["greedy_text"].as_str());
    let of_primary = primary.model_server(&mut client).unwrap();
    let of_standby = standby.model_server(&mut reader).unwrap();
    assert_ne!(of_primary, of_standby);
    let directory = primary.folder().join(CAPTIONER);
    let register = "SELECT sight_model_register('again', $1)";
    let directory = directory.to_str().unwrap();
    assert_eq!(
        sql_failure(reader.execute(register, &[&directory])).state,
        "25006"
    );

    drop(client);
    primary.stop_server("fast");
    assert_eq!(nearest(&mut reader), 3);
    standby.promote();
    reader.execute(register, &[&directory]).unwrap();
    reader
        .execute("INSERT INTO product (id, image) VALUES (4, $1)", &[image])
        .unwrap();
    assert_eq!(nearest(&mut reader), 3);
    assert_eq!(standby.model_server(&mut reader), Some(of_standby));
}

#[test]
fn a_former_primary_is_rewound_while_the_server_runs() {
    let primary = Cluster::with_models_and(&["wal_log_hints = on", "wal_keep_size = 256MB"]);
    let standby = primary.standby();
    standby.promote();
    // Each goes its own way.
    for cluster in [&primary, &standby] {
        let mut client = cluster.client();
        client
            .batch_execute("CREATE TABLE product (id int); SELECT embed('x'); CHECKPOINT")
            .unwrap();
        assert!(cluster.model_server(&mut client).is_some());
    }
    let mut client = standby.client();
    client
        .batch_execute("INSERT INTO product VALUES (1)")
        .unwrap();
    primary.stop_server("fast");
    primary.rewind(&standby);
    let mut reader = primary.client();
    wait_until("the row has arrived", Duration::from_secs(20), || {
        count(&mut reader) == 1
    });
    assert!(reader.query_one("SELECT embed('x')", &[]).is_ok());
}
