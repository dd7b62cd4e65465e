//! The server's state, for the views `sight_server_status` and `sight_models`.

use serde_json::{Value, json};
use sight_protocol::{Request, Response};

use super::call::{Call, SqlResult, sql_function};
use crate::server::{client, files};
use crate::text;

sql_function!(
    sight_server_state,
    pg_finfo_sight_server_state,
    server_state
);

/// `sight_server_state() → jsonb`. Starts nothing: a server that does not run
/// is shown as the supervisor left it.
fn server_state(_call: &Call) -> SqlResult {
    let supervisor = files::read_state();
    let supervised = files::supervisor_is_running();
    let mut row = json!({
        "state": supervisor.as_ref().filter(|_| supervised)
            .map_or(files::ServerState::Stopped, |supervisor| supervisor.state)
            .as_str(),
        "pid": supervisor.as_ref().filter(|_| supervised).and_then(|supervisor| supervisor.pid),
        "restarts": supervisor.as_ref().map_or(0, |supervisor| supervisor.restarts),
        "last_error": supervisor.and_then(|supervisor| supervisor.last_error),
    });
    if let Some(Response::Status(status)) = client::request_if_running(&Request::Status)? {
        let live = json!({
            "state": files::ServerState::Running.as_str(),
            "pid": status.pid,
            "version": status.version,
            "device": status.device,
            "dtype": status.dtype,
            "threads": status.threads,
            "memory_bytes": status.memory_bytes,
            "uptime_ms": status.uptime_ms,
            "requests": status.requests,
            "failed_requests": status.failed_requests,
            "queued_requests": status.queued_requests,
            "loaded_models": status.loaded_models,
        });
        if let (Value::Object(row), Value::Object(live)) = (&mut row, live) {
            row.extend(live);
        }
    }
    Ok(Some(text::json_datum(&row)))
}
