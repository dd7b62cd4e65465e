//! pg_sight: captions pictures and searches them by meaning inside PostgreSQL.

pgrx::pg_module_magic!(name, version);
