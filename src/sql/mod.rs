//! The SQL functions: thin, they turn arguments into requests to the server
//! and answers into values. `sql/*.sql` declares them.

mod admin;
mod call;
mod describe;
mod embed;
mod pull;
mod registry;
mod status;
mod trigger;
mod vector;
