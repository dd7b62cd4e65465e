//! What a session can see of the work of its scans.

use pg_sight_tests::Cluster;
use postgres::Client;

const TABLE: &str = "
    CREATE EXTENSION pg_sight CASCADE;
    CREATE TABLE item (id serial PRIMARY KEY, v vector(2));
    INSERT INTO item (v) SELECT ARRAY[i % 40, i / 40]::vector FROM generate_series(1, 1600) i;
    CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 16);
    ANALYZE item;
    SET enable_seqscan = off;
    SET enable_sort = off;
    SET faiss_ivf.nprobe = 3;";

fn last_scan(client: &mut Client) -> Option<(i64, i64, i64)> {
    let rows = client
        .query(
            "SELECT lists_probed, entries_scanned, rows_returned FROM sight_index_last_scan()",
            &[],
        )
        .unwrap();
    rows.first().map(|row| (row.get(0), row.get(1), row.get(2)))
}

fn explain(client: &mut Client, options: &str, query: &str) -> String {
    let rows = client
        .query(&format!("EXPLAIN ({options}) {query}"), &[])
        .unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

#[test]
fn the_last_scan_and_explain_show_what_was_read() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    assert_eq!(last_scan(&mut client), None);
    let query = "SELECT id FROM item ORDER BY v <-> '[5,5]' LIMIT 4";
    client.query(query, &[]).unwrap();
    let (lists, entries, rows) = last_scan(&mut client).unwrap();
    assert_eq!((lists, rows), (3, 4));
    assert!((100..800).contains(&entries), "{entries}");

    let has_hook: bool = client
        .query_one(
            "SELECT current_setting('server_version_num')::int >= 180000",
            &[],
        )
        .unwrap()
        .get(0);
    let shown = explain(&mut client, "ANALYZE", query);
    assert_eq!(shown.contains("Lists Probed: 3\n"), has_hook, "{shown}");
    assert_eq!(
        shown.contains(&format!("Entries Scanned: {entries}\n")),
        has_hook
    );
    // Without ANALYZE nothing was read.
    assert!(!explain(&mut client, "COSTS", query).contains("Lists Probed"));
    // Each scan of a nested loop counts.
    let looped = "SELECT n.id FROM generate_series(1, 5) AS x, LATERAL
        (SELECT id FROM item ORDER BY v <-> ARRAY[x, x]::vector LIMIT 1) AS n";
    let shown = explain(&mut client, "ANALYZE", looped);
    assert_eq!(shown.contains("Lists Probed: 15\n"), has_hook, "{shown}");
    // Other indexes are left alone.
    let shown = explain(&mut client, "ANALYZE", "SELECT id FROM item WHERE id = 7");
    assert!(
        shown.contains("item_pkey") && !shown.contains("Lists Probed"),
        "{shown}"
    );
}

/// Pages that a scan of all lists asks for before it reads them.
fn prefetched(client: &mut Client) -> i64 {
    let query = "SELECT id FROM wide ORDER BY v <-> (SELECT v FROM wide WHERE id = 1) LIMIT 50";
    assert_eq!(client.query(query, &[]).unwrap().len(), 50);
    let asked = "SELECT pages_prefetched FROM sight_index_last_scan()";
    client.query_one(asked, &[]).unwrap().get(0)
}

#[test]
fn a_scan_reads_ahead_what_is_in_no_buffer() {
    let settings = ["shared_buffers = 1MB", "effective_io_concurrency = 8"];
    let cluster = Cluster::start(&settings);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION pg_sight CASCADE;
            CREATE TABLE wide (id serial PRIMARY KEY, v vector(60));
            INSERT INTO wide (v) SELECT (SELECT array_agg(sin(i * j)) FROM generate_series(1, 60) j)::vector
            FROM generate_series(1, 10000) i;
            CREATE INDEX wide_v ON wide USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF20,Flat');
            SET enable_seqscan = off;
            SET faiss_ivf.nprobe = 20;",
        )
        .unwrap();
    let pages: i64 = client
        .query_one("SELECT pg_relation_size('wide_v') / 8192", &[])
        .unwrap()
        .get(0);
    assert!(pages > 300, "{pages}");
    // The index does not fit in the buffers, so that each scan throws out what it has read
    // first. The second one remembers where it found everything, and must not rely on that.
    for _ in 0..3 {
        let asked = prefetched(&mut client);
        assert!(asked > pages / 2, "{asked} of {pages}");
    }
    client
        .batch_execute("SET effective_io_concurrency = 0")
        .unwrap();
    assert_eq!(prefetched(&mut client), 0);
}

/// A table of 3,000 vectors without an index.
fn create_wide(client: &mut Client, dim: usize) {
    client
        .batch_execute(&format!(
            "CREATE EXTENSION pg_sight CASCADE;
            CREATE TABLE wide (id serial PRIMARY KEY, v vector({dim}));
            INSERT INTO wide (v) SELECT (SELECT array_agg(sin(i * j + i)) FROM generate_series(1, {dim}) j)::vector
            FROM generate_series(1, 3000) i;"
        ))
        .unwrap();
}

fn ids(client: &mut Client, query: &str) -> Vec<i32> {
    let rows = client.query(query, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The first search of a session ranks the lists by all of their centroids, the later ones
/// by copies of 8 bits. Both must read the same lists, and rank rows the same.
#[test]
fn lists_are_ranked_the_same_by_copies_of_their_centroids() {
    let cluster = Cluster::start(&[]);
    create_wide(&mut cluster.client(), 256);
    for (class, operator) in [("vector_l2_ops", "<->"), ("vector_ip_ops", "<#>")] {
        cluster
            .client()
            .batch_execute(&format!(
                "DROP INDEX IF EXISTS wide_v;
                CREATE INDEX wide_v ON wide USING faiss_ivf (v {class}) WITH (lists = 200)"
            ))
            .unwrap();
        for id in (1..3000).step_by(150) {
            let mut client = cluster.client();
            client
                .batch_execute(
                    "SET enable_seqscan = off; SET enable_sort = off; SET faiss_ivf.nprobe = 7",
                )
                .unwrap();
            let query = format!(
                "SELECT id FROM wide ORDER BY v {operator}
                (SELECT v FROM wide WHERE id = {id}) LIMIT 30"
            );
            let mut search = || {
                let found = ids(&mut client, &query);
                (found, last_scan(&mut client))
            };
            let first = search();
            assert_eq!(first.0.len(), 30);
            assert_eq!(search(), first, "{class}, {id}");
        }
    }
}

/// Scans of a session use the memory of earlier ones. What these had found must not show,
/// nor what others find that run at the same time.
#[test]
fn scans_have_nothing_to_do_with_each_other() {
    let cluster = Cluster::start(&[]);
    create_wide(&mut cluster.client(), 60);
    let search = |id: i32| {
        format!("SELECT id FROM wide ORDER BY v <-> (SELECT v FROM wide WHERE id = {id}) LIMIT 30")
    };
    for factory in ["IVF30,Flat", "IVF30,SQ8", "RR,IVF30,RaBitQ,Refine(SQ8)"] {
        cluster
            .client()
            .batch_execute(&format!(
                "DROP INDEX IF EXISTS wide_v;
                CREATE INDEX wide_v ON wide USING faiss_ivf (v vector_l2_ops) WITH (factory = '{factory}')"
            ))
            .unwrap();
        let session = || {
            let mut client = cluster.client();
            let settings =
                "SET enable_seqscan = off; SET enable_sort = off; SET faiss_ivf.nprobe = 5";
            client.batch_execute(settings).unwrap();
            client
        };
        let alone = [7, 1500].map(|id| ids(&mut session(), &search(id)));
        assert_ne!(alone[0], alone[1]);
        let mut client = session();
        // One that stops early, and one that reads all there is.
        ids(
            &mut client,
            "SELECT id FROM wide ORDER BY v <-> (SELECT v FROM wide WHERE id = 9) LIMIT 1",
        );
        ids(
            &mut client,
            "SELECT id FROM wide ORDER BY v <-> (SELECT v FROM wide WHERE id = 8) LIMIT 2900",
        );
        for (id, alone) in [7, 1500].into_iter().zip(&alone) {
            assert_eq!(&ids(&mut client, &search(id)), alone, "{factory}, {id}");
        }
        client
            .batch_execute(&format!(
                "BEGIN; DECLARE a CURSOR FOR {}; DECLARE b CURSOR FOR {}",
                search(7),
                search(1500)
            ))
            .unwrap();
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..6 {
            for (name, found) in ["a", "b"].iter().zip(&mut found) {
                found.extend(ids(&mut client, &format!("FETCH 5 FROM {name}")));
            }
        }
        client.batch_execute("COMMIT").unwrap();
        assert_eq!(found, alone, "{factory}");
    }
}

/// Pages of a temporary table lie in buffers of the session's own.
#[test]
fn rows_of_a_temporary_table_are_found() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    create_wide(&mut client, 60);
    client
        .batch_execute(
            "CREATE TEMP TABLE item AS SELECT * FROM wide WHERE id <= 1000;
            CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 20);
            SET enable_seqscan = off; SET enable_sort = off; SET faiss_ivf.nprobe = 20",
        )
        .unwrap();
    for id in 1001..1200 {
        let insert = "INSERT INTO item SELECT * FROM wide WHERE id = $1";
        assert_eq!(client.execute(insert, &[&id]).unwrap(), 1);
        let search = "SELECT id FROM item ORDER BY v <-> (SELECT v FROM wide WHERE id = ";
        assert_eq!(ids(&mut client, &format!("{search}{id}) LIMIT 1")), [id]);
    }
}
