//! A table with an index of every operator class, and what searches in it answer.

use postgres::{Client, IsolationLevel, Transaction};

/// The extension and `item`, 5000 rows without an index; `sample_vector` makes others.
pub const SEARCHED_TABLE: &str = "
    CREATE EXTENSION pg_sight CASCADE;
    CREATE FUNCTION sample_vector(seed int) RETURNS vector LANGUAGE sql IMMUTABLE AS $$
        SELECT array_agg((hashint4(seed * 64 + j) / 2147483648.0)::real)::vector
            FROM generate_series(1, 32) AS j
    $$;
    CREATE TABLE item (id serial PRIMARY KEY, v vector(32), h halfvec(32));
    INSERT INTO item (v, h) SELECT v, v FROM generate_series(1, 5000) AS i, sample_vector(i) AS v;";

/// What the operator classes serve: columns and operators.
const SEARCHES: [(&str, &str, &str); 6] = [
    ("vector_l2_ops", "v", "<->"),
    ("vector_ip_ops", "v", "<#>"),
    ("vector_cosine_ops", "v", "<=>"),
    ("halfvec_l2_ops", "h", "<->"),
    ("halfvec_ip_ops", "h", "<#>"),
    ("halfvec_cosine_ops", "h", "<=>"),
];
/// Queries of each kind, and rows that each wants.
const QUERIES: i32 = 12;
const NEAREST: i32 = 10;

/// What a search reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The table, without an index.
    Table,
    /// All lists of the index: its answers are exact, but for one in some hundreds.
    AllLists,
    /// As many lists of the index as the session's settings choose.
    ChosenLists,
}

/// A row that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    class: &'static str,
    query: i32,
    id: i32,
    distance: f64,
}

impl Reading {
    fn settings(self) -> String {
        // All lists, and bounds by codes as sure as they can be: all that there is.
        let (by_index, nprobe, target_recall) = match self {
            Self::Table => (false, 0, 0),
            Self::AllLists => (true, 65536, 1),
            Self::ChosenLists => (true, 0, 0),
        };
        format!(
            "SET LOCAL enable_indexscan = {by_index};
             SET LOCAL enable_seqscan = {0}; SET LOCAL enable_sort = {0};
             SET LOCAL faiss_ivf.nprobe = {nprobe};
             SET LOCAL faiss_ivf.target_recall = {target_recall}",
            !by_index
        )
    }
}

/// Makes an index of each operator class, named `TABLE_OPCLASS`, on a table like `item`.
pub fn create_indexes(client: &mut Client, table: &str) {
    for (class, column, _) in SEARCHES {
        let index = format!(
            "CREATE INDEX {table}_{class} ON {table} USING faiss_ivf ({column} {class})
             WITH (factory = 'RR,IVF,RaBitQ,Refine(SQ8)', lists = 40)"
        );
        client.batch_execute(&index).unwrap();
    }
}

/// The nearest rows of a table like `item` for some queries by each operator class.
///
/// # Panics
/// When a query fails, or its plan is another than was asked for.
pub fn answers(client: &mut Client, table: &str, reading: Reading) -> Vec<Answer> {
    let mut snapshot = snapshot(client);
    answers_in(&mut snapshot, table, reading)
}

/// The indexes find, in all their lists, what the table has.
///
/// # Panics
/// When they do not.
pub fn assert_indexes_are_exact(client: &mut Client, table: &str) {
    let mut snapshot = snapshot(client);
    let by_index = answers_in(&mut snapshot, table, Reading::AllLists);
    let by_table = answers_in(&mut snapshot, table, Reading::Table);
    let kinds = SEARCHES.len() as i32 * QUERIES;
    assert_eq!(by_table.len() as i32, kinds * NEAREST, "{table}");
    // Bounds by lossy codes are not certain.
    let found = by_table.iter().filter(|answer| by_index.contains(answer));
    let missing = by_table.len() - found.count();
    assert!(
        missing <= by_table.len() / 200,
        "{table}: {missing} of {} answers are missing",
        by_table.len()
    );
}

/// A transaction whose statements all see the same rows.
fn snapshot(client: &mut Client) -> Transaction<'_> {
    let isolation = IsolationLevel::RepeatableRead;
    let transaction = client.build_transaction().isolation_level(isolation);
    transaction.start().unwrap()
}

fn answers_in(snapshot: &mut Transaction<'_>, table: &str, reading: Reading) -> Vec<Answer> {
    snapshot.batch_execute(&reading.settings()).unwrap();
    let mut found = Vec::new();
    for (class, column, operator) in SEARCHES {
        let kind = if column == "v" { "vector" } else { "halfvec" };
        let query = format!(
            "WITH query AS MATERIALIZED (
                 SELECT q, sample_vector(1000000 + q)::{kind} AS wanted
                     FROM generate_series(1, {QUERIES}) AS q)
             SELECT q, nearest.id, nearest.distance FROM query, LATERAL (
                 SELECT id, {column} {operator} wanted AS distance FROM {table}
                     ORDER BY {column} {operator} wanted LIMIT {NEAREST}) AS nearest"
        );
        let plan = snapshot.query(&format!("EXPLAIN {query}"), &[]).unwrap();
        let lines = plan.iter().map(|row| row.get::<_, &str>(0));
        let by_index = lines.clone().any(|line| line.contains("Order By: "));
        assert_eq!(
            by_index,
            reading != Reading::Table,
            "{query}: {:?}",
            lines.collect::<Vec<_>>()
        );
        let rows = snapshot.query(&query, &[]).unwrap();
        found.extend(rows.iter().map(|row| Answer {
            class,
            query: row.get(0),
            id: row.get(1),
            distance: row.get(2),
        }));
    }
    found
}

/// The answers of both are the same, in order.
///
/// # Panics
/// When they differ; it shows the first that do.
pub fn assert_same(what: &str, left: &[Answer], right: &[Answer]) {
    assert_eq!(left.len(), right.len(), "{what}: answers");
    let different = left.iter().zip(right).find(|(left, right)| left != right);
    assert_eq!(different, None, "{what}");
}
