//! SQL files whose output must be as expected, each in a database of its own.
//!
//! `sql/NAME.sql` is run by psql, and its echo, results and errors are compared
//! with `expected/NAME.out`. To accept a change: run with `PG_SIGHT_ACCEPT=1`,
//! and read the difference in git before it is committed.

use std::fs;
use std::path::Path;

use pg_sight_tests::Cluster;

#[test]
fn sql_files_give_the_expected_output() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = fs::read_dir(here.join("sql"))
        .expect("folder sql")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    let mut different = Vec::new();
    for file in files {
        let name = file
            .file_stem()
            .expect("name")
            .to_str()
            .expect("UTF-8")
            .to_owned();
        client
            .batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE template0"))
            .unwrap();
        cluster
            .client_of("postgres", &name)
            .batch_execute("CREATE EXTENSION pg_sight CASCADE")
            .unwrap();
        let actual = cluster.psql(&name, &file);
        let expected = here.join("expected").join(format!("{name}.out"));
        if std::env::var_os("PG_SIGHT_ACCEPT").is_some() {
            fs::write(&expected, &actual).expect("expected output");
        }
        let wanted = fs::read_to_string(&expected)
            .unwrap_or_else(|error| panic!("{}: {error}", expected.display()));
        if actual != wanted {
            let line = actual.lines().zip(wanted.lines()).position(|(a, b)| a != b);
            eprintln!("--- {name}: differs from line {line:?}; it gives ---\n{actual}");
            different.push(name);
        }
    }
    assert!(different.is_empty(), "unexpected output: {different:?}");
}
