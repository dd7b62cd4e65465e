//! The index after crashes, under concurrent writers, and when its pages are
//! damaged: it equals its table, or it says what is wrong.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_sight_tests::{Cluster, sql_failure};
use postgres::Client;

const TABLE: &str = "
    CREATE EXTENSION pg_sight CASCADE;
    CREATE FUNCTION sample_vector(seed int) RETURNS vector LANGUAGE sql IMMUTABLE AS $$
        SELECT array_agg((hashint4(seed * 64 + j) % 50)::real)::vector FROM generate_series(1, 32) j
    $$;
    CREATE TABLE item (id serial PRIMARY KEY, v vector(32));
    INSERT INTO item (v) SELECT sample_vector(i) FROM generate_series(1, 3000) i;";
/// Indexes of these kinds take turns: what pages hold and how they change differs.
const FACTORIES: [&str; 4] = [
    "RR,IVF,RaBitQ,Refine(SQ8)",
    "IVF,Flat",
    "IVF,SQ8",
    "IVF,RaBitQ",
];
/// A page of version 1: magic, page kind and number of entries.
const MAGIC_AT: u64 = 8168 + 12;
const COUNT_AT: u64 = 8168 + 8;
const DATA_AT: u64 = 32;
const PAGE_SIZE: u64 = 8192;

/// How many times as much as usual the tests of crashes and of concurrency do:
/// `make soak` sets it.
fn soak() -> u64 {
    std::env::var("PG_SIGHT_SOAK").map_or(1, |factor| factor.parse().expect("a number"))
}

/// A moment within a range of milliseconds, another in each round.
fn moment(round: u64, range: std::ops::Range<u64>) -> Duration {
    // The golden ratio spreads them evenly.
    let share = (round as f64 * 0.618_033_988_75).fract();
    let span = (range.end - range.start) as f64;
    Duration::from_millis(range.start + (share * span) as u64)
}

/// The statement that makes the index of a round.
fn index(round: u64) -> String {
    let factory = FACTORIES[round as usize % FACTORIES.len()];
    format!(
        "CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = '{factory}', lists = 30)"
    )
}

fn cluster_with_index() -> (Cluster, Client) {
    let cluster = Cluster::start(&["autovacuum_naptime = 1s"]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    client.batch_execute(&index(0)).unwrap();
    (cluster, client)
}

fn ids(client: &mut Client, query: &str) -> Vec<i32> {
    let rows = client.query(query, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every row is found by the index, once, in order; and nothing else is.
fn assert_index_equals_table(client: &mut Client) -> usize {
    let settings = "SET enable_seqscan = off; SET enable_sort = off; SET faiss_ivf.nprobe = 65536;
                    SET faiss_ivf.target_recall = 1;
                    SET enable_indexscan = on";
    client.batch_execute(settings).unwrap();
    let query = "SELECT id, v <-> sample_vector(7) FROM item ORDER BY v <-> sample_vector(7)";
    let plan = client.query(&format!("EXPLAIN {query}"), &[]).unwrap();
    assert!(plan[0].get::<_, &str>(0).contains("item_v"), "{plan:?}");
    let rows = client.query(query, &[]).unwrap();
    let distances: Vec<f64> = rows.iter().map(|row| row.get(1)).collect();
    assert!(distances.is_sorted());
    // Bounds by lossy codes are not certain: a row may come too late for the order.
    let in_order = rows.len();
    client
        .batch_execute("SET faiss_ivf.iterative_scan = relaxed_order")
        .unwrap();
    let rows = client.query(query, &[]).unwrap();
    assert!(in_order >= rows.len() - rows.len() / 100);
    let mut by_index: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    by_index.sort_unstable();
    client
        .batch_execute("RESET ALL; SET enable_indexscan = off; SET enable_indexonlyscan = off")
        .unwrap();
    let by_table = ids(client, "SELECT id FROM item ORDER BY id");
    client.batch_execute("RESET ALL").unwrap();
    assert!(
        by_index == by_table,
        "{} rows, not {}",
        by_index.len(),
        by_table.len()
    );
    by_table.len()
}

/// Inserts, updates and deletes until the server goes away or `stop` is set.
/// Each of up to four writers has rows of its own, so that none waits for another.
fn write_until(client: &mut Client, stop: &AtomicBool, writer: i32, seed: i32) {
    for round in 0.. {
        let number = seed + round;
        let statement = match round % 4 {
            0 | 1 => format!(
                "INSERT INTO item (v) SELECT sample_vector({number} + i) FROM generate_series(1, 20) i"
            ),
            2 => format!(
                "UPDATE item SET v = sample_vector({number}) WHERE id % 8 = {writer} AND id % 211 = {}",
                number % 211
            ),
            _ => format!(
                "DELETE FROM item WHERE id % 8 = {writer} AND id % 197 = {}",
                number % 197
            ),
        };
        if stop.load(Ordering::Relaxed) || client.batch_execute(&statement).is_err() {
            return;
        }
    }
}

#[test]
fn it_equals_its_table_after_crashes_during_writes_and_vacuum() {
    let (cluster, client) = cluster_with_index();
    drop(client);
    for round in 0..5 * soak() {
        let never = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..2 {
                let never = &never;
                let seed = 10_000 * (round as i32 * 2 + writer + 1);
                let mut client = cluster.client();
                scope.spawn(move || write_until(&mut client, never, writer, seed));
            }
            let mut vacuum = cluster.client();
            scope.spawn(move || while vacuum.batch_execute("VACUUM item").is_ok() {});
            thread::sleep(moment(round, 300..1900));
            cluster.crash();
        });
        cluster.recover();
        let mut client = cluster.client();
        let rows = assert_index_equals_table(&mut client);
        assert!(rows > 1000, "{rows} rows");
        client.batch_execute("DROP INDEX item_v").unwrap();
        client.batch_execute(&index(round + 1)).unwrap();
    }
}

#[test]
fn a_crash_during_a_build_leaves_no_half_index() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    for round in 0..3 * soak() {
        thread::scope(|scope| {
            // Connected before, so that the crash meets the build.
            let mut builder = cluster.client();
            scope.spawn(move || builder.batch_execute(&index(round)));
            thread::sleep(moment(round, 5..200));
            cluster.crash();
        });
        cluster.recover();
        let mut client = cluster.client();
        client.batch_execute("DROP INDEX IF EXISTS item_v").unwrap();
        client.batch_execute(&index(round)).unwrap();
        assert_eq!(assert_index_equals_table(&mut client), 3000);
        client.batch_execute("DROP INDEX item_v").unwrap();
    }
}

#[test]
fn an_unlogged_index_is_empty_after_a_crash() {
    let (cluster, mut client) = cluster_with_index();
    client
        .batch_execute("ALTER TABLE item SET UNLOGGED")
        .unwrap();
    assert_eq!(assert_index_equals_table(&mut client), 3000);
    cluster.crash();
    cluster.recover();
    let mut client = cluster.client();
    assert_eq!(assert_index_equals_table(&mut client), 0);
    client
        .batch_execute(
            "INSERT INTO item (v) SELECT sample_vector(i) FROM generate_series(1, 500) i",
        )
        .unwrap();
    assert_eq!(assert_index_equals_table(&mut client), 500);
}

#[test]
fn writers_vacuum_and_readers_do_not_disturb_each_other() {
    let (cluster, mut client) = cluster_with_index();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..8 {
            let (cluster, stop) = (&cluster, &stop);
            let seed = 100_000 * (writer + 1);
            scope.spawn(move || {
                let mut client = cluster.client();
                write_until(&mut client, stop, writer, seed);
                assert!(
                    !client.is_closed() && stop.load(Ordering::Relaxed),
                    "a writer failed"
                );
            });
        }
        let mut vacuum = cluster.client();
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                vacuum.batch_execute("VACUUM item").unwrap();
            }
        });
        for reader in 0..4 {
            let mut client = cluster.client();
            scope.spawn(move || {
                client.batch_execute("SET enable_seqscan = off").unwrap();
                // Whatever the writers do, enough rows are left to fill the limit.
                while !stop.load(Ordering::Relaxed) {
                    let found = client
                        .query("SELECT v <-> sample_vector($1) FROM item ORDER BY v <-> sample_vector($1) LIMIT 50", &[&reader])
                        .unwrap();
                    let distances: Vec<f64> = found.iter().map(|row| row.get(0)).collect();
                    assert!(distances.len() == 50 && distances.is_sorted());
                }
            });
        }
        thread::sleep(Duration::from_secs(8 * soak()));
        stop.store(true, Ordering::Relaxed);
    });
    assert_index_equals_table(&mut client);
    client.batch_execute("VACUUM item").unwrap();
    assert_index_equals_table(&mut client);
}

/// In one snapshot the index has every row of the table once.
fn assert_index_equals_table_in_a_snapshot(client: &mut Client) {
    client
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off;
             SET LOCAL enable_sort = off; SET LOCAL faiss_ivf.nprobe = 65536;
             SET LOCAL faiss_ivf.iterative_scan = relaxed_order",
        )
        .unwrap();
    let mut by_index = ids(
        client,
        "SELECT id FROM item ORDER BY v <-> sample_vector(7)",
    );
    by_index.sort_unstable();
    client
        .batch_execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on")
        .unwrap();
    let by_table = ids(client, "SELECT id FROM item ORDER BY id");
    client.batch_execute("COMMIT").unwrap();
    assert!(
        by_index == by_table,
        "{} rows, not {}",
        by_index.len(),
        by_table.len()
    );
}

#[test]
fn many_write_into_one_list_and_scans_see_each_row_once() {
    let (cluster, mut client) = cluster_with_index();
    for round in 0..2 * soak() {
        client.batch_execute("DROP INDEX item_v").unwrap();
        client.batch_execute(&index(round)).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..8 {
                let (cluster, stop) = (&cluster, &stop);
                scope.spawn(move || {
                    let mut client = cluster.client();
                    // All alike: they belong to one list.
                    let insert =
                        "INSERT INTO item (v) SELECT sample_vector(1) FROM generate_series(1, 5)";
                    while !stop.load(Ordering::Relaxed) {
                        client.batch_execute(insert).unwrap();
                    }
                });
            }
            let mut vacuum = cluster.client();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    vacuum
                        .batch_execute("DELETE FROM item WHERE id % 7 = 0")
                        .unwrap();
                    vacuum.batch_execute("VACUUM item").unwrap();
                }
            });
            let mut reader = cluster.client();
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_index_equals_table_in_a_snapshot(&mut reader);
                }
            });
            thread::sleep(Duration::from_secs(4));
            stop.store(true, Ordering::Relaxed);
        });
        assert_index_equals_table(&mut client);
        drop(client);
        cluster.crash();
        cluster.recover();
        client = cluster.client();
        assert_index_equals_table(&mut client);
        client
            .batch_execute("DELETE FROM item WHERE id > 3000")
            .unwrap();
        client.batch_execute("VACUUM item").unwrap();
    }
}

#[test]
fn a_build_goes_on_after_interrupts_that_do_not_cancel_it() {
    let cluster = Cluster::start(&["client_connection_check_interval = 10ms"]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let more = "INSERT INTO item (v) SELECT sample_vector(i) FROM generate_series(3001, 20000) i";
    client.batch_execute(more).unwrap();
    let slow = index(0).replace("lists = 30", "lists = 3000");
    client.batch_execute(&slow).unwrap();
    assert_eq!(assert_index_equals_table(&mut client), 20_000);
}

/// Lets the backend of `client` allocate no more than so much more. It asks for
/// that itself, as it may not belong to whoever runs the tests.
fn limit_memory(client: &mut Client, megabytes: u64) {
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    let sizes = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
    let limit = pages * 4096 + (megabytes << 20);
    client
        .batch_execute(&format!(
            "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; prlimit --pid={pid} --as={limit}'"
        ))
        .unwrap();
}

#[test]
fn a_lack_of_memory_is_an_error_of_the_statement_alone() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    let tables = "
        CREATE EXTENSION pg_sight CASCADE;
        CREATE TABLE wide (v vector(1000));
        ALTER TABLE wide ALTER v SET STORAGE EXTENDED;
        INSERT INTO wide SELECT array_fill(i, ARRAY[1000])::vector FROM generate_series(1, 20000) i;
        CREATE TABLE long (v vector(1));
        INSERT INTO long SELECT ARRAY[i]::vector FROM generate_series(1, 1000000) i;
        CREATE INDEX ON long USING faiss_ivf (v vector_l2_ops) WITH (lists = 1)";
    client.batch_execute(tables).unwrap();
    let build = "CREATE INDEX ON wide USING faiss_ivf (v vector_l2_ops) WITH (lists = 300)";
    let scan = "SELECT v FROM long ORDER BY v <-> '[1]' LIMIT 1";
    for (statement, megabytes) in [(build, 40), (scan, 8)] {
        let mut limited = cluster.client();
        limited
            .batch_execute(
                "SET maintenance_work_mem = '1GB'; SET enable_seqscan = off; SET jit = off",
            )
            .unwrap();
        limited.batch_execute(&format!("EXPLAIN {scan}")).unwrap();
        limit_memory(&mut limited, megabytes);
        assert_eq!(sql_failure(limited.batch_execute(statement)).state, "53200");
        assert!(limited.simple_query("SELECT 1").is_ok());
        assert!(
            client.simple_query("SELECT 1").is_ok(),
            "no other session notices"
        );
    }
}

#[test]
fn a_damaged_page_is_an_error_with_its_block_number() {
    let (cluster, mut client) = cluster_with_index();
    // The meta page, centroids, what the codes have learned, the recall curve, a page of
    // the first list and its rows; a page of rows, and the directory, which is the last.
    let damages = [
        (0, MAGIC_AT, [1, 2, 3, 4]),
        (1, MAGIC_AT, [1, 2, 3, 4]),
        (2, MAGIC_AT, [1, 2, 3, 4]),
        (2, DATA_AT, [0xff; 4]),
        (3, MAGIC_AT, [1, 2, 3, 4]),
        (3, DATA_AT, [0xff; 4]),
        (4, COUNT_AT, [0xff; 4]),
        (5, MAGIC_AT, [1, 2, 3, 4]),
        (-2, MAGIC_AT, [1, 2, 3, 4]),
        (-1, MAGIC_AT, [0; 4]),
    ];
    damage(&cluster, &mut client, &damages);
    // The same without learning and without pages of rows.
    client.batch_execute("DROP INDEX item_v").unwrap();
    client.batch_execute(&index(1)).unwrap();
    let damages = [
        (2, DATA_AT, [0xff; 4]),
        (3, COUNT_AT, [0xff; 4]),
        (-2, COUNT_AT, [0xff; 4]),
        (-1, MAGIC_AT, [0; 4]),
    ];
    damage(&cluster, &mut client, &damages);
}

/// Damages blocks of the index, the negative ones from its end, one after the other; a
/// scan of everything names the block.
fn damage(cluster: &Cluster, client: &mut Client, damages: &[(i64, u64, [u8; 4])]) {
    let path: String = client
        .query_one("SELECT pg_relation_filepath('item_v')", &[])
        .unwrap()
        .get(0);
    let blocks: i64 = client
        .query_one("SELECT pg_relation_size('item_v') / 8192", &[])
        .unwrap()
        .get(0);
    let path = cluster.data().join(path);
    for &(block, at, bytes) in damages {
        let block = block.rem_euclid(blocks) as u64;
        cluster.stop_server("fast");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let offset = block * PAGE_SIZE + at;
        let mut original = [0; 4];
        file.read_exact_at(&mut original, offset).unwrap();
        file.write_all_at(&bytes, offset).unwrap();
        cluster.start_server();
        *client = cluster.client();
        client
            .batch_execute("SET ignore_checksum_failure = on; SET enable_seqscan = off; SET client_min_messages = error")
            .unwrap();
        let query = "SELECT count(*) FROM (SELECT id FROM item ORDER BY v <-> sample_vector(7)) s";
        let failure = sql_failure(client.query_one(query, &[]));
        assert_eq!(failure.state, "XX002", "{failure:?}");
        assert!(
            failure.message.contains(&format!("at block {block}")),
            "{failure:?}"
        );
        assert!(failure.hint.contains("REINDEX"), "{failure:?}");
        assert!(
            client.simple_query("SELECT 1").is_ok(),
            "the session lives on"
        );
        cluster.stop_server("fast");
        file.write_all_at(&original, offset).unwrap();
        cluster.start_server();
    }
    *client = cluster.client();
    assert_eq!(assert_index_equals_table(client), 3000);
}
