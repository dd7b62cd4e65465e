//! The model server's life: it starts by itself, survives nothing but harms
//! nobody, and never outlives the cluster.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pg_sight_tests::{Cluster, captioner_goldens, is_alive, kill, sql_failure, wait_until};
use postgres::{Client, NoTls};

/// Long enough to be in the middle of it, whatever the machine.
const LONG: &str = "SELECT count(embed_batch(ARRAY(
    SELECT 'text number ' || i || repeat(' and more words', 60) FROM generate_series(1, 20000) AS i)))";

fn server(cluster: &Cluster, client: &mut Client) -> i32 {
    cluster.model_server(client).expect("the server runs")
}

fn embeds(client: &mut Client) -> bool {
    client
        .query_one("SELECT vector_dims(embed('x'))", &[])
        .unwrap()
        .get::<_, i32>(0)
        == 384
}

/// Waits until a request is in work.
fn wait_for_work(cluster: &Cluster) {
    let mut client = cluster.client();
    let active = "SELECT count(*) FROM pg_stat_activity
                  WHERE state = 'active' AND query LIKE '%text number%' AND pid <> pg_backend_pid()";
    wait_until("the query runs", Duration::from_secs(20), || {
        client.query_one(active, &[]).unwrap().get::<_, i64>(0) > 0
    });
    thread::sleep(Duration::from_millis(500));
}

fn state(client: &mut Client) -> String {
    client
        .query_one("SELECT state FROM sight_server_status", &[])
        .unwrap()
        .get(0)
}

#[test]
fn it_starts_on_first_use_and_serves_all_databases() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    assert_eq!(state(&mut client), "stopped");
    assert_eq!(
        cluster.model_server(&mut client),
        None,
        "looking does not start it"
    );
    drop(client);

    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    let first = server(&cluster, &mut client);
    client
        .batch_execute("CREATE DATABASE other TEMPLATE template0")
        .unwrap();
    let mut other = cluster.client_of("postgres", "other");
    other
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    let model = cluster.folder().join("all-MiniLM-L6-v2");
    other
        .execute(
            "SELECT sight_model_register('all-mpnet-base-v2', $1)",
            &[&model.to_str().unwrap()],
        )
        .unwrap();
    assert!(embeds(&mut other));
    assert_eq!(server(&cluster, &mut other), first);
    let row = client
        .query_one(
            "SELECT state, device, memory_bytes, uptime > interval '0', restarts, last_error,
                    device_memory_used_bytes, device_memory_bytes
             FROM sight_server_status",
            &[],
        )
        .unwrap();
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1)),
        ("running", "cpu")
    );
    assert!(row.get::<_, i64>(2) > 10_000_000 && row.get::<_, bool>(3));
    assert_eq!(
        (row.get::<_, i32>(4), row.get::<_, Option<&str>>(5)),
        (0, None)
    );
    assert_eq!(
        (row.get::<_, Option<i64>>(6), row.get::<_, Option<i64>>(7)),
        (None, None)
    );
}

#[test]
fn many_sessions_start_one_server() {
    let cluster = Cluster::with_models();
    kill(server(&cluster, &mut cluster.client()), libc::SIGTERM);
    let servers: Vec<i32> = thread::scope(|scope| {
        // More than there are worker slots.
        let sessions: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = cluster.client();
                    assert!(embeds(&mut client));
                    server(&cluster, &mut client)
                })
            })
            .collect();
        sessions
            .into_iter()
            .map(|session| session.join().unwrap())
            .collect()
    });
    assert!(servers.iter().all(|pid| *pid == servers[0]), "{servers:?}");
}

#[test]
fn a_killed_server_fails_only_the_query_in_work() {
    let cluster = Cluster::with_models();
    let mut bystander = cluster.client();
    bystander
        .batch_execute("CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1)")
        .unwrap();
    let victim = server(&cluster, &mut bystander);
    let failure = thread::scope(|scope| {
        let long = scope.spawn(|| sql_failure(cluster.client().query(LONG, &[])));
        wait_for_work(&cluster);
        kill(victim, libc::SIGKILL);
        long.join().unwrap()
    });
    assert_eq!(failure.state, "PS002", "{failure:?}");
    assert!(!failure.detail.is_empty() && !failure.hint.is_empty());
    assert!(embeds(&mut cluster.client()), "the next one works");
    bystander.batch_execute("COMMIT").unwrap();
    let row = bystander
        .query_one(
            "SELECT pid, restarts, last_error FROM sight_server_status",
            &[],
        )
        .unwrap();
    assert_ne!(row.get::<_, i32>(0), victim);
    assert_eq!(row.get::<_, i32>(1), 1);
    assert_eq!(row.get::<_, &str>(2), "it was terminated by signal 9");
    assert!(
        !cluster
            .log()
            .contains("terminating connection because of crash")
    );
}

#[test]
fn an_idle_connection_survives_a_restart_of_the_server() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    let first = server(&cluster, &mut client);
    kill(first, libc::SIGKILL);
    wait_until("it is gone", Duration::from_secs(5), || !is_alive(first));
    assert!(embeds(&mut client));
    assert_ne!(server(&cluster, &mut client), first);
}

#[test]
fn cancel_and_timeouts_act_at_once() {
    let cluster = Cluster::with_models();
    assert!(embeds(&mut cluster.client()));
    // statement_timeout
    let mut client = cluster.client();
    client
        .batch_execute("SET statement_timeout = '700ms'")
        .unwrap();
    let started = Instant::now();
    assert_eq!(sql_failure(client.query(LONG, &[])).state, "57014");
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    // cancel
    let mut client = cluster.client();
    let token = client.cancel_token();
    let (failure, waited) = thread::scope(|scope| {
        let long = scope.spawn(|| sql_failure(client.query(LONG, &[])));
        wait_for_work(&cluster);
        let cancelled = Instant::now();
        token.cancel_query(NoTls).unwrap();
        (long.join().unwrap(), cancelled.elapsed())
    });
    assert_eq!(failure.state, "57014");
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    // Before 18, PostgreSQL signals a cancel to the backend and then to its process group: the
    // second signal may come late, and a session that waits for a statement ignores it.
    thread::sleep(Duration::from_millis(200));
    assert!(embeds(&mut client), "the session goes on");
    // the extension's own
    client
        .batch_execute("SET pg_sight.request_timeout = '700ms'")
        .unwrap();
    let failure = sql_failure(client.query(LONG, &[]));
    assert_eq!(
        (failure.state.as_str(), failure.hint.is_empty()),
        ("PS004", false)
    );
    // termination
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    client
        .batch_execute("RESET pg_sight.request_timeout")
        .unwrap();
    thread::scope(|scope| {
        let long = scope.spawn(|| client.query(LONG, &[]).is_err());
        wait_for_work(&cluster);
        cluster
            .client()
            .execute("SELECT pg_terminate_backend($1)", &[&pid])
            .unwrap();
        assert!(long.join().unwrap());
    });
    wait_until("the backend is gone", Duration::from_secs(2), || {
        !is_alive(pid)
    });
}

#[test]
fn cancelled_work_does_not_keep_others_waiting() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute("SET statement_timeout = '1s'")
        .unwrap();
    assert_eq!(sql_failure(client.query(LONG, &[])).state, "57014");
    let started = Instant::now();
    client.batch_execute("RESET statement_timeout").unwrap();
    assert!(embeds(&mut client));
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn it_stops_with_the_cluster() {
    for mode in ["fast", "immediate"] {
        let cluster = Cluster::with_models();
        let mut client = cluster.client();
        assert!(embeds(&mut client));
        let pid = server(&cluster, &mut client);
        assert!(is_alive(pid));
        drop(client);
        cluster.stop_server(mode);
        wait_until("the server is gone", Duration::from_secs(5), || {
            !is_alive(pid)
        });
        cluster.start_server();
        let mut client = cluster.client();
        assert_eq!(state(&mut client), "stopped", "after a {mode} stop");
        assert!(embeds(&mut client), "after a {mode} stop");
    }
}

#[test]
fn it_dies_with_a_killed_postmaster_even_in_work() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let pid = server(&cluster, &mut client);
    thread::scope(|scope| {
        let long = scope.spawn(|| cluster.client().query(LONG, &[]).is_err());
        wait_for_work(&cluster);
        cluster.crash();
        assert!(long.join().unwrap());
    });
    wait_until("the server is gone", Duration::from_secs(5), || {
        !is_alive(pid)
    });
    cluster.recover();
    assert!(embeds(&mut cluster.client()));
}

#[test]
fn it_is_replaced_when_a_backend_crashes() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    let first = server(&cluster, &mut client);
    let backend: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    // PostgreSQL then ends all its processes and starts them anew.
    kill(backend, libc::SIGKILL);
    wait_until("the server is gone", Duration::from_secs(10), || {
        !is_alive(first)
    });
    wait_until("PostgreSQL is back", Duration::from_secs(60), || {
        cluster.accepts_connections()
    });
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    assert_ne!(server(&cluster, &mut client), first);
}

#[test]
fn a_request_that_waited_goes_on_with_the_next_server() {
    let cluster = Cluster::with_models();
    let first = server(&cluster, &mut cluster.client());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = cluster.client();
            // Less than it will have waited for the first server.
            client
                .batch_execute("SET pg_sight.start_timeout = '4s'")
                .unwrap();
            let query = LONG.replace("20000", "100");
            client
                .query_one(&query, &[])
                .map(|row| row.get::<_, i64>(0))
        });
        wait_for_work(&cluster);
        // Keeps the first server from finishing until the time is over.
        kill(first, libc::SIGSTOP);
        thread::sleep(Duration::from_secs(5));
        kill(first, libc::SIGTERM);
        kill(first, libc::SIGCONT);
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    });
    assert_ne!(server(&cluster, &mut cluster.client()), first);
}

#[test]
fn it_exits_when_idle_and_comes_back() {
    let cluster = Cluster::with_models_and(&["pg_sight.idle_timeout = '700ms'"]);
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    wait_until("it is idle", Duration::from_secs(10), || {
        // Asking the view would keep it busy: look at the process.
        thread::sleep(Duration::from_millis(1500));
        state(&mut client) == "stopped"
    });
    assert!(embeds(&mut client));
    let restarts: i32 = client
        .query_one("SELECT restarts FROM sight_server_status", &[])
        .unwrap()
        .get(0);
    assert_eq!(restarts, 0, "an idle exit is no failure");
}

#[test]
fn a_reload_restarts_it_with_new_settings() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    assert!(embeds(&mut client));
    let first = server(&cluster, &mut client);
    client
        .batch_execute("ALTER SYSTEM SET pg_sight.threads = 1")
        .unwrap();
    cluster.reload();
    wait_until("it is replaced", Duration::from_secs(10), || {
        !is_alive(first)
    });
    assert!(embeds(&mut client));
    let threads: i32 = client
        .query_one("SELECT threads FROM sight_server_status", &[])
        .unwrap()
        .get(0);
    assert_eq!(threads, 1);
}

#[test]
fn a_server_that_cannot_start_is_reported() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let first = server(&cluster, &mut client);
    client
        .batch_execute("ALTER SYSTEM SET pg_sight.device = 'abacus'")
        .unwrap();
    cluster.reload();
    wait_until("it is stopped", Duration::from_secs(10), || {
        !is_alive(first)
    });
    client
        .batch_execute("SET pg_sight.start_timeout = '3s'")
        .unwrap();
    let started = Instant::now();
    let failure = sql_failure(client.query("SELECT embed('x')", &[]));
    assert_eq!(failure.state, "PS001", "{failure:?}");
    assert!(failure.detail.contains("abacus"), "{failure:?}");
    assert!(started.elapsed() < Duration::from_secs(6));
    client
        .batch_execute("ALTER SYSTEM RESET pg_sight.device")
        .unwrap();
    cluster.reload();
    client
        .batch_execute("SET pg_sight.start_timeout = '60s'")
        .unwrap();
    assert!(embeds(&mut client));
}

#[test]
fn no_free_worker_slot_is_an_error_of_its_own() {
    let cluster = Cluster::start(&["max_worker_processes = 0"]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    let failure = sql_failure(client.query("SELECT sight_model_register('x', '/tmp')", &[]));
    assert_eq!(failure.state, "53400");
    assert!(failure.hint.contains("max_worker_processes"), "{failure:?}");
}

#[test]
fn preloading_warms_it_up() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'pg_sight'"]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    wait_until("it runs", Duration::from_secs(10), || {
        state(&mut client) == "running"
    });
}

#[test]
fn its_socket_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::with_models();
    assert!(embeds(&mut cluster.client()));
    let folder = cluster.data().join("base/pgsql_tmp_pg_sight");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("server.sock")), 0o600);
}

#[test]
fn pictures_are_cancelled_between_steps() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let (_, image) = &captioner_goldens()[0];
    assert!(
        client
            .query_one("SELECT blip_describe($1)", &[image])
            .is_ok()
    );
    client
        .batch_execute("SET statement_timeout = '500ms'")
        .unwrap();
    let started = Instant::now();
    let result = client.query(
        "SELECT blip_describe_batch(array_agg($1::bytea)) FROM generate_series(1, 20000)",
        &[image],
    );
    assert_eq!(sql_failure(result).state, "57014");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    client.batch_execute("RESET statement_timeout").unwrap();
    let started = Instant::now();
    assert!(
        client
            .query_one("SELECT blip_describe($1)", &[image])
            .is_ok()
    );
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}
