//! The registered models: rows of the table `sight_model`, which lies in the
//! extension's schema. It is read with the rights of the extension, since
//! everyone may use a model but not see its directory.

use std::ffi::CStr;
use std::num::NonZeroUsize;

use pgrx::{FromDatum, pg_sys};
use sight_protocol::{ModelRef, ModelTask};

use super::pull;
use crate::error::{SqlError, SqlState};
use crate::gucs;
use crate::text;

const TABLE: &CStr = c"sight_model";
/// Columns of `sight_model`, from 1.
const NAME: NonZeroUsize = NonZeroUsize::new(1).unwrap();
const DIRECTORY: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// The name of the model a call uses: the one it names, or the setting's.
pub fn model_name(named: Option<String>, task: ModelTask) -> Result<String, SqlError> {
    if let Some(named) = named {
        return Ok(named);
    }
    let setting = match task {
        ModelTask::Embed => gucs::EMBED_MODEL.get(),
        ModelTask::Describe => gucs::DESCRIBE_MODEL.get(),
    };
    text::from_server(setting.unwrap_or_default().as_bytes())
}

/// Which rows of the table a look-up sees: two of the same version see the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version {
    oldest: pg_sys::TransactionId,
    next: pg_sys::TransactionId,
    running: u32,
    command: pg_sys::CommandId,
}

/// The version that a look-up would see now.
pub fn version() -> Version {
    // SAFETY: a function always runs under an active snapshot.
    let snapshot = unsafe { &*pg_sys::GetActiveSnapshot() };
    Version {
        oldest: snapshot.xmin,
        next: snapshot.xmax,
        running: snapshot.xcnt,
        command: snapshot.curcid,
    }
}

/// Finds a registered model.
///
/// `function` is any function of this extension: its schema holds the table.
///
/// # Errors
/// No model of that name is registered.
pub fn find(function: pg_sys::Oid, name: &str) -> Result<ModelRef, SqlError> {
    match directory_of(function, name)? {
        Some(directory) => Ok(ModelRef {
            name: name.to_owned(),
            directory,
            limits: gucs::limits(),
        }),
        None => Err(SqlError::new(
            SqlState::MODEL_MISSING,
            format!("model \"{name}\" is not registered"),
        )
        .detail(match default_repository(name) {
            Some(_) if !gucs::ALLOW_DOWNLOADS.get() => {
                "Models are used by the names under which an administrator registered them, \
                 and downloads are off (pg_sight.allow_downloads)."
            }
            _ => "Models are used by the names under which an administrator registered them.",
        })
        .hint(missing_hint(name))),
    }
}

/// The repositories of models that the settings name from the start, and of one
/// that is the smaller choice.
const DEFAULT_REPOSITORIES: [&str; 3] = [
    "sentence-transformers/all-mpnet-base-v2",
    "Salesforce/blip-image-captioning-large",
    "Salesforce/blip-image-captioning-base",
];

fn default_repository(name: &str) -> Option<&'static str> {
    let of_name = |repository: &&&str| repository.split_once('/').is_some_and(|(_, of)| of == name);
    DEFAULT_REPOSITORIES.iter().find(of_name).copied()
}

/// How to get a model that is not registered.
fn missing_hint(name: &str) -> String {
    let Some(repository) = default_repository(name) else {
        return format!(
            "Register its directory: SELECT sight_model_register('{}', '/path/to/model'); \
             or download it with sight_model_pull(); or use another one, see sight_models.",
            name.replace('\'', "''")
        );
    };
    let pull = format!("SELECT sight_model_pull('{repository}');");
    if gucs::ALLOW_DOWNLOADS.get() {
        pull
    } else {
        format!("{pull} {}", pull::TURN_ON)
    }
}

fn directory_of(function: pg_sys::Oid, name: &str) -> Result<Option<String>, SqlError> {
    let name = text::to_server(name);
    // SAFETY: look-ups and a scan by PostgreSQL's own means on the main thread;
    // the table is closed after its rows were copied. On an error PostgreSQL
    // closes them itself.
    unsafe {
        let schema = pg_sys::get_func_namespace(function);
        let table_oid = pg_sys::get_relname_relid(TABLE.as_ptr(), schema);
        if table_oid == pg_sys::InvalidOid {
            return Ok(None);
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(table_oid, lock);
        // A handful of rows: a sequential scan finds the name at once.
        let scan = pg_sys::systable_beginscan(
            table,
            pg_sys::InvalidOid,
            false,
            pg_sys::GetActiveSnapshot(),
            0,
            std::ptr::null_mut(),
        );
        let mut found = None;
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            if column(tuple, NAME, table).as_deref() == Some(name.as_slice()) {
                found = column(tuple, DIRECTORY, table);
                break;
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
        found
            .map(|directory| text::from_server(&directory))
            .transpose()
    }
}

/// # Safety
/// `tuple` must be a row of `table` with a text column `number`.
unsafe fn column(
    tuple: pg_sys::HeapTuple,
    number: NonZeroUsize,
    table: pg_sys::Relation,
) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise; the text is copied.
    unsafe {
        let datum = pgrx::htup::heap_getattr_raw(tuple, number, (*table).rd_att)?;
        Vec::<u8>::from_datum(datum, false)
    }
}
