//! What every codec has to survive: crashes during writes and vacuum, a crash in a build, writers
//! beside readers and vacuum, a standby, damage. A table for each, with an index of it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_sight_tests::{Cluster, catch_up, sql_failure};
use postgres::Client;

/// Of each kind of code, transform and refinement one at least; `Flat` is of vectors in full
/// with copies in 8 bits, as the tables have 64 dimensions.
const FACTORIES: [&str; 16] = [
    "RR,IVF,RaBitQ,Refine(SQ8)",
    "IVF,Flat",
    "IVF,SQ8",
    "IVF,SQ4",
    "IVF,SQfp16",
    "IVF,RaBitQ",
    "IVF,RaBitQ,RFlat",
    "RR,IVF,SQ4,Refine(Flat)",
    "IVF,SQ4,Refine(SQfp16)",
    "IVF,PQ16",
    "IVF,PQ16x4fs",
    "IVF,PQ16x4fs,Refine(SQ8)",
    "OPQ16,IVF,PQ16",
    "OPQ8_32,IVF,PQ8x4fs,RFlat",
    "PCA32,IVF,SQ8,RFlat",
    "PCA48,IVF,RaBitQ",
];
const ROWS: usize = 1000;
const PAGE_SIZE: u64 = 8192;
/// Of a page of version 1.
const MAGIC_AT: u64 = 8168 + 12;

fn table(codec: usize) -> String {
    format!("item_{codec}")
}

fn create_index(codec: usize) -> String {
    format!(
        "CREATE INDEX item_{codec}_v ON item_{codec} USING faiss_ivf (v vector_l2_ops)
         WITH (factory = '{}', lists = 12)",
        FACTORIES[codec]
    )
}

/// For statements that any table gets.
fn for_all(statement: impl Fn(usize) -> String) -> String {
    let statements: Vec<String> = (0..FACTORIES.len()).map(statement).collect();
    statements.join(";\n")
}

fn create_tables(client: &mut Client) {
    let function = "
        CREATE EXTENSION pg_sight CASCADE;
        CREATE FUNCTION sample_vector(seed int) RETURNS vector LANGUAGE sql IMMUTABLE AS $$
            SELECT array_agg((hashint4(seed * 64 + j) % 50)::real)::vector FROM generate_series(1, 64) j
        $$";
    client.batch_execute(function).unwrap();
    let tables = for_all(|codec| {
        let table = table(codec);
        format!(
            "CREATE TABLE {table} (id serial PRIMARY KEY, v vector(64));
             INSERT INTO {table} (v) SELECT sample_vector(i) FROM generate_series(1, {ROWS}) i"
        )
    });
    client.batch_execute(&tables).unwrap();
}

/// The system outlives the crashes, so nothing has to be on its disk.
const SETTINGS: [&str; 2] = ["fsync = off", "wal_keep_size = 256MB"];

fn cluster_with_indexes() -> (Cluster, Client) {
    let cluster = Cluster::start(&SETTINGS);
    let mut client = cluster.client();
    create_tables(&mut client);
    client.batch_execute(&for_all(create_index)).unwrap();
    (cluster, client)
}

fn ids(client: &mut Client, query: &str) -> Vec<i32> {
    let rows = client.query(query, &[]).unwrap();
    let mut ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    ids.sort_unstable();
    ids
}

/// In one snapshot a scan of the whole index gives each row of the table once.
fn assert_index_equals_table(client: &mut Client, codec: usize) -> usize {
    let table = table(codec);
    client
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off;
             SET LOCAL enable_sort = off; SET LOCAL faiss_ivf.nprobe = 65536;
             SET LOCAL faiss_ivf.target_recall = 1; SET LOCAL faiss_ivf.iterative_scan = relaxed_order",
        )
        .unwrap();
    let query = format!("SELECT id FROM {table} ORDER BY v <-> sample_vector(7)");
    let plan = client.query(&format!("EXPLAIN {query}"), &[]).unwrap();
    let plan = plan[0].get::<_, &str>(0);
    assert!(plan.contains(&format!("{table}_v")), "{plan}");
    let by_index = ids(client, &query);
    client
        .batch_execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off")
        .unwrap();
    let by_table = ids(client, &format!("SELECT id FROM {table}"));
    client.batch_execute("COMMIT").unwrap();
    assert!(
        by_index == by_table,
        "{}: {} rows, not {}",
        FACTORIES[codec],
        by_index.len(),
        by_table.len()
    );
    by_table.len()
}

fn assert_all(client: &mut Client, least: usize) {
    for (codec, factory) in FACTORIES.iter().enumerate() {
        let rows = assert_index_equals_table(client, codec);
        assert!(rows >= least, "{factory}: {rows} rows");
    }
}

/// Inserts, updates and deletes in all tables until the server goes away or `stop` is set. Each
/// of up to four writers has rows of its own, so that none waits for another.
fn write_until(client: &mut Client, stop: &AtomicBool, writer: i32, seed: i32) {
    for round in 0.. {
        let number = seed + round;
        // Not all writers at the same table.
        for codec in 0..FACTORIES.len() {
            let table = table((codec + 4 * writer as usize) % FACTORIES.len());
            let statement = match round % 3 {
                0 => format!(
                    "INSERT INTO {table} (v) SELECT sample_vector({number} + i) FROM generate_series(1, 20) i"
                ),
                1 => format!(
                    "UPDATE {table} SET v = sample_vector({number}) WHERE id % 8 = {writer} AND id % 51 = {}",
                    number % 51
                ),
                _ => format!(
                    "DELETE FROM {table} WHERE id % 8 = {writer} AND id % 47 = {}",
                    number % 47
                ),
            };
            if stop.load(Ordering::Relaxed) || client.batch_execute(&statement).is_err() {
                return;
            }
        }
    }
}

fn vacuum_until_it_fails(client: &mut Client) {
    while client.batch_execute("VACUUM").is_ok() {}
}

#[test]
fn every_codec_equals_its_table_after_crashes_during_writes_and_vacuum() {
    let (cluster, client) = cluster_with_indexes();
    drop(client);
    for (round, milliseconds) in [900, 2100].into_iter().enumerate() {
        let never = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..2 {
                let (mut client, never) = (cluster.client(), &never);
                let seed = 10_000 * (round as i32 * 2 + writer + 1);
                scope.spawn(move || write_until(&mut client, never, writer, seed));
            }
            let mut client = cluster.client();
            scope.spawn(move || vacuum_until_it_fails(&mut client));
            thread::sleep(Duration::from_millis(milliseconds));
            cluster.crash();
        });
        cluster.recover();
        assert_all(&mut cluster.client(), ROWS / 2);
    }
    // And it goes on.
    let mut client = cluster.client();
    let insert = |codec| {
        let table = table(codec);
        format!("INSERT INTO {table} (v) SELECT sample_vector(i) FROM generate_series(1, 100) i")
    };
    client.batch_execute(&for_all(insert)).unwrap();
    client.batch_execute("VACUUM").unwrap();
    assert_all(&mut client, ROWS / 2 + 100);
}

#[test]
fn a_crash_while_codes_are_built_leaves_no_half_index() {
    let cluster = Cluster::start(&SETTINGS);
    create_tables(&mut cluster.client());
    for milliseconds in [40, 400] {
        thread::scope(|scope| {
            let mut builder = cluster.client();
            scope.spawn(move || {
                for codec in 0..FACTORIES.len() {
                    if builder.batch_execute(&create_index(codec)).is_err() {
                        return;
                    }
                }
            });
            thread::sleep(Duration::from_millis(milliseconds));
            cluster.crash();
        });
        cluster.recover();
        let mut client = cluster.client();
        let again = for_all(|codec| {
            let create = create_index(codec);
            format!("DROP INDEX IF EXISTS item_{codec}_v; {create}")
        });
        client.batch_execute(&again).unwrap();
        assert_all(&mut client, ROWS);
        let drop = for_all(|codec| format!("DROP INDEX item_{codec}_v"));
        client.batch_execute(&drop).unwrap();
    }
}

#[test]
fn every_codec_is_written_read_and_vacuumed_at_once() {
    let (cluster, mut client) = cluster_with_indexes();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        for writer in 0..4 {
            let mut client = cluster.client();
            scope.spawn(move || {
                write_until(&mut client, stop, writer, 100_000 * (writer + 1));
                assert!(stop.load(Ordering::Relaxed), "a writer failed");
            });
        }
        let mut vacuum = cluster.client();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                vacuum.batch_execute("VACUUM").unwrap();
            }
        });
        let mut reader = cluster.client();
        scope.spawn(move || {
            for codec in (0..FACTORIES.len()).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                assert_index_equals_table(&mut reader, codec);
            }
        });
        thread::sleep(Duration::from_secs(8));
        stop.store(true, Ordering::Relaxed);
    });
    assert_all(&mut client, ROWS / 2);
    client.batch_execute("VACUUM").unwrap();
    assert_all(&mut client, ROWS / 2);
}

#[test]
fn a_standby_has_every_codec_and_can_take_over() {
    let (primary, mut writer) = cluster_with_indexes();
    let standby = primary.standby();
    let mut reader = standby.client();
    let every = |statement: &'static str| {
        for_all(move |codec| statement.replace("item", &format!("item_{codec}")))
    };
    for change in [
        every("INSERT INTO item (v) SELECT sample_vector(i) FROM generate_series(5001, 5300) i"),
        every("DELETE FROM item WHERE id % 3 = 0"),
        "VACUUM".to_owned(),
        every("INSERT INTO item (v) SELECT sample_vector(i) FROM generate_series(6001, 6200) i"),
    ] {
        writer.batch_execute(&change).unwrap();
        catch_up(&mut writer, &mut reader);
        assert_all(&mut reader, ROWS * 2 / 3);
    }
    drop(writer);
    primary.stop_server("immediate");
    standby.promote();
    let mut client = standby.client();
    let update = every("UPDATE item SET v = sample_vector(id + 9000) WHERE id % 4 = 0");
    client.batch_execute(&update).unwrap();
    client.batch_execute("VACUUM").unwrap();
    assert_all(&mut client, ROWS * 2 / 3);
}

/// Of each index another page, so that over all of them most kinds are met.
#[test]
fn a_damaged_page_of_any_codec_is_named() {
    let (cluster, mut client) = cluster_with_indexes();
    for (codec, factory) in FACTORIES.iter().enumerate() {
        let place = format!("SELECT pg_relation_filepath('item_{codec}_v')");
        let path: String = client.query_one(&place, &[]).unwrap().get(0);
        let size = format!("SELECT pg_relation_size('item_{codec}_v') / {PAGE_SIZE}");
        let blocks: i64 = client.query_one(&size, &[]).unwrap().get(0);
        let block = [0, 2, blocks - 2, blocks - 1][codec % 4] as u64;
        drop(client);
        cluster.stop_server("fast");
        let file = OpenOptions::new()
            .write(true)
            .open(cluster.data().join(path))
            .unwrap();
        file.write_all_at(&[1, 2, 3, 4], block * PAGE_SIZE + MAGIC_AT)
            .unwrap();
        cluster.start_server();
        client = cluster.client();
        let settings = "SET ignore_checksum_failure = on; SET enable_seqscan = off; SET client_min_messages = error";
        client.batch_execute(settings).unwrap();
        let query = format!(
            "SELECT count(*) FROM (SELECT id FROM item_{codec} ORDER BY v <-> sample_vector(7)) s"
        );
        let failure = sql_failure(client.query_one(&query, &[]));
        assert_eq!(failure.state, "XX002", "{factory}: {failure:?}");
        let named = failure.message.contains(&format!("at block {block}"));
        assert!(named && failure.hint.contains("REINDEX"), "{failure:?}");
        client
            .batch_execute(&format!("REINDEX INDEX item_{codec}_v"))
            .unwrap();
        assert_eq!(assert_index_equals_table(&mut client, codec), ROWS);
    }
}
