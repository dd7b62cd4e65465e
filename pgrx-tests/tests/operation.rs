//! The model server in production: it is watched, measured, limited and set up.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use pg_sight_tests::{
    CAPTIONER, Cluster, ENCODER, SqlFailure, captioner_goldens, is_alive, kill, sql_failure,
    wait_until,
};
use postgres::Client;

/// Long enough to be in the middle of it, whatever the machine.
const LONG: &str = "SELECT count(embed_batch(ARRAY(
    SELECT 'text number ' || i || repeat(' and more words', 60) FROM generate_series(1, 20000) AS i)))";

fn server(cluster: &Cluster) -> i32 {
    let pid = cluster.model_server(&mut cluster.client());
    pid.expect("the server runs")
}

fn embeds(client: &mut Client, text: &str) {
    let row = client.query_one("SELECT vector_dims(embed($1))", &[&text]);
    assert_eq!(row.unwrap().get::<_, i32>(0), 384);
}

/// Waits until the long query is in work.
fn wait_for_work(cluster: &Cluster) {
    let mut client = cluster.client();
    let active = "SELECT count(*) FROM pg_stat_activity
                  WHERE state = 'active' AND query LIKE '%text number%' AND pid <> pg_backend_pid()";
    wait_until("the query runs", Duration::from_secs(20), || {
        client.query_one(active, &[]).unwrap().get::<_, i64>(0) > 0
    });
    thread::sleep(Duration::from_millis(500));
}

fn set(cluster: &Cluster, name: &str, value: &str) -> Result<(), SqlFailure> {
    let statement = format!("ALTER SYSTEM SET {name} = '{value}'");
    let mut client = cluster.client();
    // The library knows what a setting may be.
    client.batch_execute("LOAD 'pg_sight'").unwrap();
    match client.execute(&statement, &[]) {
        Ok(_) => cluster.reload(),
        error => return Err(sql_failure(error)),
    }
    Ok(())
}

#[test]
fn a_server_that_hangs_is_ended_and_says_so() {
    let cluster = Cluster::with_models_and(&[
        "pg_sight.watchdog_interval = '500ms'",
        "pg_sight.watchdog_timeout = '3s'",
    ]);
    embeds(&mut cluster.client(), "x");
    let frozen = server(&cluster);
    let failure = thread::scope(|scope| {
        let long = scope.spawn(|| sql_failure(cluster.client().query(LONG, &[])));
        wait_for_work(&cluster);
        kill(frozen, libc::SIGSTOP);
        long.join().unwrap()
    });
    assert_eq!(failure.state, "PS002", "{failure:?}");
    assert!(failure.detail.contains("it hung"), "{failure:?}");
    embeds(&mut cluster.client(), "y");
    assert!(!is_alive(frozen));
    assert_ne!(server(&cluster), frozen);
    assert!(cluster.log().contains("pg_sight server failed: it hung"));
}

#[test]
fn a_server_that_is_busy_or_idle_is_left_alone() {
    let cluster = Cluster::with_models_and(&[
        "pg_sight.watchdog_interval = '100ms'",
        "pg_sight.watchdog_timeout = '4s'",
    ]);
    embeds(&mut cluster.client(), "x");
    let (_, image) = &captioner_goldens()[0];
    let mut client = cluster.client();
    client
        .query_one("SELECT blip_describe($1)", &[image])
        .unwrap();
    let watched = server(&cluster);
    thread::sleep(Duration::from_secs(2));
    // Both models at work for longer than the watchdog waits.
    thread::scope(|scope| {
        for query in [
            LONG,
            "SELECT blip_describe_batch(array_agg($1::bytea)) FROM generate_series(1, 20000)",
        ] {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.client();
                client
                    .batch_execute("SET statement_timeout = '8s'")
                    .unwrap();
                let result = if query == LONG {
                    client.query(query, &[])
                } else {
                    client.query(query, &[image])
                };
                assert_eq!(sql_failure(result).state, "57014");
            });
        }
    });
    assert_eq!(server(&cluster), watched);
    let restarts = "SELECT restarts FROM sight_server_status";
    let restarts: i32 = client.query_one(restarts, &[]).unwrap().get(0);
    assert_eq!(restarts, 0);
}

#[test]
fn a_server_that_is_watched_still_ends_when_it_is_idle() {
    let cluster = Cluster::with_models_and(&[
        "pg_sight.watchdog_interval = '100ms'",
        "pg_sight.idle_timeout = '1s'",
    ]);
    let mut client = cluster.client();
    embeds(&mut client, "x");
    wait_until("it is stopped", Duration::from_secs(20), || {
        cluster.model_server(&mut client).is_none()
    });
    let failed = "SELECT last_error FROM sight_server_status";
    let failed: Option<String> = client.query_one(failed, &[]).unwrap().get(0);
    assert_eq!(failed, None);
}

#[test]
fn a_killed_server_is_named_as_the_reason() {
    let cluster = Cluster::with_models();
    embeds(&mut cluster.client(), "x");
    let victim = server(&cluster);
    let failure = thread::scope(|scope| {
        let long = scope.spawn(|| sql_failure(cluster.client().query(LONG, &[])));
        wait_for_work(&cluster);
        kill(victim, libc::SIGKILL);
        long.join().unwrap()
    });
    assert_eq!(failure.state, "PS002");
    assert!(failure.detail.contains("signal 9"), "{failure:?}");
}

#[test]
fn statistics_tell_what_was_done() {
    let cluster = Cluster::with_models_and(&["pg_sight.idle_timeout = '2s'"]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE ROLE nobody LOGIN; CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
        .unwrap();
    embeds(&mut client, "red");
    embeds(&mut client, "red");
    client
        .query_one("SELECT embed_batch(ARRAY['a', 'b', 'red'])", &[])
        .unwrap();
    let (_, image) = &captioner_goldens()[0];
    client
        .query_one("SELECT blip_describe($1)", &[image])
        .unwrap();
    let invalid = client.query_one("SELECT blip_describe('no picture'::bytea)", &[]);
    assert_eq!(sql_failure(invalid).state, "PS020");

    const STATS: &str = "SELECT model, task, requests, failed, cancelled, rejected, items, cache_hits, batches,
            batch_items, largest_batch, loads, compute_time > 0 AND preprocess_time > 0 AND load_time > 0,
            stats_reset BETWEEN now() - interval '1 hour' AND now()
        FROM sight_stats ORDER BY task DESC";
    let check = |client: &mut Client| {
        let rows = client.query(STATS, &[]).unwrap();
        let counts = |row: &postgres::Row| -> Vec<i64> { (2..12).map(|at| row.get(at)).collect() };
        assert_eq!(rows.len(), 2);
        let named = |row: &postgres::Row| -> (String, String) { (row.get(0), row.get(1)) };
        assert_eq!(named(&rows[0]), (ENCODER.into(), "embed".into()));
        assert_eq!(counts(&rows[0]), [3, 0, 0, 0, 5, 2, 2, 3, 2, 1]);
        assert_eq!(named(&rows[1]), (CAPTIONER.into(), "describe".into()));
        assert_eq!(counts(&rows[1]), [2, 1, 0, 0, 1, 0, 1, 1, 1, 1]);
        for row in &rows {
            assert!(row.get::<_, bool>(12) && row.get::<_, bool>(13));
        }
    };
    let mut watcher = cluster.client_of("watcher", "postgres");
    check(&mut watcher);
    // They outlive a server that ends because nobody needs it.
    let ended = server(&cluster);
    wait_until("it is idle", Duration::from_secs(20), || !is_alive(ended));
    check(&mut watcher);
    wait_until("nothing has started it", Duration::from_secs(20), || {
        cluster.model_server(&mut client).is_none()
    });

    let mut nobody = cluster.client_of("nobody", "postgres");
    for statement in ["SELECT * FROM sight_stats", "SELECT sight_stats_reset()"] {
        assert_eq!(sql_failure(nobody.query(statement, &[])).state, "42501");
    }
    let reset = watcher.query("SELECT sight_stats_reset()", &[]);
    assert_eq!(sql_failure(reset).state, "42501");
    for _ in 0..2 {
        client.query_one("SELECT sight_stats_reset()", &[]).unwrap();
        assert!(client.query(STATS, &[]).unwrap().is_empty());
        // The second time while it runs.
        embeds(&mut client, "red");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn metrics(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn metrics_are_for_the_host_alone() {
    let cluster = Cluster::with_models();
    embeds(&mut cluster.client(), "x");
    for address in ["0.0.0.0:9187", "192.0.2.1:9187", "localhost:9187", "9187"] {
        let failure = set(&cluster, "pg_sight.metrics_address", address).unwrap_err();
        assert_eq!(failure.state, "22023", "{address}");
        assert!(failure.detail.contains("loopback"), "{failure:?}");
    }
    let port = free_port();
    set(
        &cluster,
        "pg_sight.metrics_address",
        &format!("127.0.0.1:{port}"),
    )
    .unwrap();
    wait_until("metrics are there", Duration::from_secs(20), || {
        metrics(port).is_some()
    });
    embeds(&mut cluster.client(), "y");
    let text = metrics(port).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let line = format!("pg_sight_requests_total{{model=\"{ENCODER}\",task=\"embed\"}} 2");
    assert!(text.lines().any(|found| found == line), "{text}");
}

#[test]
fn models_are_loaded_at_the_start_and_warm() {
    let cluster = Cluster::with_models();
    let encoder = cluster.folder().join(ENCODER);
    let named = format!("{}, /no/such/model", encoder.display());
    set(&cluster, "pg_sight.preload_models", &named).unwrap();
    let mut client = cluster.client();
    client
        .batch_execute("SELECT sight_model_load('demo-captioner')")
        .unwrap();
    let loaded = "SELECT loaded, memory_bytes, last_used <= clock_timestamp() FROM sight_models WHERE name = $1";
    wait_until("it is loaded", Duration::from_secs(20), || {
        client.query_one(loaded, &[&ENCODER]).unwrap().get(0)
    });
    let row = client.query_one(loaded, &[&ENCODER]).unwrap();
    // 22.7 million parameters of 4 bytes.
    assert!((90_000_000..92_000_000).contains(&row.get::<_, i64>(1)));
    assert!(row.get::<_, bool>(2));
    let status = "SELECT loaded_models, model_memory_bytes > 90000000 FROM sight_server_status";
    wait_until("both are loaded", Duration::from_secs(20), || {
        client.query_one(status, &[]).unwrap().get::<_, i32>(0) == 2
    });
    assert!(client.query_one(status, &[]).unwrap().get::<_, bool>(1));
    wait_until(
        "the missing one is reported",
        Duration::from_secs(20),
        || {
            cluster.log().lines().any(|line| {
                line.contains("WARNING:  pg_sight server: could not load model \"/no/such/model\"")
            })
        },
    );
}

#[test]
fn models_share_a_limited_memory() {
    let cluster = Cluster::with_models_and(&["pg_sight.max_model_memory = '91MB'"]);
    let mut client = cluster.client();
    let (_, image) = &captioner_goldens()[0];
    let loaded = "SELECT name FROM sight_models WHERE loaded ORDER BY name";
    let names = |client: &mut Client| -> Vec<String> {
        let rows = client.query(loaded, &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    embeds(&mut client, "x");
    assert_eq!(names(&mut client), [ENCODER]);
    client
        .query_one("SELECT blip_describe($1)", &[image])
        .unwrap();
    assert_eq!(names(&mut client), [CAPTIONER]);
    embeds(&mut client, "y");
    assert_eq!(names(&mut client), [ENCODER]);
    set(&cluster, "pg_sight.max_model_memory", "80MB").unwrap();
    wait_until("the server has restarted", Duration::from_secs(20), || {
        names(&mut client).is_empty()
    });
    let failure = sql_failure(client.query("SELECT embed('z')", &[]));
    assert_eq!(failure.state, "PS005", "{failure:?}");
    assert!(failure.hint.contains("pg_sight.max_model_memory"));
}

#[test]
fn one_request_too_many_is_refused() {
    // One text at a time, so that requests wait.
    let cluster = Cluster::with_models_and(&[
        "pg_sight.max_queued_requests = 1",
        "pg_sight.max_batch_tokens = 1",
    ]);
    embeds(&mut cluster.client(), "x");
    let failures: Vec<Option<SqlFailure>> = thread::scope(|scope| {
        let sessions: Vec<_> = (0..12)
            .map(|number| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let query = format!(
                        "SELECT embed_batch(ARRAY(SELECT repeat('word ', i + {number}) FROM generate_series(1, 60) AS i))"
                    );
                    let result = cluster.client().query(&query, &[]);
                    result.is_err().then(|| sql_failure(result))
                })
            })
            .collect();
        let sessions = sessions.into_iter();
        sessions.map(|session| session.join().unwrap()).collect()
    });
    let refused: Vec<&SqlFailure> = failures.iter().flatten().collect();
    assert!(!refused.is_empty() && refused.len() < failures.len());
    for failure in &refused {
        assert_eq!(failure.state, "PS003", "{failure:?}");
        assert!(!failure.hint.is_empty());
    }
    let rejected = "SELECT rejected FROM sight_stats WHERE task = 'embed'";
    let rejected: i64 = cluster.client().query_one(rejected, &[]).unwrap().get(0);
    assert_eq!(rejected, refused.len() as i64);
}

#[test]
fn settings_are_for_whom_they_should_be() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE; CREATE ROLE nobody LOGIN; SELECT sight_pull_progress()")
        .unwrap();
    let settings = "SELECT context, string_agg(substr(name, 10), ' ' ORDER BY name)
                    FROM pg_settings WHERE name LIKE 'pg\\_sight.%' GROUP BY context ORDER BY context";
    let rows = client.query(settings, &[]).unwrap();
    let found: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [
        (
            "sighup",
            "device dtype embed_cache_size idle_timeout load_in_4bit max_batch_images max_batch_tokens \
             max_model_memory max_queued_requests max_queued_size metrics_address preload_models \
             threads warm_up watchdog_interval watchdog_timeout",
        ),
        (
            "superuser",
            "allow_downloads hf_endpoint hf_home max_image_pixels max_image_size max_text_size",
        ),
        (
            "user",
            "describe_model embed_model prompt_name request_timeout start_timeout",
        ),
    ];
    let expected = expected.map(|(context, names)| (context.to_owned(), names.to_owned()));
    assert_eq!(found, expected);
    // Nor may others see what names directories and hubs.
    let mut nobody = cluster.client_of("nobody", "postgres");
    let unknown = nobody.query("SELECT embed('x')", &[]);
    assert_eq!(sql_failure(unknown).state, "PS010");
    for name in ["hf_home", "hf_endpoint", "preload_models"] {
        let shown = nobody.query(&format!("SHOW pg_sight.{name}"), &[]);
        assert_eq!(sql_failure(shown).state, "42501", "{name}");
    }
}

#[test]
fn the_log_has_the_servers_lines_and_not_what_clients_send() {
    let cluster = Cluster::with_models_and(&["log_min_messages = 'debug1'"]);
    let mut client = cluster.client();
    let secret = "xyzzy-plugh-4711";
    embeds(&mut client, secret);
    let (_, image) = &captioner_goldens()[0];
    let damaged = [&image[..image.len() / 2], secret.as_bytes()].concat();
    let failure = sql_failure(client.query("SELECT blip_describe($1)", &[&damaged]));
    assert_eq!(failure.state, "PS020");
    assert!(!format!("{failure:?}").contains(secret));
    client
        .batch_execute("SET pg_sight.max_text_size = '1kB'")
        .unwrap();
    let long = secret.repeat(1000);
    let failure = sql_failure(client.query("SELECT embed($1)", &[&long]));
    assert_eq!(failure.state, "PS022");
    let unknown = client.query("SELECT embed($1, prompt_name => 'no such')", &[&secret]);
    assert_eq!(sql_failure(unknown).state, "22023");
    let log = cluster.log();
    assert!(log.contains("LOG:  pg_sight server: ready"), "{log}");
    assert!(
        log.contains("LOG:  pg_sight server: loading model"),
        "{log}"
    );
    assert!(!log.contains(secret), "{log}");
}

#[test]
fn hostile_names_are_names() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let names = [
        "'; DROP TABLE victim; --",
        "\"; DROP TABLE victim; --",
        "$$; DROP TABLE victim; $$",
        "a\\'b%s%n",
        "é \u{1f600}",
    ];
    client.batch_execute("CREATE TABLE victim (i int)").unwrap();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let literal = |name: &str| format!("'{}'", name.replace('\'', "''"));
    for name in names {
        let schema = quoted(&format!("schema {name}"));
        let table = format!("{schema}.{}", quoted(name));
        let columns = ["image", "description", "vector"].map(|kind| format!("{kind} {name}"));
        let [image, description, vector] = columns.each_ref().map(|column| quoted(column));
        let arguments = columns.each_ref().map(|column| literal(column)).join(", ");
        client
            .batch_execute(&format!(
                "CREATE SCHEMA {schema};
                 CREATE TABLE {table} ({image} bytea, {description} text, {vector} vector(384));
                 CREATE TRIGGER {} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW
                     EXECUTE FUNCTION sight_describe_trigger({arguments});
                 INSERT INTO {table} ({description}) VALUES ('red shoes')",
                quoted(name)
            ))
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let filled = format!("SELECT count({vector}) FROM {table}");
        let filled: i64 = client.query_one(&filled, &[]).unwrap().get(0);
        assert_eq!(filled, 1, "{name}");
        // Columns that are not there, and models.
        let wrong = format!(
            "CREATE TRIGGER wrong BEFORE INSERT ON {table} FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger({0}, {0}, {0});
             INSERT INTO {table} ({description}) VALUES ('red shoes')",
            literal(&format!("no {name}"))
        );
        let failure = sql_failure(client.batch_execute(&wrong));
        assert!(failure.message.contains(name), "{failure:?}");
        client
            .batch_execute(&format!("DROP TRIGGER IF EXISTS wrong ON {table}"))
            .unwrap();
        let failure = sql_failure(client.query("SELECT embed('x', $1)", &[&name]));
        assert_eq!(failure.state, "PS010");
        assert!(failure.message.contains(name), "{failure:?}");
        let directory = cluster.folder().join(ENCODER);
        let directory = directory.to_str().unwrap();
        client
            .execute("SELECT sight_model_register($1, $2)", &[&name, &directory])
            .unwrap();
        client.query_one("SELECT embed('x', $1)", &[&name]).unwrap();
        let counted = "SELECT requests FROM sight_stats WHERE model = $1";
        assert_eq!(
            client
                .query_one(counted, &[&name])
                .unwrap()
                .get::<_, i64>(0),
            1
        );
        client
            .execute("SELECT sight_model_remove($1)", &[&name])
            .unwrap();
    }
    assert_eq!(client.query("SELECT * FROM victim", &[]).unwrap().len(), 0);
}
