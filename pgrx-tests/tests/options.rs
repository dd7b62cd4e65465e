//! Odd values of options and settings: PostgreSQL takes them or says which kind of
//! mistake they are, and the index answers as before.

use pg_sight_tests::{Cluster, SqlFailure};
use postgres::Client;

const TABLES: &str = "
    CREATE EXTENSION pg_sight CASCADE;
    CREATE FUNCTION place(i integer) RETURNS vector LANGUAGE sql IMMUTABLE
        RETURN ARRAY[sin(i * 1.1) * i, cos(i * 1.7) * i, i / 3.0]::vector;
    CREATE TABLE item (id integer, v vector(3));
    INSERT INTO item SELECT i, place(i) FROM generate_series(1, 600) i;
    CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 12);
    CREATE TABLE other (id integer, v vector(3));
    INSERT INTO other SELECT i, place(i) FROM generate_series(1, 60) i;
    ANALYZE;
    SET enable_seqscan = off;
    SET enable_sort = off;
    SET client_min_messages = error;";

/// The first two are the options that there are.
const OPTIONS: [&str; 6] = [
    "lists",
    "target_recall",
    "LISTS",
    "\"Lists\"",
    "fillfactor",
    "toast.lists",
];
const SETTINGS: [&str; 6] = [
    "nprobe",
    "max_probes",
    "max_scan_tuples",
    "target_recall",
    "iterative_scan",
    "no_such_setting",
];

/// How many statements of a kind are tried; the table `item` has a row for twice as many.
const ROUNDS: usize = 300;

/// Values as they are written in a statement: numbers at and beyond the limits of the
/// types, words, quoted strings, and what no value is.
const VALUES: [&str; 56] = [
    "0",
    "1",
    "-1",
    "+7",
    "12",
    "65536",
    "65537",
    "2147483647",
    "2147483648",
    "-2147483649",
    "9223372036854775808",
    "99999999999999999999999999999999999999999999",
    "0.5",
    ".5",
    "1.",
    "-0.0",
    "1.0000001",
    "0.999999999999999999999999",
    "1e3",
    "1e-3",
    "1e400",
    "1e-400",
    "0x10",
    "0b11",
    "1_000",
    "nan",
    "'NaN'",
    "'Infinity'",
    "'-inf'",
    "''",
    "' '",
    "' 7 '",
    "'7 lists'",
    "'7kB'",
    "'7ms'",
    "'0x1p4'",
    "'0x'",
    "'7,8'",
    "'7'';--'",
    "'\u{664}\u{662}'",
    "'\u{1f600}'",
    "E'\\n7\\t'",
    "on",
    "true",
    "NULL",
    "DEFAULT",
    "off",
    "strict_order",
    "'STRICT_ORDER'",
    "'strict_order '",
    "relaxed_order",
    "'relaxed'",
    "strict_order, off",
    "(7)",
    "7 + 1",
    "",
];

/// Numbers that look random and are the same every time (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// A value, now and then a long one or one of random characters.
    fn value(&mut self) -> String {
        match self.below(12) {
            0 => "9".repeat(1 + self.below(3000)),
            1 => format!("'{}'", "ab ".repeat(1 + self.below(3000))),
            2 | 3 => {
                let length = self.below(12);
                let characters = (0..length).map(|_| self.of(&["1", "e", "-", ".", "x", "=", " "]));
                format!("'{}'", characters.collect::<String>())
            }
            _ => self.of(&VALUES).to_owned(),
        }
    }

    /// What stands in the parentheses of WITH and SET.
    fn options(&mut self) -> String {
        let count = [1, 1, 1, 1, 2, 0][self.below(6)];
        let options = (0..count).map(|_| {
            let name = self.of(&OPTIONS);
            match self.below(8) {
                0 => name.to_owned(),
                _ => format!("{name} = {}", self.value()),
            }
        });
        options.collect::<Vec<_>>().join(", ")
    }
}

/// Whether a statement succeeded; it may fail in no other way than by a mistake in it.
fn is_taken(client: &mut Client, statement: &str) -> bool {
    let Err(error) = client.batch_execute(statement) else {
        return true;
    };
    let failure = error.as_db_error().map(SqlFailure::from);
    let failure = failure.unwrap_or_else(|| panic!("{statement}: connection broke: {error}"));
    let expected = [
        "22023", // invalid value
        "42601", // syntax
        "42602", // invalid name
    ];
    assert!(
        expected.contains(&failure.state.as_str()),
        "{statement}: {failure:?}"
    );
    false
}

/// The row at `place(at)` must be found first: it lies in the nearest list, which every
/// scan reads, whatever the settings are.
fn assert_answers(client: &mut Client, table: &str, at: i32, after: &str) {
    let query = format!("SELECT id FROM {table} ORDER BY v <-> place({at}) LIMIT 1");
    let found = client.query(&query, &[]);
    let found = found.unwrap_or_else(|error| panic!("{after}: {error:?}"));
    let ids: Vec<i32> = found.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, [at], "{after}");
}

fn client_with_tables(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    client.batch_execute(TABLES).unwrap();
    let explain = "EXPLAIN SELECT id FROM item ORDER BY v <-> place(1) LIMIT 1";
    let plan = client.query(explain, &[]).unwrap();
    let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let uses_index = lines
        .iter()
        .any(|line| line.contains("Index Scan using item_v"));
    assert!(uses_index, "{lines:?}");
    client
}

fn backend(client: &mut Client) -> i32 {
    let row = client.query_one("SELECT pg_backend_pid()", &[]);
    row.unwrap().get(0)
}

#[test]
fn odd_options_of_an_index_are_taken_or_refused() {
    let cluster = Cluster::start(&[]);
    let mut client = client_with_tables(&cluster);
    let before = backend(&mut client);
    let mut random = Random(0x5eed);
    let (mut taken, mut built) = (0, 0);
    for round in 0..ROUNDS {
        // Each value for each option, then random ones.
        let options = match VALUES.get(round / 2) {
            Some(value) => format!("{} = {value}", OPTIONS[round % 2]),
            None => random.options(),
        };
        let at = 1 + round as i32;
        let build = format!(
            "CREATE INDEX other_v ON other USING faiss_ivf (v vector_l2_ops) WITH ({options})"
        );
        if is_taken(&mut client, &build) {
            built += 1;
            assert_answers(&mut client, "other", 1 + at % 60, &build);
            client.batch_execute("DROP INDEX other_v").unwrap();
        }
        for statement in [
            format!("ALTER INDEX item_v SET ({options})"),
            format!("ALTER INDEX item_v RESET ({options})"),
        ] {
            taken += i32::from(is_taken(&mut client, &statement));
            assert_answers(&mut client, "item", at, &statement);
        }
    }
    assert_eq!(backend(&mut client), before);
    // The odd ones must not be all refused, nor all taken.
    for accepted in [taken, built] {
        assert!((20..250).contains(&accepted), "{taken} set, {built} built");
    }
    // What was set last holds when the index is built anew.
    client.batch_execute("REINDEX INDEX item_v").unwrap();
    assert_answers(&mut client, "item", 77, "REINDEX");
}

#[test]
fn odd_settings_of_a_session_are_taken_or_refused() {
    let cluster = Cluster::start(&[]);
    let mut client = client_with_tables(&cluster);
    let before = backend(&mut client);
    let mut random = Random(0x0dd);
    let mut taken = 0;
    for round in 0..2 * ROUNDS {
        // Each value for each setting, then random ones.
        let name = SETTINGS[round % SETTINGS.len()];
        let value = VALUES.get(round / SETTINGS.len());
        let value = value.map_or_else(|| random.value(), |value| (*value).to_owned());
        let statement = match (round + round / SETTINGS.len()) % 3 {
            0 => {
                let quoted = format!("'{}'", value.replace('\'', "''"));
                format!("SELECT set_config('faiss_ivf.{name}', {quoted}, false)")
            }
            1 => format!("SET faiss_ivf.{name} = {value}"),
            _ => format!("SET faiss_ivf.{name} TO {value}"),
        };
        taken += i32::from(is_taken(&mut client, &statement));
        assert_answers(&mut client, "item", 1 + round as i32, &statement);
    }
    assert_eq!(backend(&mut client), before);
    assert!((60..540).contains(&taken), "{taken} were taken");
}
