//! Who may manage models and who may use them.

use pg_sight_tests::{CAPTIONER, Cluster, ENCODER, sql_failure};
use postgres::Client;

#[test]
fn everyone_may_use_and_only_admins_may_manage() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute("CREATE ROLE nobody LOGIN; CREATE ROLE manager LOGIN IN ROLE sight_admin")
        .unwrap();
    let directory = cluster.folder().join(ENCODER);
    let directory = directory.to_str().unwrap();

    let mut nobody = cluster.client_of("nobody", "postgres");
    assert!(nobody.query_one("SELECT embed('x')", &[]).is_ok());
    for statement in [
        "SELECT sight_model_register('mine', '/tmp')",
        "SELECT sight_model_inspect('mine', '/tmp')",
        "SELECT sight_model_remove('all-MiniLM-L6-v2')",
        "SELECT sight_model_load('all-MiniLM-L6-v2')",
        "SELECT sight_model_unload('all-MiniLM-L6-v2')",
        "SELECT * FROM sight_model",
        "SELECT sight_server_state()",
        "SET pg_sight.max_image_size = '1GB'",
    ] {
        assert_eq!(
            sql_failure(nobody.query(statement, &[])).state,
            "42501",
            "{statement}"
        );
    }
    assert_eq!(
        sql_failure(nobody.query("SET pg_sight.device = 'cpu'", &[])).state,
        "55P02"
    );
    assert_eq!(
        sql_failure(nobody.query("SET pg_sight.misspelt = 1", &[])).state,
        "42602"
    );
    // The views are for everyone, the directories are not.
    let rows = nobody
        .query(
            "SELECT name, directory, loaded FROM sight_models ORDER BY name",
            &[],
        )
        .unwrap();
    let shown: Vec<(String, Option<String>, bool)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(
        shown,
        [
            (ENCODER.into(), None, true),
            (CAPTIONER.into(), None, false)
        ]
    );
    assert!(
        nobody
            .query_one("SELECT * FROM sight_server_status", &[])
            .is_ok()
    );

    let mut manager = cluster.client_of("manager", "postgres");
    let row = manager
        .query_one(
            "SELECT * FROM sight_model_register('mine', $1)",
            &[&directory],
        )
        .unwrap();
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1)),
        ("embed", "bert")
    );
    assert_eq!(row.get::<_, i32>(2), 384);
    assert!(row.get::<_, i64>(3) > 20_000_000);
    let seen: String = manager
        .query_one(
            "SELECT directory FROM sight_models WHERE name = 'mine'",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(seen, directory);
    manager
        .batch_execute("SELECT sight_model_load('mine'); SELECT sight_model_unload('mine')")
        .unwrap();
    assert!(nobody.query_one("SELECT embed('x', 'mine')", &[]).is_ok());
    let removed: bool = manager
        .query_one("SELECT sight_model_remove('mine')", &[])
        .unwrap()
        .get(0);
    let again: bool = manager
        .query_one("SELECT sight_model_remove('mine')", &[])
        .unwrap()
        .get(0);
    assert!(removed && !again);
    assert_eq!(
        sql_failure(nobody.query("SELECT embed('x', 'mine')", &[])).state,
        "PS010"
    );
}

#[test]
fn pgvector_may_live_in_another_schema() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE SCHEMA vectors; CREATE EXTENSION vector SCHEMA vectors;
             CREATE SCHEMA sight; CREATE EXTENSION pg_sight SCHEMA sight",
        )
        .unwrap();
    let directory = cluster.copy_model(&pg_sight_tests::demo_directory().join("captioner"), "c");
    client
        .execute(
            "SELECT sight.sight_model_register('c', $1)",
            &[&directory.to_str().unwrap()],
        )
        .unwrap();
    let (_, image) = &pg_sight_tests::samples()[0];
    let row = client
        .query_one("SELECT sight.blip_describe($1, model => 'c')", &[image])
        .unwrap();
    assert!(!row.get::<_, String>(0).is_empty());
    let failure = sql_failure(client.query("SELECT sight.embed('x', 'c')", &[]));
    assert_eq!(failure.state, "PS012");
    client
        .batch_execute("DROP EXTENSION pg_sight; CREATE EXTENSION pg_sight SCHEMA sight")
        .unwrap();
}

#[test]
fn a_running_function_sees_that_a_model_changes() {
    let cluster = Cluster::with_models();
    let directory = cluster.folder().join(ENCODER);
    let looped = |change: &str| {
        format!(
            "SELECT sight_model_register('mine', '{}');
             DO $$ DECLARE v vector; BEGIN
                 FOR i IN 1..2 LOOP
                     v := embed('the same text', 'mine');
                     PERFORM {change};
                 END LOOP;
             END $$",
            directory.display()
        )
    };
    let mut client = cluster.client();
    let removed = client.batch_execute(&looped("sight_model_remove('mine')"));
    assert_eq!(sql_failure(removed).state, "PS010");
    let captioner = cluster.folder().join(CAPTIONER);
    let change = format!("sight_model_register('mine', '{}')", captioner.display());
    let replaced = client.batch_execute(&looped(&change));
    assert_eq!(sql_failure(replaced).state, "PS012");
}

#[test]
fn a_model_without_a_name_leaves_the_servers_memory() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let copies: Vec<String> = ["first", "second"]
        .iter()
        .map(|name| cluster.copy_model(&cluster.folder().join(ENCODER), name))
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    let register = "SELECT sight_model_register($1, $2)";
    let loaded = |client: &mut Client, directory: &str| -> bool {
        let query = "SELECT EXISTS (
            SELECT FROM jsonb_array_elements(sight_server_state() -> 'loaded_models') AS l
            WHERE l ->> 'directory' = $1)";
        client.query_one(query, &[&directory]).unwrap().get(0)
    };
    client.execute(register, &[&"one", &copies[0]]).unwrap();
    client.execute(register, &[&"two", &copies[0]]).unwrap();
    client.execute("SELECT embed('x', 'one')", &[]).unwrap();
    assert!(loaded(&mut client, &copies[0]));
    // Another name still stands for it.
    client.execute(register, &[&"one", &copies[1]]).unwrap();
    assert!(loaded(&mut client, &copies[0]));
    // Nothing happens that is not committed.
    client
        .batch_execute("BEGIN; SELECT sight_model_remove('two'); ROLLBACK")
        .unwrap();
    assert!(loaded(&mut client, &copies[0]));
    client
        .execute("SELECT sight_model_remove('two')", &[])
        .unwrap();
    assert!(!loaded(&mut client, &copies[0]));
    client.execute("SELECT embed('x', 'one')", &[]).unwrap();
    client.execute(register, &[&"one", &copies[0]]).unwrap();
    assert!(!loaded(&mut client, &copies[1]));
}
