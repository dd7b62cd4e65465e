//! pg_sight: captions pictures and searches them by meaning inside PostgreSQL.
//!
//! The extension holds no models: `server` reaches `pg_sight_server`, a process
//! of its own, and supervises it; `sql` holds the functions; `index` is the
//! access method `faiss_ivf`. `docs/architecture.md` draws the whole.

mod error;
mod gucs;
mod index;
mod server;
mod sql;
mod text;

use pgrx::pg_guard;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/models.sql", name = "models");
pgrx::extension_sql_file!(
    "../sql/functions.sql",
    name = "functions",
    requires = ["models"]
);

/// Called by PostgreSQL when the library is loaded.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    gucs::define();
    index::init();
    server::supervisor::register_preloaded();
}
