//! Models from a hub: `sight_model_pull` against a hub on this machine.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fake_hub::{FakeHub, Fault};
use pg_sight_tests::{Cluster, sql_failure, wait_until};
use postgres::Client;
use postgres::error::DbError;

const REPOSITORY: &str = "some-one/tiny-bert";
const PULL: &str = "SELECT * FROM sight_model_pull('some-one/tiny-bert')";
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second at which the model takes about a minute.
const SLOW: Fault = Fault::Slow(5_000);

fn fixture(name: &str) -> std::path::PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/models/tests/fixtures");
    fixtures.join(name)
}

/// A cluster without models, and a hub that it may pull from.
struct Place {
    hub: FakeHub,
    cluster: Cluster,
    commit: String,
}

impl Place {
    fn new() -> Self {
        let hub = FakeHub::start();
        let commit = hub.publish(REPOSITORY, &fixture("tiny-bert"));
        let endpoint = format!("pg_sight.hf_endpoint = '{}'", hub.endpoint());
        let cluster = Cluster::start(&["pg_sight.allow_downloads = on", &endpoint]);
        let mut client = cluster.client();
        let home = cluster.folder().join("home");
        let set = format!(
            "CREATE EXTENSION pg_sight CASCADE;
             ALTER SYSTEM SET pg_sight.hf_home = '{}'; SELECT pg_reload_conf()",
            home.display()
        );
        for statement in set.split(';') {
            client.batch_execute(statement).unwrap();
        }
        wait_until("the setting is there", PATIENCE, || {
            let shown: String = client
                .query_one("SHOW pg_sight.hf_home", &[])
                .unwrap()
                .get(0);
            shown == home.to_str().unwrap()
        });
        Self {
            hub,
            cluster,
            commit,
        }
    }
}

fn registered(client: &mut Client) -> i64 {
    let row = client.query_one("SELECT count(*) FROM sight_models", &[]);
    row.unwrap().get(0)
}

/// The server process of a session.
fn pid(client: &mut Client) -> i32 {
    let row = client.query_one("SELECT pg_backend_pid()", &[]).unwrap();
    row.get(0)
}

/// Waits until the only pull has got some bytes; returns them.
fn wait_for_bytes(client: &mut Client, more_than: i64) -> i64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = client
            .query("SELECT bytes_done FROM sight_stat_progress_pull", &[])
            .unwrap();
        assert!(rows.len() <= 1);
        match rows.first().map(|row| row.get::<_, i64>(0)) {
            Some(bytes) if bytes > more_than => return bytes,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_pulled_model_is_registered_with_its_commit_and_works() {
    let place = Place::new();
    let mut client = place.cluster.client();
    let row = client.query_one(PULL, &[]).unwrap();
    assert_eq!(row.get::<_, &str>("model"), "tiny-bert");
    assert_eq!(row.get::<_, &str>("commit"), place.commit);
    assert_eq!(
        (
            row.get::<_, &str>("task"),
            row.get::<_, &str>("architecture")
        ),
        ("embed", "bert")
    );
    let dimensions: i32 = row.get("dimensions");
    let query = "SELECT vector_dims(embed('a text', 'tiny-bert')), directory, repository, commit
                 FROM sight_models WHERE name = 'tiny-bert'";
    let row = client.query_one(query, &[]).unwrap();
    assert_eq!(row.get::<_, i32>(0), dimensions);
    let home = place.cluster.folder().join("home");
    assert!(row.get::<_, &str>(1).starts_with(home.to_str().unwrap()));
    assert_eq!(
        (row.get::<_, &str>(2), row.get::<_, &str>(3)),
        (REPOSITORY, place.commit.as_str())
    );
    // It is the model that its directory is: the same as from the fixture.
    let copy = place
        .cluster
        .copy_model(&fixture("tiny-bert"), "tiny-bert-copy");
    client
        .execute(
            "SELECT sight_model_register('copy', $1)",
            &[&copy.to_str().unwrap()],
        )
        .unwrap();
    let same = "SELECT embed('a text', 'tiny-bert') = embed('a text', 'copy')";
    assert!(client.query_one(same, &[]).unwrap().get::<_, bool>(0));
    // Registered from a directory, it comes from no repository.
    client
        .execute(
            "SELECT sight_model_register('tiny-bert', $1)",
            &[&copy.to_str().unwrap()],
        )
        .unwrap();
    let row = client.query_one(query, &[]).unwrap();
    assert_eq!(row.get::<_, Option<&str>>(2), None);
    assert_eq!(row.get::<_, Option<&str>>(3), None);
}

#[test]
fn a_pull_may_name_a_commit_and_a_name() {
    let place = Place::new();
    let later = place.hub.publish(REPOSITORY, &fixture("encoders/mpnet-a"));
    let mut client = place.cluster.client();
    let pulled = |client: &mut Client, call: &str| -> (String, String, String) {
        let query = format!("SELECT model, commit, architecture FROM sight_model_pull({call})");
        let row = client.query_one(&query, &[]).unwrap();
        (row.get(0), row.get(1), row.get(2))
    };
    let first = format!("'{REPOSITORY}', '{}', name => 'first'", place.commit);
    assert_eq!(
        pulled(&mut client, &first),
        ("first".into(), place.commit.clone(), "bert".into())
    );
    let newest = format!("'{REPOSITORY}', name => 'second'");
    assert_eq!(
        pulled(&mut client, &newest),
        ("second".into(), later.clone(), "mpnet".into())
    );
    // Pulling again replaces what the name stands for.
    let again = format!("'{REPOSITORY}', name => 'first'");
    assert_eq!(pulled(&mut client, &again).1, later);
    assert_eq!(registered(&mut client), 2);
}

#[test]
fn offline_a_pull_takes_what_the_cache_has() {
    let place = Place::new();
    let mut client = place.cluster.client();
    client.execute(PULL, &[]).unwrap();
    client
        .execute("SELECT sight_model_remove('tiny-bert')", &[])
        .unwrap();
    let asked = place.hub.requests().len();
    drop(client);
    place.cluster.stop_server("fast");
    place.cluster.start_server_with(&[("HF_HUB_OFFLINE", "1")]);
    let mut client = place.cluster.client();
    let row = client.query_one(PULL, &[]).unwrap();
    assert_eq!(row.get::<_, &str>("commit"), place.commit);
    let embedded = client.query_one("SELECT embed('a text', 'tiny-bert')::text", &[]);
    assert!(embedded.is_ok());
    let failure = sql_failure(client.query("SELECT sight_model_pull('some-one/other')", &[]));
    assert_eq!(failure.state, "PS014");
    assert!(failure.detail.contains("HF_HUB_OFFLINE"));
    assert!(failure.hint.contains("sight_model_register"));
    assert_eq!(place.hub.requests().len(), asked);
}

#[test]
fn downloads_are_off_until_a_superuser_turns_them_on() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION pg_sight CASCADE;
             CREATE ROLE nobody LOGIN; CREATE ROLE manager LOGIN IN ROLE sight_admin",
        )
        .unwrap();
    let mut manager = cluster.client_of("manager", "postgres");
    let failure = sql_failure(manager.query(PULL, &[]));
    assert_eq!(failure.state, "PS014");
    assert!(failure.message.contains("downloads are off"));
    assert!(failure.detail.contains("pg_sight.allow_downloads"));
    assert!(
        failure
            .hint
            .contains("ALTER SYSTEM SET pg_sight.allow_downloads = on")
    );
    for setting in [
        "allow_downloads = on",
        "hf_home = '/tmp'",
        "hf_endpoint = 'http://x'",
    ] {
        let set = format!("SET pg_sight.{setting}");
        assert_eq!(
            sql_failure(manager.query(&set, &[])).state,
            "42501",
            "{set}"
        );
    }
    assert!(
        manager
            .query("SELECT * FROM sight_stat_progress_pull", &[])
            .unwrap()
            .is_empty()
    );
    let mut nobody = cluster.client_of("nobody", "postgres");
    for statement in [
        PULL,
        "SELECT sight_model_fetch('a/b', 'main', 'b')",
        "SELECT sight_pull_progress()",
        "SELECT * FROM sight_stat_progress_pull",
    ] {
        assert_eq!(
            sql_failure(nobody.query(statement, &[])).state,
            "42501",
            "{statement}"
        );
    }
    // The hint of a default model that is missing is the command that gets it.
    let failure = sql_failure(nobody.query("SELECT embed('x')", &[]));
    assert_eq!(failure.state, "PS010");
    // A URL may hold a password.
    let shown = nobody.query("SHOW pg_sight.hf_endpoint", &[]);
    assert_eq!(sql_failure(shown).state, "42501");
    assert!(failure.detail.contains("pg_sight.allow_downloads"));
    let command = "SELECT sight_model_pull('sentence-transformers/all-mpnet-base-v2');";
    assert!(failure.hint.starts_with(command), "{}", failure.hint);
    assert!(failure.hint.contains("ALTER SYSTEM"));
    client
        .batch_execute("SET pg_sight.allow_downloads = on")
        .unwrap();
    let failure = sql_failure(client.query("SELECT embed('x')", &[]));
    assert_eq!(failure.hint, command);
    let failure = sql_failure(client.query("SELECT blip_describe('\\x00')", &[]));
    let command = "SELECT sight_model_pull('Salesforce/blip-image-captioning-large');";
    assert_eq!(failure.hint, command);
}

#[test]
fn a_pull_shows_its_progress_and_a_cancel_ends_it() {
    let place = Place::new();
    let mut other = place.cluster.client();
    let copy = place.cluster.copy_model(&fixture("tiny-bert"), "copy");
    other
        .execute(
            "SELECT sight_model_register('copy', $1)",
            &[&copy.to_str().unwrap()],
        )
        .unwrap();
    place.hub.set_fault(SLOW);
    let notices = Arc::new(Mutex::new(Vec::new()));
    let noticed = Arc::clone(&notices);
    let note = move |notice: DbError| noticed.lock().unwrap().push(notice.message().to_owned());
    let mut client = place
        .cluster
        .client_with_notices("postgres", "postgres", note);
    let puller = pid(&mut client);
    let pulling = thread::spawn(move || {
        let result = client.query(PULL, &[]);
        (result, Instant::now())
    });
    let bytes = wait_for_bytes(&mut other, 0);
    wait_for_bytes(&mut other, bytes);
    let row = other
        .query_one("SELECT * FROM sight_stat_progress_pull", &[])
        .unwrap();
    assert_eq!(row.get::<_, i32>("pid"), puller);
    assert_eq!(row.get::<_, &str>("repository"), REPOSITORY);
    assert_eq!(row.get::<_, &str>("revision"), "main");
    assert_eq!(row.get::<_, &str>("phase"), "downloading");
    assert!(row.get::<_, Option<&str>>("current_file").is_some());
    assert!(row.get::<_, i32>("files_done") < row.get::<_, i32>("files_total"));
    assert!(row.get::<_, i64>("bytes_done") < row.get::<_, i64>("bytes_total"));
    wait_until("the client is told", PATIENCE, || {
        let notices = notices.lock().unwrap();
        notices.iter().any(|notice| notice.contains("downloading"))
    });
    // Others are served meanwhile.
    assert!(
        other
            .query_one("SELECT embed('a text', 'copy')::text", &[])
            .is_ok()
    );
    let cancelled = Instant::now();
    other
        .execute("SELECT pg_cancel_backend($1)", &[&puller])
        .unwrap();
    let (result, ended) = pulling.join().unwrap();
    assert_eq!(sql_failure(result).state, "57014");
    assert!(ended - cancelled < SECOND, "{:?}", ended - cancelled);
    wait_until("the download has ended", SECOND, || {
        let rows = other.query("SELECT * FROM sight_stat_progress_pull", &[]);
        rows.unwrap().is_empty()
    });
    assert_eq!(registered(&mut other), 1);

    other
        .batch_execute("SET statement_timeout = '500ms'")
        .unwrap();
    let begun = Instant::now();
    assert_eq!(sql_failure(other.query(PULL, &[])).state, "57014");
    assert!(begun.elapsed() < 2 * SECOND);
    // The next pull goes on from where the last one was.
    place.hub.set_fault(Fault::None);
    other.batch_execute("SET statement_timeout = 0").unwrap();
    other.execute(PULL, &[]).unwrap();
    assert!(
        place
            .hub
            .requests()
            .iter()
            .any(|line| line.contains(" range="))
    );
    assert_eq!(registered(&mut other), 2);
}

#[test]
fn two_sessions_may_pull_the_same_model_at_once() {
    let place = Place::new();
    place.hub.set_fault(Fault::Slow(200_000));
    let pulls: Vec<_> = ["a", "b"]
        .map(|name| {
            let mut client = place.cluster.client();
            let query =
                format!("SELECT commit FROM sight_model_pull('{REPOSITORY}', name => '{name}')");
            thread::spawn(move || {
                client
                    .query_one(&query, &[])
                    .map(|row| row.get::<_, String>(0))
            })
        })
        .into();
    for pull in pulls {
        assert_eq!(pull.join().unwrap().unwrap(), place.commit);
    }
    let mut client = place.cluster.client();
    let same = "SELECT embed('a text', 'a') = embed('a text', 'b')";
    assert!(client.query_one(same, &[]).unwrap().get::<_, bool>(0));
    let requests = place.hub.requests();
    let weights = requests
        .iter()
        .filter(|line| line.starts_with("GET /storage/"));
    // The weights and the tokenizer, once each.
    assert_eq!(weights.count(), 2);
}

#[test]
fn a_failed_pull_says_why_and_registers_nothing() {
    let place = Place::new();
    let mut client = place.cluster.client();
    let fail = |client: &mut Client, query: &str, state: &str| {
        let failure = sql_failure(client.query(query, &[]));
        assert_eq!(failure.state, state, "{failure:?}");
        assert_eq!(registered(client), 0);
        failure
    };
    place.hub.set_fault(Fault::WrongByte);
    let failure = fail(&mut client, PULL, "PS013");
    assert!(
        failure.message.contains("not what the hub announced"),
        "{failure:?}"
    );
    place.hub.set_fault(Fault::CutAt(150_000));
    let failure = fail(&mut client, PULL, "PS013");
    assert!(failure.message.contains("model.safetensors"), "{failure:?}");
    assert!(
        failure.detail.starts_with("150000 of 274520 bytes"),
        "{failure:?}"
    );
    place.hub.set_fault(Fault::Gated);
    let failure = fail(
        &mut client,
        "SELECT sight_model_pull('some-one/tiny-bert', 'main', 'x')",
        "PS013",
    );
    assert!(
        failure.detail.contains("401") && failure.hint.contains("HF_TOKEN"),
        "{failure:?}"
    );
    place.hub.set_fault(Fault::Status(503));
    let failure = fail(&mut client, PULL, "PS013");
    assert!(failure.detail.contains("503") && failure.detail.contains(&place.hub.endpoint()));
    place.hub.set_fault(Fault::None);
    let failure = fail(
        &mut client,
        "SELECT sight_model_pull('some-one/else')",
        "PS013",
    );
    assert!(failure.detail.contains("404"), "{failure:?}");
    for (call, state) in [
        ("'../x'", "22023"),
        ("'a/b', '../x'", "22023"),
        ("'a/b', name => ''", "22023"),
        ("NULL", "22004"),
        ("'a/b', NULL", "22004"),
    ] {
        fail(
            &mut client,
            &format!("SELECT sight_model_pull({call})"),
            state,
        );
    }
    client
        .batch_execute("SET pg_sight.hf_home = 'relative'")
        .unwrap();
    let failure = fail(&mut client, PULL, "22023");
    assert!(
        failure.message.contains("not an absolute path"),
        "{failure:?}"
    );
    client.batch_execute("RESET pg_sight.hf_home").unwrap();
    // After all that, it works.
    client.execute(PULL, &[]).unwrap();
    assert_eq!(registered(&mut client), 1);
}
