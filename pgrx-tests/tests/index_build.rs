//! Builds of an index: the memory that they take, the phases that they show, and
//! what is left of one that is cancelled.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pg_sight_tests::{Cluster, sql_failure};
use postgres::Client;
use postgres::error::DbError;

/// 60000 rows of 128 dimensions, which take 31 MB.
const TABLE: &str = "
    CREATE EXTENSION pg_sight CASCADE;
    CREATE TABLE base AS SELECT i, (SELECT array_agg((hashint4(i * 128 + j) / 2147483648.0)::real)
            FROM generate_series(1, 128) AS j)::vector(128) AS v
        FROM generate_series(1, 500) AS i;
    CREATE TABLE item (v vector(128));
    INSERT INTO item SELECT a.v + b.v FROM base AS a JOIN base AS b ON a.i <= 240 AND b.i > 250;";
const ROWS: i64 = 60_000;
/// What a build takes beside what `maintenance_work_mem` is for: blocks of distances in
/// FAISS, which are 16 MB at most, and the buffers of BLAS.
const OVERHEAD: u64 = 24 << 20;
/// A small sample is drawn from so many blocks of the table.
const SAMPLED_BLOCKS: i64 = 2000;
/// The phases of a build, as the progress view shows them.
const PHASES: [&str; 5] = [
    "building index: sampling rows",
    "building index: clustering sample",
    "building index: assigning rows",
    "building index: sorting rows",
    "building index: writing lists",
];

fn build(table: &str, lists: u32) -> String {
    format!(
        "CREATE INDEX item_v ON {table} USING faiss_ivf (v vector_l2_ops) WITH (lists = {lists})"
    )
}

fn backend(client: &mut Client) -> i32 {
    client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0)
}

/// Memory of a process that it shares with no other, in bytes.
fn private_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

/// The most memory that a statement makes its backend take beyond what it had.
fn growth(client: &mut Client, statement: &str) -> u64 {
    let pid = backend(client);
    let before = private_memory(pid);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = before;
            while !is_done.load(Ordering::Relaxed) {
                most = most.max(private_memory(pid));
                thread::sleep(Duration::from_millis(1));
            }
            most
        });
        let result = client.batch_execute(statement);
        is_done.store(true, Ordering::Relaxed);
        result.unwrap();
        watcher.join().unwrap() - before
    })
}

#[test]
fn a_build_keeps_to_maintenance_work_mem() {
    let cluster = Cluster::start(&[]);
    cluster.client().batch_execute(TABLE).unwrap();
    for (megabytes, lists) in [
        (2, 240),
        (8, 240),
        (20, 8000),
        (16, 1000),
        (64, 1),
        (64, 1000),
    ] {
        // A new session, as an allocator keeps what it once had.
        let mut client = cluster.client();
        // Each thread more has blocks of distances of its own.
        let settings = format!(
            "LOAD 'pg_sight'; SET maintenance_work_mem = '{megabytes}MB';
             SET max_parallel_maintenance_workers = 0"
        );
        client.batch_execute(&settings).unwrap();
        client
            .query("SELECT count(v <-> v) FROM item", &[])
            .unwrap();
        let taken = growth(&mut client, &build("item", lists));
        assert!(
            taken < (megabytes << 20) + OVERHEAD,
            "{lists} lists with {megabytes} MB: {taken} bytes"
        );
        client.batch_execute("DROP INDEX item_v").unwrap();
    }
}

/// Whether a build shows `phase`.
fn is_in_phase(watcher: &mut Client, phase: &str) -> bool {
    let query = "SELECT FROM pg_stat_progress_create_index WHERE phase = $1";
    !watcher.query(query, &[&phase]).unwrap().is_empty()
}

/// Cancels a build of `item_v` so long after it shows `phase`; returns how long it went
/// on. A busy machine may let a short phase pass unseen: then the next build is met.
fn cancel_in_phase(cluster: &Cluster, build: &str, phase: &str, delay: Duration) -> Duration {
    let mut watcher = cluster.client();
    for _ in 0..50 {
        let mut client = cluster.client();
        let pid = backend(&mut client);
        let (result, waited) = thread::scope(|scope| {
            let build = scope.spawn(move || (client.batch_execute(build), Instant::now()));
            while !build.is_finished() && !is_in_phase(&mut watcher, phase) {}
            thread::sleep(delay);
            let cancelled = Instant::now();
            watcher
                .query("SELECT pg_cancel_backend($1)", &[&pid])
                .unwrap();
            let (result, ended) = build.join().unwrap();
            (result, ended.saturating_duration_since(cancelled))
        });
        if result.is_err() {
            assert_eq!(sql_failure(result).state, "57014");
            return waited;
        }
        watcher.batch_execute("DROP INDEX item_v").unwrap();
    }
    panic!("no build was met in {phase}");
}

/// The relations and temporary files that have files in the data directory.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let name = path.file_name().unwrap().to_str().unwrap();
            // Segments and forks of a relation begin with its number.
            let relation = name.split(['.', '_']).next().unwrap();
            if !name.starts_with("pg_") {
                found.insert(folder.join(relation));
            }
        }
    }
    found
}

#[test]
fn a_cancelled_build_ends_at_once_in_every_phase_and_leaves_nothing() {
    // With little memory there are runs to merge.
    let cluster = Cluster::start(&["autovacuum = off", "maintenance_work_mem = 2MB"]);
    let base = cluster.data().join("base");
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    // The files of what is gone are kept until a checkpoint.
    client.batch_execute("CHECKPOINT").unwrap();
    let before = files(&base);
    for phase in PHASES {
        let waited = cancel_in_phase(&cluster, &build("item", 240), phase, Duration::ZERO);
        assert!(waited < Duration::from_secs(1), "{phase}: {waited:?}");
        let query = "SELECT FROM pg_class WHERE relname = 'item_v'";
        assert!(client.query(query, &[]).unwrap().is_empty(), "{phase}");
        client.batch_execute("CHECKPOINT").unwrap();
        assert_eq!(files(&base), before, "{phase}");
        client
            .batch_execute("INSERT INTO item SELECT v FROM base LIMIT 1")
            .unwrap();
    }
    client.batch_execute(&build("item", 240)).unwrap();
    client
        .batch_execute(
            "SET enable_seqscan = off; SET enable_sort = off; SET faiss_ivf.nprobe = 240;
             SET faiss_ivf.iterative_scan = relaxed_order",
        )
        .unwrap();
    let all =
        "SELECT count(*) FROM (SELECT FROM item ORDER BY v <-> (SELECT v FROM base LIMIT 1)) AS s";
    let found: i64 = client.query_one(all, &[]).unwrap().get(0);
    assert_eq!(found, ROWS + PHASES.len() as i64);
}

#[test]
fn a_build_is_cancelled_at_once_in_the_middle_of_long_work() {
    let cluster = Cluster::start(&["maintenance_work_mem = 1GB"]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    // As many distinct rows as lists are their own centroids, and to assign
    // them is long work: 16000 x 16000 distances of 2000 dimensions.
    let wide = "
        CREATE TABLE wide (v vector(2000));
        ALTER TABLE wide ALTER v SET STORAGE EXTENDED;
        INSERT INTO wide SELECT array_fill(i, ARRAY[2000])::vector FROM generate_series(1, 16000) i";
    client.batch_execute(wide).unwrap();
    let (train, assign) = (build("item", 8000), build("wide", 16000));
    for (build, phase) in [(train, PHASES[1]), (assign, PHASES[2])] {
        let waited = cancel_in_phase(&cluster, &build, phase, Duration::from_millis(200));
        assert!(waited < Duration::from_secs(1), "{phase}: {waited:?}");
    }
}

/// What the progress view shows of a build.
#[derive(Debug)]
struct Progress {
    phase: usize,
    blocks: (i64, i64),
    tuples: (i64, i64),
}

/// Builds and drops the index, and returns what the view has shown meanwhile.
fn watch_build(cluster: &Cluster) -> Vec<Progress> {
    let mut watcher = cluster.client();
    let mut client = cluster.client();
    let query = "SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
        FROM pg_stat_progress_create_index";
    let mut shown = Vec::new();
    thread::scope(|scope| {
        let statements = format!("{}; DROP INDEX item_v", build("item", 240));
        let build = scope.spawn(move || client.batch_execute(&statements).unwrap());
        while !build.is_finished() {
            for row in watcher.query(query, &[]).unwrap() {
                let phase: &str = row.get(0);
                if let Some(phase) = PHASES.iter().position(|known| *known == phase) {
                    let blocks = (row.get(1), row.get(2));
                    let tuples = (row.get(3), row.get(4));
                    shown.push(Progress {
                        phase,
                        blocks,
                        tuples,
                    });
                }
            }
        }
    });
    shown
}

#[test]
fn a_build_shows_its_phases_in_order_and_how_far_it_is() {
    let cluster = Cluster::start(&["maintenance_work_mem = 2MB"]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let size = "SELECT pg_relation_size('item') / 8192";
    let blocks: i64 = client.query_one(size, &[]).unwrap().get(0);
    let mut shown: Vec<Progress> = Vec::new();
    // The sample of a phase that shows how far it is: blocks of the table that were
    // read, or iterations or rows.
    let sampled = SAMPLED_BLOCKS.min(blocks);
    let sampling = |p: &Progress| p.phase == 0 && p.blocks.1 == sampled && p.blocks.0 > 0;
    let clustering = |p: &Progress| p.phase == 1 && p.tuples.1 == 10;
    let assigning = |p: &Progress| p.phase == 2 && p.blocks.1 == blocks && p.blocks.0 > 0;
    let writing = |p: &Progress| p.phase == 4 && p.tuples.1 == ROWS && p.tuples.0 > 0;
    // A busy machine may let a short phase pass unseen.
    for _ in 0..50 {
        let more = watch_build(&cluster);
        assert!(more.is_sorted_by_key(|progress| progress.phase), "{more:?}");
        shown.extend(more);
        let is_seen = |phase| shown.iter().any(|progress| progress.phase == phase);
        let shares = shown.iter().any(clustering) && shown.iter().any(assigning);
        let shares = shares && shown.iter().any(sampling);
        if (0..PHASES.len()).all(is_seen) && shares && shown.iter().any(writing) {
            break;
        }
    }
    for (number, phase) in PHASES.iter().enumerate() {
        assert!(
            shown.iter().any(|progress| progress.phase == number),
            "{phase}"
        );
    }
    assert!(shown.iter().any(sampling), "sampled blocks");
    assert!(shown.iter().any(clustering), "iterations");
    assert!(shown.iter().any(assigning), "blocks");
    assert!(shown.iter().any(writing), "rows");
    // Nothing is left of the phase before.
    let totals = [(sampled, 0), (0, 10), (blocks, 0), (0, ROWS), (0, ROWS)];
    for progress in &shown {
        let (of_blocks, of_tuples) = totals[progress.phase];
        assert!([0, of_blocks].contains(&progress.blocks.1), "{progress:?}");
        assert!([0, of_tuples].contains(&progress.tuples.1), "{progress:?}");
        for (done, total) in [progress.blocks, progress.tuples] {
            assert!(done <= total, "{progress:?}");
        }
    }
}

#[test]
fn an_index_of_few_rows_wants_to_be_built_anew_when_there_are_more() {
    let cluster = Cluster::start(&[]);
    let (sender, notices) = mpsc::channel();
    let sender = Mutex::new(sender);
    let on_notice = move |notice: DbError| {
        let message = notice.message().to_owned();
        sender.lock().unwrap().send(message).unwrap();
    };
    let mut client = cluster.client_with_notices("postgres", "postgres", on_notice);
    client
        .batch_execute(
            "SET client_min_messages = warning; CREATE EXTENSION pg_sight CASCADE;
             CREATE TABLE few (v vector(2)); SET client_min_messages = notice",
        )
        .unwrap();
    let create = "CREATE INDEX few_v ON few USING faiss_ivf (v vector_l2_ops) WITH (lists = 100)";
    let insert = |rows: i32| {
        format!(
            "INSERT INTO few SELECT ARRAY[i % 61, i]::vector FROM generate_series(1, {rows}) AS i"
        )
    };
    let untrained = Some("index \"few_v\" was created without rows to learn from");
    let fewer = Some("index \"few_v\" was created with 3 lists instead of 100");
    for (statement, notice, lists, wants_reindex) in [
        (create, untrained, 1, false),
        (&insert(3), None, 1, true),
        ("REINDEX INDEX few_v", fewer, 3, false),
        (&insert(2000), None, 3, true),
        ("REINDEX INDEX few_v", None, 100, false),
    ] {
        client.batch_execute(statement).unwrap();
        assert_eq!(notices.try_recv().ok().as_deref(), notice, "{statement}");
        let query = "SELECT lists, wants_reindex FROM sight_index_stats('few_v')";
        let row = client.query_one(query, &[]).unwrap();
        let shown: (i32, bool) = (row.get(0), row.get(1));
        assert_eq!(shown, (lists, wants_reindex), "{statement}");
    }
}

/// What the pages of an index hold, without what differs between two builds of the same:
/// the meta page, which has a random stamp, and the headers with positions in the log.
fn contents(cluster: &Cluster, client: &mut Client, index: &str) -> Vec<Vec<u8>> {
    client.batch_execute("CHECKPOINT").unwrap();
    let query = format!("SELECT pg_relation_filepath('{index}')");
    let path: String = client.query_one(&query, &[]).unwrap().get(0);
    let file = fs::read(cluster.data().join(path)).unwrap();
    let pages = file.chunks(8192).skip(1);
    pages.map(|page| page[32..].to_vec()).collect()
}

#[test]
fn workers_change_nothing_in_an_index() {
    let cluster = Cluster::start(&["maintenance_work_mem = 64MB"]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    for factory in [
        "RR,IVF,RaBitQ,Refine(SQ8)",
        "IVF,PQ16x4fs,RFlat",
        "IVF,Flat",
    ] {
        let mut build = |settings: &str| {
            let statements = format!(
                "{settings};
                 CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops)
                    WITH (lists = 240, factory = '{factory}')"
            );
            client.batch_execute(&statements).unwrap();
            let contents = contents(&cluster, &mut client, "item_v");
            client
                .batch_execute("DROP INDEX item_v; RESET ALL")
                .unwrap();
            contents
        };
        let alone = build("SET max_parallel_maintenance_workers = 0");
        assert!(alone.len() > 100);
        // As many as there are processors for.
        let helped = build("SET max_parallel_maintenance_workers = 3");
        assert!(alone == helped, "{factory}");
    }
}

/// The most threads that a build of `item_v` has at a time.
fn most_threads(cluster: &Cluster, settings: &str) -> usize {
    let mut client = cluster.client();
    client.batch_execute(settings).unwrap();
    let tasks = format!("/proc/{}/task", backend(&mut client));
    thread::scope(|scope| {
        let statements = format!("{}; DROP INDEX item_v", build("item", 240));
        let build = scope.spawn(move || client.batch_execute(&statements).unwrap());
        let mut most = 0;
        while !build.is_finished() {
            let found = fs::read_dir(&tasks).map_or(0, |tasks| {
                let names = tasks.flatten().map(|task| task.path().join("comm"));
                let names = names.filter_map(|name| fs::read_to_string(name).ok());
                names.filter(|name| name.trim() == "faiss_ivf").count()
            });
            most = most.max(found);
        }
        most
    })
}

#[test]
fn a_build_has_as_many_threads_as_it_may_have_workers() {
    let cluster = Cluster::start(&[]);
    cluster.client().batch_execute(TABLE).unwrap();
    let workers = |count: usize| format!("SET max_parallel_maintenance_workers = {count}");
    assert_eq!(most_threads(&cluster, &workers(0)), 0);
    if thread::available_parallelism().unwrap().get() > 1 {
        assert!(most_threads(&cluster, &workers(1)) >= 1);
    }
    let alter = "ALTER TABLE item SET (parallel_workers = 0)";
    cluster.client().batch_execute(alter).unwrap();
    assert_eq!(most_threads(&cluster, &workers(1)), 0);
}

#[test]
fn a_terminated_build_lets_its_threads_end() {
    let cluster = Cluster::start(&["maintenance_work_mem = 64MB"]);
    let mut watcher = cluster.client();
    watcher.batch_execute(TABLE).unwrap();
    for phase in [PHASES[1], PHASES[2]] {
        for _ in 0..3 {
            let mut client = cluster.client();
            let set = "SET max_parallel_maintenance_workers = 3";
            client.batch_execute(set).unwrap();
            let pid = backend(&mut client);
            thread::scope(|scope| {
                let build = scope.spawn(move || client.batch_execute(&build("item", 2000)));
                while !build.is_finished() && !is_in_phase(&mut watcher, phase) {}
                thread::sleep(Duration::from_millis(5));
                let terminate = "SELECT pg_terminate_backend($1)";
                watcher.query(terminate, &[&pid]).unwrap();
                // A crash of one backend would end the others: the watcher lives on.
                let _ = build.join().unwrap();
            });
            watcher
                .batch_execute("DROP INDEX IF EXISTS item_v")
                .unwrap();
        }
    }
}

#[test]
fn rows_at_the_end_of_what_floats_hold_do_not_spoil_a_build() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute(TABLE).unwrap();
    let far = "
        ALTER TABLE item ADD id serial;
        INSERT INTO item (v, id) SELECT array_fill(x, ARRAY[128])::vector, 100000 + n
            FROM unnest('{3e38, -3e38, 1e30, 1e12}'::real[]) WITH ORDINALITY AS far (x, n);";
    client.batch_execute(far).unwrap();
    let settings = "SET enable_seqscan = off; SET enable_sort = off";
    client.batch_execute(settings).unwrap();
    for (opclass, operator) in [
        ("vector_l2_ops", "<->"),
        ("vector_ip_ops", "<#>"),
        ("vector_cosine_ops", "<=>"),
    ] {
        let build =
            format!("CREATE INDEX item_v ON item USING faiss_ivf (v {opclass}) WITH (lists = 240)");
        client.batch_execute(&build).unwrap();
        let query = "SELECT lists FROM sight_index_stats('item_v')";
        let lists: i32 = client.query_one(query, &[]).unwrap().get(0);
        assert_eq!(lists, 240, "{opclass}");
        // They are in lists, wherever: a search of all lists finds all.
        let all = format!(
            "SET faiss_ivf.nprobe = 240; SET faiss_ivf.iterative_scan = relaxed_order;
             CREATE TEMP TABLE found AS SELECT id FROM item
                ORDER BY v {operator} (SELECT v FROM item WHERE id = 7)"
        );
        client.batch_execute(&all).unwrap();
        let query = "SELECT count(*), count(*) FILTER (WHERE id > 100000) FROM found";
        let row = client.query_one(query, &[]).unwrap();
        assert_eq!((row.get(0), row.get(1)), (ROWS + 4, 4i64), "{opclass}");
        client
            .batch_execute("DROP TABLE found; DROP INDEX item_v")
            .unwrap();
    } // Nothing to learn from is one list.
    let huge = "
        CREATE TABLE huge AS SELECT array_fill(3e38 - i * 1e34, ARRAY[128])::vector(128) AS v
            FROM generate_series(1, 1000) AS i;
        CREATE INDEX huge_v ON huge USING faiss_ivf (v vector_l2_ops) WITH (lists = 10)";
    client.batch_execute(huge).unwrap();
    let query = "SELECT lists, entries FROM sight_index_stats('huge_v')";
    let row = client.query_one(query, &[]).unwrap();
    assert_eq!((row.get(0), row.get(1)), (1, 1000i64));
}
