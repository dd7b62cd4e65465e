//! Management of models. The SQL functions that write the table are declared
//! in `sql/models.sql`; these ask the server.

use pgrx::pg_sys;
use serde_json::{Value, json};
use sight_protocol::{ModelInfo, ModelRef, Request, Response};

use super::call::{Call, SqlResult, sql_function};
use super::registry;
use crate::error::{SqlError, SqlState};
use crate::gucs;
use crate::server::client;
use crate::text;

sql_function!(sight_model_inspect, pg_finfo_sight_model_inspect, inspect);
sql_function!(sight_model_load, pg_finfo_sight_model_load, load);
sql_function!(sight_model_unload, pg_finfo_sight_model_unload, unload);
sql_function!(sight_model_release, pg_finfo_sight_model_release, release);

/// `sight_model_inspect(name text, directory text) → jsonb`: what the files of
/// a model say, after they were checked.
fn inspect(call: &Call) -> SqlResult {
    let (Some(name), Some(directory)) = (call.text(0)?, call.text(1)?) else {
        return Err(SqlError::new(
            SqlState::NULL_NOT_ALLOWED,
            "name and directory must not be null",
        ));
    };
    if name.is_empty() {
        return Err(SqlError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            "name of a model must not be empty",
        ));
    }
    if !directory.starts_with('/') {
        return Err(SqlError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("\"{directory}\" is not an absolute path"),
        )
        .hint("Name the model's directory on the database's host by its absolute path."));
    }
    let model = ModelRef {
        name,
        directory,
        limits: gucs::limits(),
    };
    match client::request(&Request::Inspect { model }, &[])?.0 {
        Response::Model(info) => Ok(Some(text::json_datum(&info_json(&info)))),
        _ => Err(client::unexpected()),
    }
}

/// What the table says of a model.
pub fn info_json(info: &ModelInfo) -> Value {
    json!({
        "task": info.task.as_str(),
        "architecture": info.architecture.as_str(),
        "dimensions": info.dimensions,
        "parameters": info.parameters,
    })
}

/// `sight_model_load(name text) → void`
fn load(call: &Call) -> SqlResult {
    manage(call, |model| Request::Load { model })
}

/// `sight_model_unload(name text) → void`
fn unload(call: &Call) -> SqlResult {
    manage(call, |model| Request::Unload { model })
}

/// `sight_model_release(directory text) → void`: frees the memory of a model that is
/// registered no more, if a server runs and has it; called at the end of a transaction,
/// which must not fail for that.
fn release(call: &Call) -> SqlResult {
    let directory = call.text(0)?.unwrap_or_default();
    let model = ModelRef {
        name: directory.clone(),
        directory,
        limits: gucs::limits(),
    };
    // A server that cannot be asked frees memory when it is idle.
    let _ = client::request_if_running(&Request::Unload { model });
    Ok(Some(pg_sys::Datum::from(0)))
}

fn manage(call: &Call, request: fn(ModelRef) -> Request) -> SqlResult {
    let Some(name) = call.text(0)? else {
        return Err(SqlError::new(
            SqlState::NULL_NOT_ALLOWED,
            "name of a model must not be null",
        ));
    };
    let model = registry::find(call.function(), &name)?;
    match client::request(&request(model), &[])?.0 {
        Response::Done => Ok(Some(pg_sys::Datum::from(0))),
        _ => Err(client::unexpected()),
    }
}
