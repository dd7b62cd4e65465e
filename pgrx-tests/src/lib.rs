//! Real clusters for the tests in `tests/`, each in a folder of its own.
//!
//! The environment, which `make test` sets:
//! - `PG_CONFIG`: the installation with pgvector and pg_sight;
//! - `PG_SIGHT_OLD_PG_CONFIG`: an older one, likewise with both, to upgrade from;
//! - `PG_SIGHT_TEST_USER`: who runs PostgreSQL when the tests run as root;
//! - `PG_SIGHT_MINILM`: directory of all-MiniLM-L6-v2.

mod cluster;
mod error;
mod installation;
mod models;
mod process;
mod search;

pub use cluster::{Cluster, catch_up};
pub use error::{SqlFailure, sql_failure};
pub use installation::Installation;
pub use models::{CAPTIONER, ENCODER, captioner_goldens, demo_directory, samples};
pub use process::{is_alive, kill, wait_until};
pub use search::{
    Answer, Reading, SEARCHED_TABLE, answers, assert_indexes_are_exact, assert_same, create_indexes,
};
