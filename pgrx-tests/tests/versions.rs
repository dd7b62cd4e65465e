//! Upgrades from each earlier version of the extension, which the folder `sql` keeps.

use std::fs;
use std::path::Path;

use pg_sight_tests::{Cluster, captioner_goldens};
use postgres::Client;

const CURRENT: &str = env!("CARGO_PKG_VERSION");

/// What makes up the extension, in names instead of OIDs: each of its objects with
/// its definition, its privileges, those that `pg_dump` takes for the initial ones,
/// and its comment.
const OBJECTS: &str = "
    WITH member AS (
        SELECT classid, objid, pg_describe_object(classid, objid, objsubid) AS name
        FROM pg_depend
        WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_sight')
    ), relation AS (
        SELECT name, c.* FROM member JOIN pg_class AS c ON c.oid = objid AND classid = 'pg_class'::regclass
    ), class AS (
        SELECT name, c.* FROM member JOIN pg_opclass AS c ON c.oid = objid AND classid = 'pg_opclass'::regclass
    ), line (name, aspect, value) AS (
        SELECT name, 'comment', obj_description(objid, classid::regclass::name) FROM member
        UNION ALL
        SELECT name, 'initial privileges ' || i.objsubid, i.initprivs::text
            FROM member JOIN pg_init_privs AS i ON i.objoid = objid AND i.classoid = classid
        UNION ALL
        SELECT name, 'function', concat_ws(' ', proowner::regrole, proacl::text, pg_get_functiondef(p.oid))
            FROM member JOIN pg_proc AS p ON p.oid = objid AND classid = 'pg_proc'::regclass
        UNION ALL
        SELECT name, 'relation', concat_ws(' ', relkind, relpersistence, relowner::regrole, relacl::text, reloptions::text)
            FROM relation
        UNION ALL
        SELECT name, 'view', pg_get_viewdef(oid) FROM relation WHERE relkind = 'v'
        UNION ALL
        SELECT name, 'column ' || attnum, concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
                pg_get_expr(adbin, adrelid), attacl::text, col_description(attrelid, attnum))
            FROM relation JOIN pg_attribute ON attrelid = oid AND attnum > 0
                LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        UNION ALL
        SELECT name, 'constraint ' || conname, pg_get_constraintdef(k.oid)
            FROM relation JOIN pg_constraint AS k ON conrelid = relation.oid
        UNION ALL
        SELECT name, 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid)
            FROM relation JOIN pg_index ON indrelid = oid
        UNION ALL
        SELECT name, 'trigger ' || tgname, pg_get_triggerdef(t.oid)
            FROM relation JOIN pg_trigger AS t ON tgrelid = relation.oid
        UNION ALL
        SELECT name, 'access method', concat_ws(' ', amtype, amhandler)
            FROM member JOIN pg_am ON pg_am.oid = objid AND classid = 'pg_am'::regclass
        UNION ALL
        SELECT name, 'operator class', concat_ws(' ', opcowner::regrole, opcintype::regtype, opckeytype::regtype,
                opcdefault, opfname)
            FROM class JOIN pg_opfamily AS f ON f.oid = opcfamily
        UNION ALL
        SELECT name, 'operator ' || amopstrategy, concat_ws(' ', amopopr::regoperator, amoppurpose, opfname)
            FROM class JOIN pg_amop ON amopfamily = opcfamily LEFT JOIN pg_opfamily AS f ON f.oid = amopsortfamily
        UNION ALL
        SELECT name, 'support function ' || amprocnum, amproc::regprocedure::text
            FROM class JOIN pg_amproc ON amprocfamily = opcfamily
        UNION ALL
        SELECT name, 'member', NULL FROM member
        UNION ALL
        SELECT extname, 'extension', concat_ws(' ', extversion, extnamespace::regnamespace, extrelocatable,
                extconfig::regclass[], extcondition::text)
            FROM pg_extension WHERE extname = 'pg_sight'
        UNION ALL
        SELECT 'pg_sight', 'requirement', pg_describe_object(refclassid, refobjid, 0)
            FROM pg_depend WHERE classid = 'pg_extension'::regclass
                AND objid = (SELECT oid FROM pg_extension WHERE extname = 'pg_sight')
        UNION ALL
        SELECT rolname, 'role', to_jsonb(r) - 'oid' #>> '{}' FROM pg_roles AS r WHERE rolname = 'sight_admin'
        UNION ALL
        SELECT roleid::regrole::text, 'membership', member::regrole::text FROM pg_auth_members
    )
    SELECT concat_ws(': ', name, aspect, value) FROM line
        WHERE value IS NOT NULL OR aspect = 'member' ORDER BY 1";

/// The versions before this one, by the files that create them.
fn earlier_versions() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql");
    let files = fs::read_dir(folder).expect("folder sql");
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let versions = names.filter_map(|name| {
        let version = name.strip_prefix("pg_sight--")?.strip_suffix(".sql")?;
        (!version.contains("--")).then(|| version.to_owned())
    });
    let versions: Vec<String> = versions.collect();
    assert!(versions.contains(&"0.1.0".to_owned()), "{versions:?}");
    versions
}

/// A cluster with a version of the extension in a schema.
fn cluster_of(version: &str, schema: &str) -> Cluster {
    let cluster = Cluster::start(&[]);
    let create = format!(
        "CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE EXTENSION pg_sight SCHEMA {schema} VERSION '{version}' CASCADE"
    );
    cluster.client().batch_execute(&create).unwrap();
    cluster
}

fn upgrade(client: &mut Client) {
    client
        .batch_execute("ALTER EXTENSION pg_sight UPDATE")
        .unwrap();
    assert_eq!(installed(client), CURRENT);
}

fn installed(client: &mut Client) -> String {
    let version = "SELECT extversion FROM pg_extension WHERE extname = 'pg_sight'";
    client.query_one(version, &[]).unwrap().get(0)
}

fn objects(client: &mut Client) -> Vec<String> {
    let rows = client.query(OBJECTS, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn an_upgraded_extension_consists_of_what_a_new_one_does() {
    for schema in ["public", "sight"] {
        let fresh = objects(&mut cluster_of(CURRENT, schema).client());
        let members = fresh.iter().filter(|line| line.ends_with(": member"));
        assert!(members.count() > 40, "{fresh:#?}");
        for version in earlier_versions() {
            let cluster = cluster_of(&version, schema);
            let mut client = cluster.client();
            upgrade(&mut client);
            let upgraded = objects(&mut client);
            let (lost, left) = (only(&fresh, &upgraded), only(&upgraded, &fresh));
            assert!(
                lost.is_empty() && left.is_empty(),
                "{version}: of a new one only: {lost:#?}; of the upgraded only: {left:#?}"
            );
        }
    }
}

/// The lines that others have not.
fn only(these: &[String], others: &[String]) -> Vec<String> {
    let missing = these.iter().filter(|line| !others.contains(line));
    missing.cloned().collect()
}

const SHOP: &str = "
    CREATE TABLE product (
        id int PRIMARY KEY, image bytea, description text, desc_vec vector(384));
    CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image, description ON product
        FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
    INSERT INTO product (id, description) VALUES (1, 'red sneakers'), (2, 'a wooden chair');
    CREATE INDEX product_nearest ON product USING faiss_ivf (desc_vec vector_ip_ops) WITH (lists = 1);
    CREATE ROLE analyst;
    GRANT SELECT ON sight_stats TO analyst;
    GRANT EXECUTE ON FUNCTION sight_statistics() TO analyst;
    CREATE VIEW busiest AS SELECT model, requests FROM sight_stats ORDER BY requests DESC LIMIT 1;";

/// Describes a picture by the trigger, and finds it and an earlier row by the index.
fn use_everything(cluster: &Cluster, client: &mut Client, id: i32) {
    let (golden, picture) = &captioner_goldens()[id as usize];
    let add = "INSERT INTO product (id, image) VALUES ($1, $2) RETURNING description";
    let caption: String = client.query_one(add, &[&id, picture]).unwrap().get(0);
    assert_eq!(Some(caption.as_str()), golden["greedy_text"].as_str());
    client.batch_execute("SET enable_seqscan = off").unwrap();
    let nearest = "SELECT id FROM product ORDER BY desc_vec <#> embed($1) LIMIT 1";
    for (query, wanted) in [(caption.as_str(), id), ("seat", 2)] {
        let found: i32 = client.query_one(nearest, &[&query]).unwrap().get(0);
        assert_eq!(found, wanted, "{query}");
    }
    let scan = "SELECT rows_returned FROM sight_index_last_scan()";
    assert_eq!(client.query_one(scan, &[]).unwrap().get::<_, i64>(0), 1);
    let stats = "SELECT entries FROM sight_index_stats('product_nearest')";
    let entries: i64 = client.query_one(stats, &[]).unwrap().get(0);
    let rows = "SELECT count(*) FROM product";
    assert_eq!(
        entries,
        client.query_one(rows, &[]).unwrap().get::<_, i64>(0)
    );
    for view in ["sight_models", "sight_stats", "sight_stat_progress_pull"] {
        client
            .query(&format!("SELECT * FROM {view}"), &[])
            .unwrap_or_else(|error| panic!("{view}: {error}"));
    }
    assert!(cluster.model_server(client).is_some());
}

#[test]
fn a_database_of_an_earlier_version_works_before_and_after_its_upgrade() {
    for version in earlier_versions() {
        let cluster = cluster_of(&version, "public");
        let mut client = cluster.client();
        cluster.register_models(&mut client);
        client.batch_execute(SHOP).unwrap();
        use_everything(&cluster, &mut client, 3);
        assert_eq!(installed(&mut client), version);
        upgrade(&mut client);
        use_everything(&cluster, &mut client, 4);
        client.batch_execute("REINDEX TABLE product").unwrap();
        use_everything(&cluster, &mut client, 5);
        // What users made of the extension's views stays.
        let stats =
            "SELECT sight_stats.requests > 0 AND busiest.requests > 0 AND generated_tokens > 0
                     FROM sight_stats, busiest WHERE task = 'describe'";
        let mut analyst = cluster.client();
        analyst.batch_execute("SET ROLE analyst").unwrap();
        analyst.query("SELECT * FROM sight_stats", &[]).unwrap();
        assert!(client.query_one(stats, &[]).unwrap().get::<_, bool>(0));
    }
}

#[test]
fn a_dump_of_an_earlier_version_restores_into_this_one() {
    for version in earlier_versions() {
        let cluster = cluster_of(&version, "public");
        let mut client = cluster.client();
        client.batch_execute("CREATE DATABASE shop").unwrap();
        let mut client = cluster.client_of("postgres", "shop");
        client
            .batch_execute(&format!(
                "CREATE EXTENSION pg_sight VERSION '{version}' CASCADE"
            ))
            .unwrap();
        cluster.register_models(&mut client);
        client.batch_execute(SHOP).unwrap();
        let other = Cluster::start(&[]);
        other.client().batch_execute("CREATE ROLE analyst").unwrap();
        other.restore_from(&cluster, "shop");
        let mut restored = other.client_of("postgres", "shop");
        assert_eq!(installed(&mut restored), CURRENT);
        use_everything(&other, &mut restored, 3);
    }
}
