//! The model server seen from PostgreSQL: [`client`] asks it, [`supervisor`]
//! is the background worker that runs it, [`files`] are the names and the
//! state they share. `docs/protocol.md` describes the wire and the life cycle.

pub mod client;
mod connection;
pub mod files;
mod process;
pub mod supervisor;
mod wait;
mod watchdog;

pub use connection::Watch;
