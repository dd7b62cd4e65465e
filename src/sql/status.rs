//! The server's state, for the views `sight_server_status`, `sight_models` and
//! `sight_stats`.

use pgrx::pg_sys;
use serde_json::{Map, Value, json};
use sight_protocol::{Counter, ModelStatistics, Request, Response};

use super::call::{Call, SqlResult, sql_function};
use crate::error::{SqlError, SqlState};
use crate::server::{client, files};
use crate::text;

sql_function!(
    sight_server_state,
    pg_finfo_sight_server_state,
    server_state
);
sql_function!(sight_statistics, pg_finfo_sight_statistics, statistics);
sql_function!(
    sight_stats_reset,
    pg_finfo_sight_stats_reset,
    reset_statistics
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
            "device_memory_used_bytes": status.device_memory_used_bytes,
            "device_memory_bytes": status.device_memory_bytes,
            "uptime_ms": status.uptime_ms,
            "requests": status.requests,
            "failed_requests": status.failed_requests,
            "queued_requests": status.queued_requests,
            "cached_embeddings": status.cached_embeddings,
            "cache_bytes": status.cache_bytes,
            "loaded_models": status.loaded_models,
        });
        if let (Value::Object(row), Value::Object(live)) = (&mut row, live) {
            row.extend(live);
        }
    }
    Ok(Some(text::json_datum(&row)))
}

/// `sight_statistics() → jsonb`: an object for each model and task, times in
/// milliseconds. Starts nothing: what a server left that does not run is in a file.
fn statistics(_call: &Call) -> SqlResult {
    let statistics = match client::request_if_running(&Request::Statistics)? {
        Some(Response::Statistics(statistics)) => Some(statistics),
        Some(_) => return Err(client::unexpected()),
        None => files::read_statistics(),
    };
    let rows: Vec<Value> = statistics.iter().flat_map(rows_of).collect();
    Ok(Some(text::json_datum(&json!(rows))))
}

fn rows_of(statistics: &sight_protocol::Statistics) -> impl Iterator<Item = Value> {
    let models = statistics.models.iter();
    models.map(|model| statistics_json(model, statistics.since_ms))
}

fn statistics_json(model: &ModelStatistics, since_ms: u64) -> Value {
    let counts = Counter::ALL.into_iter().map(|counter| {
        let count = model[counter];
        let value = if counter.is_time() {
            json!(count as f64 / 1000.0)
        } else {
            json!(count)
        };
        (counter.as_str().to_owned(), value)
    });
    let mut row: Map<String, Value> = counts.collect();
    row.insert("model".into(), json!(model.model));
    row.insert("task".into(), json!(model.task.as_str()));
    row.insert("since_ms".into(), json!(since_ms));
    Value::Object(row)
}

/// `sight_stats_reset() → void`
fn reset_statistics(_call: &Call) -> SqlResult {
    match client::request_if_running(&Request::ResetStatistics)? {
        Some(Response::Done) => {}
        Some(_) => return Err(client::unexpected()),
        None => files::remove_statistics().map_err(|error| {
            SqlError::new(
                SqlState::INTERNAL_ERROR,
                format!("could not remove file \"{}\": {error}", files::STATISTICS),
            )
        })?,
    }
    Ok(Some(pg_sys::Datum::from(0)))
}
