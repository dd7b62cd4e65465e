//! The row trigger: what it computes, what it leaves alone, what it refuses.

use pg_sight_tests::{Cluster, captioner_goldens, sql_failure};
use postgres::Client;

const TABLE: &str = "
    CREATE TABLE product (
        id int PRIMARY KEY, image bytea, description text, desc_vec vector(384), price int);
    CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image, description ON product
        FOR EACH ROW
        EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')";

fn requests(client: &mut Client) -> i64 {
    client
        .query_one("SELECT requests FROM sight_server_status", &[])
        .unwrap()
        .get(0)
}

/// Description of row 1, and whether its vector is that description's.
fn row(client: &mut Client) -> (Option<String>, Option<bool>) {
    let row = client
        .query_one(
            "SELECT description, desc_vec <-> embed(description) < 1e-5 FROM product WHERE id = 1",
            &[],
        )
        .unwrap();
    (row.get(0), row.get(1))
}

#[test]
fn rows_are_described_and_embedded() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let goldens = captioner_goldens();
    let caption = |i: usize| goldens[i].0["greedy_text"].as_str().map(str::to_owned);
    let image = |i: usize| &goldens[i].1;

    client
        .execute(
            "INSERT INTO product (id, image) VALUES (1, $1)",
            &[image(0)],
        )
        .unwrap();
    assert_eq!(row(&mut client), (caption(0), Some(true)));
    client
        .execute("UPDATE product SET image = $1", &[image(1)])
        .unwrap();
    assert_eq!(
        row(&mut client),
        (caption(1), Some(true)),
        "a new picture is described"
    );

    // A user's description is kept and embedded, with and without a new picture.
    client
        .execute("UPDATE product SET description = 'my words'", &[])
        .unwrap();
    assert_eq!(row(&mut client), (Some("my words".into()), Some(true)));
    client
        .execute(
            "UPDATE product SET image = $1, description = 'others'",
            &[image(2)],
        )
        .unwrap();
    assert_eq!(row(&mut client), (Some("others".into()), Some(true)));
    client
        .execute(
            "INSERT INTO product (id, image, description) VALUES (2, $1, 'given')",
            &[image(3)],
        )
        .unwrap();
    let given: String = client
        .query_one("SELECT description FROM product WHERE id = 2", &[])
        .unwrap()
        .get(0);
    assert_eq!(given, "given");

    // Taken away, it is described again.
    client
        .execute("UPDATE product SET description = NULL WHERE id = 1", &[])
        .unwrap();
    assert_eq!(row(&mut client), (caption(2), Some(true)));
    client
        .execute("UPDATE product SET image = NULL WHERE id = 1", &[])
        .unwrap();
    assert_eq!(row(&mut client), (None, None));
    client
        .execute("INSERT INTO product (id) VALUES (3)", &[])
        .unwrap();
    let nulls: i64 = client
        .query_one(
            "SELECT count(*) FROM product WHERE description IS NULL AND desc_vec IS NULL",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(nulls, 2);
}

#[test]
fn what_did_not_change_costs_nothing() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let (_, image) = &captioner_goldens()[0];
    client
        .execute("INSERT INTO product (id, image) VALUES (1, $1)", &[image])
        .unwrap();
    let before = requests(&mut client);
    client
        .execute("UPDATE product SET image = $1", &[image])
        .unwrap();
    client
        .execute("UPDATE product SET image = image, price = 7", &[])
        .unwrap();
    client.execute("UPDATE product SET price = 8", &[]).unwrap();
    // Only the status requests themselves.
    assert!(requests(&mut client) - before <= 1);
    assert_eq!(row(&mut client).1, Some(true));
}

#[test]
fn an_error_leaves_no_partial_write() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let (_, image) = &captioner_goldens()[0];
    client
        .execute("INSERT INTO product (id, image) VALUES (1, $1)", &[image])
        .unwrap();
    let before = row(&mut client);
    let failure = sql_failure(client.execute("UPDATE product SET image = 'no picture'", &[]));
    assert_eq!(failure.state, "PS020");
    assert_eq!(row(&mut client), before);
    // A handler in SQL sees the SQLSTATE.
    client
        .batch_execute(
            "DO $$ BEGIN UPDATE product SET image = 'no picture';
             EXCEPTION WHEN SQLSTATE 'PS020' THEN UPDATE product SET price = 20; END $$",
        )
        .unwrap();
    let price: i32 = client
        .query_one("SELECT price FROM product WHERE id = 1", &[])
        .unwrap()
        .get(0);
    assert_eq!(price, 20);
}

#[test]
fn wrong_declarations_are_refused() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let mut failure = |timing: &str, arguments: &str, statement: &str| {
        client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS p;
                 CREATE TABLE p (image bytea, description text, desc_vec vector(384), n int);
                 INSERT INTO p (n) VALUES (1);
                 CREATE TRIGGER t {timing} ON p FOR EACH ROW
                     EXECUTE FUNCTION sight_describe_trigger({arguments})"
            ))
            .unwrap();
        sql_failure(client.execute(statement, &[]))
    };
    let insert = "INSERT INTO p (n) VALUES (2)";
    let right = "'image', 'description', 'desc_vec'";
    assert_eq!(failure("AFTER INSERT", right, insert).state, "39P01");
    assert_eq!(
        failure("BEFORE DELETE", right, "DELETE FROM p").state,
        "39P01"
    );
    assert_eq!(failure("BEFORE INSERT", "'image'", insert).state, "39P01");
    let unknown = failure("BEFORE INSERT", "'image', 'text', 'desc_vec'", insert);
    assert_eq!(unknown.state, "42703");
    assert_eq!(
        unknown.message,
        "column \"text\" of relation \"p\" does not exist"
    );
    let wrong_type = failure("BEFORE INSERT", "'image', 'description', 'n'", insert);
    assert_eq!(wrong_type.state, "42804");
    assert_eq!(
        failure("BEFORE INSERT", "'n', 'description', 'desc_vec'", insert).state,
        "42804"
    );
    assert_eq!(
        failure("BEFORE INSERT", "'image', 'n', 'desc_vec'", insert).state,
        "42804"
    );
    let called = sql_failure(client.query("SELECT sight_describe_trigger()", &[]));
    assert_eq!(called.state, "39P01");
}

#[test]
fn partitions_have_columns_of_their_own_order() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute(
            r#"CREATE TABLE p (id int, "im""age" bytea, "Text %s" text, v vector(384))
                 PARTITION BY LIST (id);
             CREATE TRIGGER t BEFORE INSERT OR UPDATE ON p FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger('im"age', 'Text %s', 'v');
             CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
             CREATE TABLE p2 (v vector(384), junk int, "Text %s" text, id int, "im""age" bytea);
             ALTER TABLE p2 DROP COLUMN junk;
             ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)"#,
        )
        .unwrap();
    let (golden, image) = &captioner_goldens()[0];
    client
        .execute(
            r#"INSERT INTO p (id, "im""age") SELECT i, $1 FROM generate_series(1, 2) AS i"#,
            &[image],
        )
        .unwrap();
    let right = r#"SELECT count(*) FROM p WHERE "Text %s" = $1 AND v <-> embed("Text %s") < 1e-5"#;
    let right = |client: &mut Client, text: &str| -> i64 {
        client.query_one(right, &[&text]).unwrap().get(0)
    };
    assert_eq!(
        right(&mut client, golden["greedy_text"].as_str().unwrap()),
        2
    );
    // From one partition to the other, with an update.
    client
        .execute(
            r#"UPDATE p SET id = 2, "Text %s" = 'moved' WHERE id = 1"#,
            &[],
        )
        .unwrap();
    assert_eq!(right(&mut client, "moved"), 1);
}

#[test]
fn an_upsert_describes_what_it_writes() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let goldens = captioner_goldens();
    for (golden, image) in &goldens[..2] {
        client
            .execute(
                "INSERT INTO product (id, image) VALUES (1, $1)
                 ON CONFLICT (id) DO UPDATE SET image = excluded.image",
                &[image],
            )
            .unwrap();
        let caption = golden["greedy_text"].as_str().map(str::to_owned);
        assert_eq!(row(&mut client), (caption, Some(true)));
    }
}

#[test]
fn generated_columns_are_refused() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE p (
                 source text, image bytea GENERATED ALWAYS AS (source::bytea) STORED,
                 description text, desc_vec vector(384));
             CREATE TRIGGER t BEFORE INSERT ON p FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')",
        )
        .unwrap();
    let failure = sql_failure(client.execute("INSERT INTO p (source) VALUES ('x')", &[]));
    assert_eq!(failure.state, "42P17");
    assert!(failure.message.contains("\"image\"") && !failure.detail.is_empty());
}

#[test]
fn a_picture_that_is_left_alone_is_not_read() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    // Too large for a row and not compressible: stored beside the table.
    client
        .batch_execute(
            "CREATE TRIGGER always BEFORE UPDATE ON product FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
             ALTER TABLE product ALTER image SET STORAGE EXTERNAL;
             INSERT INTO product (id, image, description)
                 VALUES (1, convert_to(repeat('x', 4000000), 'UTF8'), 'given')",
        )
        .unwrap();
    let blocks = |client: &mut Client| -> i64 {
        client
            .batch_execute("SELECT pg_stat_force_next_flush()")
            .unwrap();
        let read = "SELECT coalesce(toast_blks_read + toast_blks_hit, 0)
                    FROM pg_statio_user_tables WHERE relname = 'product'";
        client.query_one(read, &[]).unwrap().get(0)
    };
    let before = blocks(&mut client);
    client.execute("UPDATE product SET price = 9", &[]).unwrap();
    assert!(blocks(&mut client) - before < 100);
    client.query("SELECT md5(image) FROM product", &[]).unwrap();
    assert!(blocks(&mut client) - before > 300, "reading is counted");
}
