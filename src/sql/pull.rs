//! Downloads of models. `sql/models.sql` declares the functions, and registers
//! what has been downloaded.

use std::time::Duration;

use pgrx::pg_sys;
use serde_json::{Value, json};
use sight_protocol::{PullProgress, PullRequest, PulledModel, Request, Response};

use super::admin::info_json;
use super::call::{Call, SqlResult, sql_function};
use crate::error::{SqlError, SqlState};
use crate::gucs;
use crate::server::{Watch, client};
use crate::text;

sql_function!(sight_model_fetch, pg_finfo_sight_model_fetch, fetch);
sql_function!(
    sight_pull_progress,
    pg_finfo_sight_pull_progress,
    pull_progress
);

/// Between two looks for news to tell the client.
const NOTICE_PAUSE: Duration = Duration::from_millis(500);

/// How downloads are turned on, as part of a hint.
pub const TURN_ON: &str = "Downloads are off; a superuser turns them on with ALTER SYSTEM SET \
     pg_sight.allow_downloads = on; SELECT pg_reload_conf();";

/// `sight_model_fetch(repository text, revision text, name text) → jsonb`:
/// downloads a model, and says where it lies and what its files say.
fn fetch(call: &Call) -> SqlResult {
    let (Some(repository), Some(revision), Some(name)) =
        (call.text(0)?, call.text(1)?, call.text(2)?)
    else {
        return Err(SqlError::new(
            SqlState::NULL_NOT_ALLOWED,
            "repository and revision must not be null",
        ));
    };
    // The table would refuse it, but after the download.
    if name.is_empty() {
        return Err(SqlError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            "name of a model must not be empty",
        ));
    }
    if !gucs::ALLOW_DOWNLOADS.get() {
        return Err(SqlError::new(
            SqlState::DOWNLOADS_OFF,
            format!("model \"{repository}\" cannot be pulled: downloads are off"),
        )
        .detail("The setting pg_sight.allow_downloads is off.")
        .hint(TURN_ON));
    }
    let set = |value: String| Some(value).filter(|value| !value.is_empty());
    // SAFETY: a plain variable of this process.
    let requester = unsafe { pg_sys::MyProcPid } as u32;
    let request = PullRequest {
        repository,
        revision,
        endpoint: set(gucs::string(&gucs::HF_ENDPOINT)),
        home: set(gucs::string(&gucs::HF_HOME)),
        requester,
    };
    let mut shown = None;
    let mut watch = Watch {
        pause: NOTICE_PAUSE,
        look: &mut || show_file(requester, &mut shown),
    };
    match client::request_watched(&Request::Pull(request), &[], Some(&mut watch))?.0 {
        Response::Pulled(pulled) => Ok(Some(text::json_datum(&pulled_json(&pulled)))),
        _ => Err(client::unexpected()),
    }
}

/// Tells the client which file is in work, when that has changed.
fn show_file(requester: u32, shown: &mut Option<String>) {
    // It is only news: what is wrong with the server, the answer tells.
    let Ok(Some(Response::Pulls(pulls))) = client::request_if_running(&Request::Pulls) else {
        return;
    };
    let own = pulls.into_iter().find(|pull| pull.requester == requester);
    if let Some(pull) = own
        && let Some(file) = &pull.file
        && shown.as_ref() != Some(file)
    {
        let number = pull.files_done + 1;
        pgrx::notice!(
            "downloading \"{file}\", file {number} of {} of model \"{}\"",
            pull.files_total,
            pull.repository
        );
        *shown = pull.file;
    }
}

fn pulled_json(pulled: &PulledModel) -> Value {
    let mut value = info_json(&pulled.info);
    value["directory"] = json!(pulled.directory);
    value["commit"] = json!(pulled.commit);
    value
}

/// `sight_pull_progress() → jsonb`: the downloads that run. Starts nothing.
fn pull_progress(_call: &Call) -> SqlResult {
    let pulls = match client::request_if_running(&Request::Pulls)? {
        Some(Response::Pulls(pulls)) => pulls,
        Some(_) => return Err(client::unexpected()),
        None => Vec::new(),
    };
    let rows: Vec<Value> = pulls.iter().map(progress_json).collect();
    Ok(Some(text::json_datum(&json!(rows))))
}

fn progress_json(pull: &PullProgress) -> Value {
    json!({
        "pid": pull.requester,
        "repository": pull.repository,
        "revision": pull.revision,
        "phase": pull.phase.as_str(),
        "current_file": pull.file,
        "files_done": pull.files_done,
        "files_total": pull.files_total,
        "bytes_done": pull.bytes_done,
        "bytes_total": pull.bytes_total,
    })
}
