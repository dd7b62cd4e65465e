//! A database goes to another cluster by `pg_dump` and `pg_restore`.

use pg_sight_tests::{CAPTIONER, Cluster, ENCODER, captioner_goldens};
use postgres::Client;

/// Rows whose vectors are not of their descriptions come before the trigger: it
/// would make others of them.
const SHOP: &str = "
    CREATE TABLE product (
        id serial PRIMARY KEY, image bytea, description text, desc_vec vector(384));
    INSERT INTO product (description, desc_vec)
        SELECT 'filler ' || i, l2_normalize((
            SELECT array_agg((hashint4(i * 384 + j) / 2147483648.0)::real)::vector
                FROM generate_series(1, 384) AS j))
        FROM generate_series(1, 400) AS i;
    CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image, description ON product
        FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
    INSERT INTO product (description) VALUES ('red sneakers'), ('a wooden chair');
    CREATE INDEX product_nearest ON product USING faiss_ivf (desc_vec vector_ip_ops)
        WITH (factory = 'IVF,SQ8', lists = 8, target_recall = 0.9);
    GRANT SELECT ON sight_stats TO analyst;
    ALTER DATABASE shop SET faiss_ivf.target_recall = 0.97;";

const MODELS: &str = "SELECT string_agg(m::text, E'\n' ORDER BY name) FROM sight_model AS m";
const ROWS: &str = "SELECT string_agg(p::text, E'\n' ORDER BY id) FROM product AS p";
const INDEX: &str = "SELECT pg_get_indexdef('product_nearest'::regclass)";
const SETTINGS: &str = "
    SELECT setconfig::text FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
        WHERE datname = current_database() AND setrole = 0";
const PRIVILEGES: &str = "SELECT relacl::text FROM pg_class WHERE relname = 'sight_stats'";
const STATE: &str = "SELECT state FROM sight_server_status";

fn text(client: &mut Client, query: &str) -> String {
    client.query_one(query, &[]).unwrap().get(0)
}

/// The nearest rows for some queries, by the index in all its lists or by the table.
fn nearest(client: &mut Client, by_index: bool) -> Vec<Vec<i32>> {
    let mut transaction = client.transaction().unwrap();
    let settings = format!(
        "SET LOCAL enable_indexscan = {by_index}; SET LOCAL enable_seqscan = {};
         SET LOCAL faiss_ivf.nprobe = 8; SET LOCAL faiss_ivf.target_recall = 1",
        !by_index
    );
    transaction.batch_execute(&settings).unwrap();
    let search = "SELECT id FROM product ORDER BY desc_vec <#> embed($1) LIMIT 10";
    let explain = search.replace("$1", "'x'");
    let plan = transaction.query(&format!("EXPLAIN {explain}"), &[]);
    let plan = plan.unwrap();
    let mut lines = plan.iter().map(|row| row.get::<_, &str>(0));
    let index = "Index Scan using product_nearest";
    assert_eq!(lines.any(|line| line.contains(index)), by_index);
    let queries = ["red sneakers", "something to sit on", "filler 7"];
    let answers = queries.map(|query| {
        let rows = transaction.query(search, &[&query]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    });
    answers.into()
}

#[test]
fn a_restored_database_is_as_it_was() {
    let source = Cluster::start(&[]);
    let mut client = source.client();
    for statement in ["CREATE ROLE analyst", "CREATE DATABASE shop"] {
        client.batch_execute(statement).unwrap();
    }
    let mut client = source.client_of("postgres", "shop");
    client
        .batch_execute("CREATE EXTENSION pg_sight CASCADE")
        .unwrap();
    source.register_models(&mut client);
    client.batch_execute(SHOP).unwrap();
    let goldens = captioner_goldens();
    let add = "INSERT INTO product (image) VALUES ($1) RETURNING id, description";
    for (_, picture) in &goldens[..2] {
        client.execute(add, &[picture]).unwrap();
    }

    let target = Cluster::start(&[]);
    target
        .client()
        .batch_execute("CREATE ROLE analyst")
        .unwrap();
    target.restore_from(&source, "shop");
    let mut restored = target.client_of("postgres", "shop");
    // Nothing was described or embedded on the way.
    assert_eq!(text(&mut restored, STATE), "stopped");
    for query in [MODELS, ROWS, INDEX, SETTINGS, PRIVILEGES] {
        let (was, is) = (text(&mut client, query), text(&mut restored, query));
        assert_eq!(is, was, "{query}");
    }
    let models = text(&mut restored, MODELS);
    assert!(models.contains(ENCODER) && models.contains(CAPTIONER));
    assert_eq!(text(&mut restored, "SHOW faiss_ivf.target_recall"), "0.97");
    let lists = "SELECT lists || ' ' || entries FROM sight_index_stats('product_nearest')";
    assert_eq!(text(&mut restored, lists), "8 404");

    let found = nearest(&mut restored, true);
    assert_eq!(found, nearest(&mut client, true));
    assert_eq!(found, nearest(&mut restored, false));
    // The sequence goes on, the trigger describes, the index takes the row in.
    let (golden, picture) = &goldens[2];
    let row = restored.query_one(add, &[picture]).unwrap();
    assert_eq!(row.get::<_, i32>(0), 405);
    let caption: String = row.get(1);
    assert_eq!(Some(caption.as_str()), golden["greedy_text"].as_str());
    let search = "SET enable_seqscan = off; SET enable_sort = off";
    restored.batch_execute(search).unwrap();
    let best = "SELECT id FROM product ORDER BY desc_vec <#> embed($1) LIMIT 1";
    let best: i32 = restored.query_one(best, &[&caption]).unwrap().get(0);
    assert_eq!(best, 405);
}
