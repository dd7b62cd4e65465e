//! Sessions at work while the server is killed and frozen, statements are cancelled
//! and nonsense is asked: no row is lost, half written or wrong.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use pg_sight_tests::{Cluster, captioner_goldens, kill, sql_failure, wait_until};
use postgres::Client;

const TEXTS: i32 = 300;
/// What a statement may say that had nothing wrong about it: the server is down, was
/// lost or is overloaded, or the statement was cancelled.
const DISTURBED: [&str; 4] = ["PS001", "PS002", "PS003", "57014"];

const TABLES: &str = "
    CREATE TABLE doc (id int PRIMARY KEY, t text NOT NULL, v vector(384), writes int NOT NULL DEFAULT 0);
    INSERT INTO doc SELECT i, repeat('thing number ' || i || ' ', 1 + i % 30) FROM generate_series(1, 300) AS i;
    UPDATE doc SET v = b.v FROM (
        SELECT ids.id, ids.v FROM (
            SELECT array_agg(id ORDER BY id) AS ids, embed_batch(array_agg(t ORDER BY id)) AS vs FROM doc) AS a,
        unnest(a.ids, a.vs) AS ids (id, v)) AS b WHERE doc.id = b.id;
    CREATE TABLE right_one AS SELECT id, v FROM doc;
    UPDATE doc SET v = NULL WHERE id % 2 = 0;
    CREATE TABLE picture (id bigint PRIMARY KEY, image bytea, description text, v vector(384));
    CREATE TRIGGER describe BEFORE INSERT ON picture FOR EACH ROW
        EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'v');";

/// How long it goes on: `make soak` sets it.
fn soak_time() -> Duration {
    let seconds = std::env::var("PG_SIGHT_SOAK_SECONDS");
    Duration::from_secs(seconds.map_or(15, |seconds| seconds.parse().expect("a number")))
}

/// Numbers that look random, others for each seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        let span = milliseconds.end - milliseconds.start;
        thread::sleep(Duration::from_millis(milliseconds.start + self.below(span)));
    }
}

/// What happened, by SQLSTATE; `00000` is success.
type Tally = Mutex<BTreeMap<String, u64>>;

/// A session, made anew when its connection is lost.
struct Session<'a> {
    cluster: &'a Cluster,
    client: Client,
    tally: &'a Tally,
}

impl<'a> Session<'a> {
    fn new(cluster: &'a Cluster, tally: &'a Tally) -> Self {
        let mut client = cluster.client();
        client
            .batch_execute("SET pg_sight.start_timeout = '5s'")
            .unwrap();
        Self {
            cluster,
            client,
            tally,
        }
    }

    /// Runs a statement: whether it succeeded. It may fail in the ways that are named,
    /// or because it was disturbed.
    fn run(
        &mut self,
        statement: &str,
        parameters: &[&(dyn postgres::types::ToSql + Sync)],
        fails: &[&str],
    ) -> bool {
        let result = self.client.execute(statement, parameters);
        let state = match &result {
            Ok(_) => "00000".to_owned(),
            Err(_) => {
                let failure = sql_failure(result.map(|_| ()));
                let expected = fails.iter().chain(&DISTURBED);
                assert!(
                    expected.clone().any(|state| *state == failure.state),
                    "{statement}: {failure:?}\n{}",
                    self.cluster.log()
                );
                failure.state
            }
        };
        if state == "PS001" {
            // Not thousands of times while the server is down.
            thread::sleep(Duration::from_millis(20));
        }
        let succeeded = state == "00000";
        *self.tally.lock().unwrap().entry(state).or_default() += 1;
        succeeded
    }
}

/// Writes vectors of single rows and of many, and counts what was committed.
fn write(mut session: Session, seed: u64, end: Instant) -> u64 {
    let mut dice = Dice(seed);
    let mut written = 0;
    while Instant::now() < end {
        if dice.below(5) > 0 {
            let id = dice.below(TEXTS as u64) as i32 + 1;
            let update = "UPDATE doc SET v = embed(t), writes = writes + 1 WHERE id = $1";
            written += u64::from(session.run(update, &[&id], &["40P01"]));
        } else {
            let from = dice.below(TEXTS as u64 - 40) as i32 + 1;
            let update = "UPDATE doc SET v = b.v, writes = writes + 1 FROM (
                    SELECT ids.id, ids.v FROM (
                        SELECT array_agg(id ORDER BY id) AS ids, embed_batch(array_agg(t ORDER BY id)) AS vs
                        FROM doc WHERE id BETWEEN $1 AND $1 + 39) AS a,
                    unnest(a.ids, a.vs) AS ids (id, v)) AS b
                WHERE doc.id = b.id";
            written += 40 * u64::from(session.run(update, &[&from], &["40P01"]));
        }
    }
    written
}

/// Inserts pictures through the trigger, and remembers which were committed.
fn insert(mut session: Session, image: &[u8], end: Instant) -> Vec<i64> {
    let mut committed = Vec::new();
    for id in 0.. {
        if Instant::now() >= end {
            break;
        }
        let insert = "INSERT INTO picture (id, image) VALUES ($1, $2)";
        if session.run(insert, &[&id, &image], &[]) {
            committed.push(id);
        }
    }
    committed
}

/// Asks for what cannot be.
fn ask_nonsense(mut session: Session, image: &[u8], end: Instant) {
    let damaged = &image[..image.len() / 3];
    let long = "x".repeat(3 << 20);
    while Instant::now() < end {
        session.run("SELECT blip_describe($1)", &[&damaged], &["PS020"]);
        session.run(
            "SELECT blip_describe_batch(ARRAY[$1::bytea, $2::bytea])",
            &[&image, &damaged],
            &["PS020"],
        );
        session.run("SELECT embed($1)", &[&long], &["PS022"]);
        session.run("SELECT embed('x', 'no such model')", &[], &["PS010"]);
        session.run("SELECT embed('x', 'demo-captioner')", &[], &["PS012"]);
        session.run(
            "SELECT blip_describe($1, options => '{\"num_beams\": 1000000}')",
            &[&image],
            &["22023", "PS005"],
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Kills the server, ends it in order, or freezes it for the watchdog to find.
fn disturb(cluster: &Cluster, end: Instant) -> u64 {
    let mut dice = Dice(4711);
    let mut client = cluster.client();
    let mut disturbances = 0;
    while Instant::now() < end {
        dice.pause(1000..13_000.min(1001 + soak_time().as_millis() as u64 / 4));
        let signal = [libc::SIGKILL, libc::SIGTERM, libc::SIGSTOP][dice.below(3) as usize];
        if let Some(server) = cluster.model_server(&mut client)
            && std::fs::read_to_string(format!("/proc/{server}/comm"))
                .is_ok_and(|name| name.trim() == "pg_sight_server")
        {
            kill(server, signal);
            disturbances += 1;
        }
    }
    disturbances
}

/// Cancels whatever asks the server, now and then.
fn cancel(cluster: &Cluster, end: Instant) {
    let mut dice = Dice(815);
    let mut client = cluster.client();
    while Instant::now() < end {
        dice.pause(50..500);
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
            WHERE state = 'active' AND pid <> pg_backend_pid()
                AND (query LIKE '%embed%' OR query LIKE '%picture%' OR query LIKE '%blip%')
            ORDER BY random() LIMIT 1";
        client.query(cancel, &[]).unwrap();
    }
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

#[test]
fn no_row_is_lost_or_wrong() {
    let cluster = Cluster::with_models_and(&[
        "pg_sight.watchdog_interval = '500ms'",
        "pg_sight.watchdog_timeout = '3s'",
    ]);
    let mut client = cluster.client();
    client.batch_execute(TABLES).unwrap();
    let (golden, image) = &captioner_goldens()[0];
    let tally = Tally::default();
    let end = Instant::now() + soak_time();
    let session = || Session::new(&cluster, &tally);
    let (written, committed, disturbances) = thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|seed| (seed, session()))
            .map(|(seed, session)| scope.spawn(move || write(session, seed, end)))
            .collect();
        let (inserting, asking) = (session(), session());
        let inserter = scope.spawn(move || insert(inserting, image, end));
        scope.spawn(move || ask_nonsense(asking, image, end));
        scope.spawn(|| cancel(&cluster, end));
        let disturber = scope.spawn(|| disturb(&cluster, end));
        let written: u64 = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum();
        (written, inserter.join().unwrap(), disturber.join().unwrap())
    });
    let tally = tally.into_inner().unwrap();
    println!(
        "{tally:?}, {disturbances} disturbances, {written} vectors and {} pictures written",
        committed.len()
    );
    assert!(written > 0 && !committed.is_empty() && disturbances > 0);

    let wrong = "SELECT count(*) FROM doc JOIN right_one AS r USING (id)
                 WHERE doc.v <-> r.v > 1e-4 OR (doc.v IS NULL AND (writes > 0 OR id % 2 = 1))";
    assert_eq!(number(&mut client, wrong), 0, "vectors");
    assert_eq!(
        number(&mut client, "SELECT count(*) FROM doc"),
        i64::from(TEXTS)
    );
    let writes = number(&mut client, "SELECT sum(writes)::bigint FROM doc");
    assert_eq!(writes as u64, written, "each write once, and whole");
    let found = client
        .query("SELECT id FROM picture ORDER BY id", &[])
        .unwrap();
    let found: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, committed, "pictures");
    let described = "SELECT count(*) FROM picture WHERE description = $1 AND v IS NOT NULL";
    let caption = golden["greedy_text"].as_str().unwrap();
    let described: i64 = client.query_one(described, &[&caption]).unwrap().get(0);
    assert_eq!(described, committed.len() as i64, "descriptions");

    // It is there again, as soon as its back-off is over.
    client
        .batch_execute("SET pg_sight.start_timeout = '90s'")
        .unwrap();
    wait_until("it works", Duration::from_secs(90), || {
        client.query_one("SELECT embed('x')", &[]).is_ok()
    });
    let log = cluster.log();
    for trouble in [
        "PANIC",
        "terminating connection because of crash",
        "panicked",
    ] {
        assert!(!log.contains(trouble), "{log}");
    }
}
