//! Indexes go with their cluster to another major version of PostgreSQL.

use std::io::Write;

use pg_sight_tests::{
    Answer, Cluster, Installation, Reading, SEARCHED_TABLE, answers, assert_indexes_are_exact,
    assert_same, create_indexes,
};
use postgres::Client;

/// `item`, and tables like it whose files are treated in ways of their own.
const TABLES: [&str; 3] = ["item", "unlogged_item", "parted_item"];
const MORE_TABLES: &str = "
    CREATE UNLOGGED TABLE unlogged_item (LIKE item);
    CREATE TABLE parted_item (LIKE item) PARTITION BY HASH (id);
    CREATE TABLE parted_item_0 PARTITION OF parted_item FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parted_item_1 PARTITION OF parted_item FOR VALUES WITH (MODULUS 2, REMAINDER 1);";
/// Also entries that a vacuum has not seen, and free pages, are there at the upgrade.
const CHANGES: &str = "
    INSERT INTO TABLE (id, v, h)
        SELECT i, v, v FROM (SELECT max(id) AS last FROM TABLE) AS s,
            generate_series(last + 1, last + 500) AS i, sample_vector(i) AS v;
    DELETE FROM TABLE WHERE id % 5 = 0;
    VACUUM TABLE;
    DELETE FROM TABLE WHERE id % 7 = 0;";
/// What `sight_index_stats` says of every index.
const STATISTICS: &str = "
    SELECT c.relname::text || ' ' || row_to_json(s)::text
        FROM pg_class AS c JOIN pg_am AS m ON m.oid = c.relam AND m.amname = 'faiss_ivf',
            LATERAL (SELECT lists, entries, dead, total_bytes, free_entries, training_rows,
                trained_at, nprobe, recall_curve FROM sight_index_stats(c.oid)) AS s
        WHERE c.relkind = 'i' ORDER BY 1";

fn change(client: &mut Client, table: &str) {
    // One by one, as VACUUM runs in no transaction.
    for statement in CHANGES.replace("TABLE", table).split_inclusive(';') {
        client.batch_execute(statement).unwrap();
    }
}

fn all_answers(client: &mut Client) -> Vec<Answer> {
    let readings = [Reading::AllLists, Reading::ChosenLists];
    let pairs = TABLES
        .iter()
        .flat_map(|table| readings.map(|reading| (table, reading)));
    pairs
        .flat_map(|(table, reading)| answers(client, table, reading))
        .collect()
}

fn statistics(client: &mut Client) -> Vec<String> {
    let rows = client.query(STATISTICS, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn indexes_answer_as_before_after_an_upgrade_of_postgresql() {
    let Some(older) = Installation::older() else {
        // Not by `eprintln`, which is shown of failed tests only.
        let reason = "the upgrade is SKIPPED: PG_SIGHT_OLD_PG_CONFIG names no older PostgreSQL";
        let _ = writeln!(std::io::stderr(), "{reason}");
        return;
    };
    let old = Cluster::start_of(older, &[]);
    let mut client = old.client();
    client.batch_execute(SEARCHED_TABLE).unwrap();
    client.batch_execute(MORE_TABLES).unwrap();
    for table in TABLES {
        if table != "item" {
            client
                .batch_execute(&format!("INSERT INTO {table} SELECT * FROM item"))
                .unwrap();
        }
        create_indexes(&mut client, table);
    }
    for table in TABLES {
        change(&mut client, table);
    }
    let (found, stats) = (all_answers(&mut client), statistics(&mut client));
    drop(client);
    old.stop_server("fast");

    let new = old.upgrade();
    let mut client = new.client();
    assert_same("after the upgrade", &all_answers(&mut client), &found);
    assert_eq!(statistics(&mut client), stats);
    for table in TABLES {
        assert_indexes_are_exact(&mut client, table);
        change(&mut client, table);
        client.batch_execute(&format!("VACUUM {table}")).unwrap();
        assert_indexes_are_exact(&mut client, table);
    }
    drop(client);
    new.crash();
    new.recover();
    let mut client = new.client();
    for table in ["item", "parted_item"] {
        assert_indexes_are_exact(&mut client, table);
    }
    assert_eq!(answers(&mut client, "unlogged_item", Reading::AllLists), []);
    client
        .batch_execute("INSERT INTO unlogged_item SELECT * FROM item")
        .unwrap();
    for table in TABLES {
        client
            .batch_execute(&format!("REINDEX TABLE {table}"))
            .unwrap();
        assert_indexes_are_exact(&mut client, table);
    }
}
