//! A streaming standby answers from its indexes as its primary does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_sight_tests::{
    Cluster, Reading, SEARCHED_TABLE, answers, assert_indexes_are_exact, assert_same, catch_up,
    create_indexes, sql_failure,
};
use postgres::Client;

const INDEX: &str = "item_vector_l2_ops";
/// Statistics that do not depend on which rows a server still keeps for its own queries.
const STATISTICS: &str = "
    SELECT row_to_json(s)::text FROM (SELECT lists, entries, total_bytes, free_entries, training_rows,
        trained_at, nprobe, expected_recall, recall_curve FROM sight_index_stats($1::text::regclass)) AS s";

/// A primary with `item` and its indexes, and its standby; each with a session that
/// has been there all the time.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    writer: Client,
    reader: Client,
}

impl Pair {
    /// The indexes are made when the standby runs, so that it learns of them by replay.
    fn start() -> Self {
        let primary = Cluster::start(&["wal_keep_size = 256MB"]);
        let mut writer = primary.client();
        writer.batch_execute(SEARCHED_TABLE).unwrap();
        let standby = primary.standby();
        let reader = standby.client();
        create_indexes(&mut writer, "item");
        Self {
            primary,
            standby,
            writer,
            reader,
        }
    }

    /// Exact answers and those by fewer lists are the same on both; and the exact ones
    /// are exact.
    fn assert_equal(&mut self, after: &str) {
        catch_up(&mut self.writer, &mut self.reader);
        assert_indexes_are_exact(&mut self.reader, "item");
        for reading in [Reading::AllLists, Reading::ChosenLists] {
            let of_primary = answers(&mut self.writer, "item", reading);
            let of_standby = answers(&mut self.reader, "item", reading);
            assert_same(after, &of_standby, &of_primary);
        }
        let of_standby = statistics(&mut self.reader);
        assert_eq!(of_standby, statistics(&mut self.writer), "{after}");
    }
}

fn statistics(client: &mut Client) -> String {
    client.query_one(STATISTICS, &[&INDEX]).unwrap().get(0)
}

fn chosen_lists(client: &mut Client) -> i32 {
    let query = "SELECT nprobe FROM sight_index_stats($1::text::regclass)";
    client.query_one(query, &[&INDEX]).unwrap().get(0)
}

#[test]
fn a_standby_answers_as_its_primary_after_every_change() {
    let mut pair = Pair::start();
    pair.assert_equal("the build");
    for (what, statements) in [
        (
            "inserts",
            "INSERT INTO item (v, h) SELECT v, v FROM generate_series(5001, 6500) AS i, sample_vector(i) AS v",
        ),
        ("deletes", "DELETE FROM item WHERE id % 3 = 0"),
        ("a vacuum", "VACUUM item"),
        (
            "inserts into free pages",
            "INSERT INTO item (v, h) SELECT v, v FROM generate_series(6501, 8000) AS i, sample_vector(i) AS v",
        ),
        (
            "updates",
            "UPDATE item SET v = sample_vector(id + 50000) WHERE id % 5 = 0",
        ),
        // New centroids in a new file, of which the reader's session keeps the old ones.
        ("a new build", "REINDEX TABLE item"),
        ("a concurrent build", "REINDEX TABLE CONCURRENTLY item"),
    ] {
        pair.writer.batch_execute(statements).unwrap();
        pair.assert_equal(what);
    }
}

#[test]
fn a_standby_follows_a_calibration_and_measures_but_does_not_calibrate() {
    let mut pair = Pair::start();
    pair.assert_equal("the build");
    let before = chosen_lists(&mut pair.reader);
    // Queries that lie in one direction far off want other lists than rows do.
    let calibrate = "SELECT count(*) FROM sight_index_calibrate($1::text::regclass,
        (SELECT array_agg(array_fill(0.1 * i, ARRAY[32])::vector) FROM generate_series(1, 60) AS i))";
    pair.writer.query(calibrate, &[&INDEX]).unwrap();
    assert_ne!(chosen_lists(&mut pair.writer), before);
    pair.assert_equal("the calibration");

    let measure = "SELECT sight_index_recall($1::text::regclass, 10, 200)";
    let recall: f64 = pair.reader.query_one(measure, &[&INDEX]).unwrap().get(0);
    assert!((0.3..=1.0).contains(&recall), "{recall}");
    pair.reader
        .batch_execute("SET faiss_ivf.nprobe = 65536; SET faiss_ivf.target_recall = 1")
        .unwrap();
    let recall: f64 = pair.reader.query_one(measure, &[&INDEX]).unwrap().get(0);
    // Bounds by lossy codes are never quite certain, and less so at a lower target.
    assert!(recall >= 0.99, "{recall}");
    pair.reader
        .batch_execute("RESET faiss_ivf.nprobe; RESET faiss_ivf.target_recall")
        .unwrap();
    let refused = sql_failure(pair.reader.query(calibrate, &[&INDEX]));
    assert_eq!(refused.state, "25006", "{refused:?}");

    drop(pair.writer);
    pair.primary.stop_server("fast");
    pair.standby.promote();
    pair.reader.query(calibrate, &[&INDEX]).unwrap();
    pair.reader
        .batch_execute("DELETE FROM item WHERE id % 4 = 0")
        .unwrap();
    pair.reader.batch_execute("VACUUM item").unwrap();
    assert_indexes_are_exact(&mut pair.reader, "item");
}

/// Changes rows in all ways, and vacuums and builds anew, until `stop` is set. No two rows
/// ever have the same vector, so that the order of answers is certain.
fn write_until(client: &mut Client, stop: &AtomicBool) {
    for round in 0.. {
        let seed = 100_000 + 100 * round;
        let insert = format!(
            "INSERT INTO item (v, h)
                 SELECT v, v FROM generate_series({seed}, {seed} + 99) AS i, sample_vector(i) AS v"
        );
        let update = format!(
            "UPDATE item SET v = sample_vector(-20000 * {round} - id) WHERE id % 61 = {}",
            round % 61
        );
        let delete = format!("DELETE FROM item WHERE id % 53 = {}", round % 53);
        let last = match round % 8 {
            7 => "REINDEX TABLE item",
            _ => "VACUUM item",
        };
        for statement in [insert.as_str(), &update, &delete, last] {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            client.batch_execute(statement).unwrap();
        }
    }
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_standby_answers_right_while_it_replays() {
    let mut pair = Pair::start();
    catch_up(&mut pair.writer, &mut pair.reader);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when an answer is wrong, the writer shall not go on for ever.
        let stopping = StopWhenDropped(&stop);
        let mut writer = pair.primary.client();
        let stop = &stop;
        let writing = scope.spawn(move || write_until(&mut writer, stop));
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until {
            assert_indexes_are_exact(&mut pair.reader, "item");
        }
        drop(stopping);
        writing.join().unwrap();
    });
    pair.assert_equal("all writes");
}
