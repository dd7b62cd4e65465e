//! `sight_describe_trigger(image column, description column, vector column)`:
//! keeps a description and its vector in step with a picture.

use std::ffi::{CStr, CString};

use once_cell::unsync::OnceCell;
use pgrx::{FromDatum, pg_sys};
use sight_protocol::ModelTask;

use super::call::{Call, SqlResult, sql_function};
use super::{describe, embed, registry, vector};
use crate::error::{SqlError, SqlState};
use crate::text;

sql_function!(
    sight_describe_trigger,
    pg_finfo_sight_describe_trigger,
    describe_trigger
);

/// The row that is written, and on update the one it replaces.
struct Rows {
    relation: pg_sys::Relation,
    old: Option<pg_sys::HeapTuple>,
    new: pg_sys::HeapTuple,
}

/// A column of the trigger's table.
struct Column {
    /// From 1.
    number: i32,
    type_oid: pg_sys::Oid,
    typmod: i32,
}

struct Columns {
    image: Column,
    description: Column,
    embedding: Column,
}

/// What becomes of description and vector.
enum Plan<'a> {
    /// Nothing changed: nothing is computed.
    Keep,
    /// Neither picture nor description.
    Clear,
    /// Describe the picture, embed the description.
    Describe(&'a [u8]),
    /// The user's description is kept and embedded.
    Embed(String),
}

fn describe_trigger(call: &Call) -> SqlResult {
    let (rows, arguments) = called_rightly(call)?;
    // A statement calls its trigger for one table only, with the same arguments.
    let site = call.site::<OnceCell<Columns>>();
    let columns = site.get_or_try_init(|| columns(rows.relation, &arguments))?;
    let tuple = match plan(&rows, columns)? {
        Plan::Keep => rows.new,
        Plan::Clear => replace(&rows, columns, None, None),
        Plan::Describe(image) => {
            let model = registry::model_name(None, ModelTask::Describe)?;
            let description = describe::describe_image(call.function(), &model, image)?;
            let embedding = embedding(call, columns, &description)?;
            replace(
                &rows,
                columns,
                Some(text::to_datum(&description)),
                Some(embedding),
            )
        }
        Plan::Embed(description) => {
            let embedding = embedding(call, columns, &description)?;
            replace(
                &rows,
                columns,
                Some(text::to_datum(&description)),
                Some(embedding),
            )
        }
    };
    Ok(Some(pg_sys::Datum::from(tuple)))
}

fn embedding(call: &Call, columns: &Columns, description: &str) -> Result<pg_sys::Datum, SqlError> {
    let model = registry::model_name(None, ModelTask::Embed)?;
    let embedding = embed::embed_document(call.function(), &model, description)?;
    let expected = columns.embedding.typmod;
    if expected > 0 && expected as usize != embedding.len() {
        return Err(SqlError::new(
            SqlState::DATA_EXCEPTION,
            format!("expected {expected} dimensions, not {}", embedding.len()),
        )
        .detail(format!(
            "Model \"{model}\" gives vectors of {} dimensions.",
            embedding.len()
        ))
        .hint(format!(
            "Declare the column as vector({}), or choose another model with pg_sight.embed_model.",
            embedding.len()
        )));
    }
    vector::to_datum(&embedding)
}

/// Checks how the trigger was declared.
fn called_rightly(call: &Call) -> Result<(Rows, Vec<CString>), SqlError> {
    let wrong = |message: &str| {
        Err(
            SqlError::new(SqlState::TRIGGER_PROTOCOL_VIOLATED, message.to_owned()).hint(
                "CREATE TRIGGER ... BEFORE INSERT OR UPDATE OF image ON product FOR EACH ROW \
             EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')",
            ),
        )
    };
    let Some(data) = call.trigger() else {
        return wrong("sight_describe_trigger must be called as a trigger");
    };
    // SAFETY: PostgreSQL passes valid trigger data; tg_args holds tgnargs
    // NUL-terminated strings.
    unsafe {
        let event = (*data).tg_event;
        let before_row = event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE
            && event & pg_sys::TRIGGER_EVENT_ROW != 0;
        let operation = event & pg_sys::TRIGGER_EVENT_OPMASK;
        let (old, new) = match operation {
            pg_sys::TRIGGER_EVENT_INSERT => (None, (*data).tg_trigtuple),
            pg_sys::TRIGGER_EVENT_UPDATE => (Some((*data).tg_trigtuple), (*data).tg_newtuple),
            _ => return wrong("sight_describe_trigger must be fired by INSERT or UPDATE"),
        };
        if !before_row {
            return wrong("sight_describe_trigger must be fired BEFORE and FOR EACH ROW");
        }
        let trigger = (*data).tg_trigger;
        if (*trigger).tgnargs != 3 {
            return wrong(
                "sight_describe_trigger takes three arguments: \
                 the columns of the image, the description and the vector",
            );
        }
        let arguments = std::slice::from_raw_parts((*trigger).tgargs, 3);
        let arguments = arguments
            .iter()
            .map(|name| CStr::from_ptr(*name).to_owned())
            .collect();
        Ok((
            Rows {
                relation: (*data).tg_relation,
                old,
                new,
            },
            arguments,
        ))
    }
}

fn columns(relation: pg_sys::Relation, names: &[CString]) -> Result<Columns, SqlError> {
    let image = column(relation, &names[0])?;
    let description = column(relation, &names[1])?;
    let embedding = column(relation, &names[2])?;
    let wrong_type = |name: &CString, expected: &str| {
        let name = name.to_string_lossy();
        Err(SqlError::new(
            SqlState::DATATYPE_MISMATCH,
            format!("column \"{name}\" of sight_describe_trigger must be of type {expected}"),
        ))
    };
    if image.type_oid != pg_sys::BYTEAOID {
        return wrong_type(&names[0], "bytea");
    }
    if description.type_oid != pg_sys::TEXTOID {
        return wrong_type(&names[1], "text");
    }
    if !vector::is_vector_type(embedding.type_oid) {
        return wrong_type(&names[2], "vector");
    }
    Ok(Columns {
        image,
        description,
        embedding,
    })
}

fn column(relation: pg_sys::Relation, name: &CString) -> Result<Column, SqlError> {
    // SAFETY: the relation is open for the trigger's time, its descriptor with
    // it; the number is one of the descriptor's columns when it is positive.
    unsafe {
        let descriptor = (*relation).rd_att;
        let number = pg_sys::SPI_fnumber(descriptor, name.as_ptr());
        if number <= 0 {
            let table = CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr());
            return Err(SqlError::new(
                SqlState::UNDEFINED_COLUMN,
                format!(
                    "column \"{}\" of relation \"{}\" does not exist",
                    name.to_string_lossy(),
                    table.to_string_lossy()
                ),
            )
            .hint("The arguments of sight_describe_trigger name columns of its table."));
        }
        if pg_sys::get_attgenerated((*relation).rd_id, number as i16) != 0 {
            return Err(SqlError::new(
                SqlState(b"42P17"),
                format!(
                    "column \"{}\" of sight_describe_trigger must not be generated",
                    name.to_string_lossy()
                ),
            )
            .detail("Generated columns are computed after BEFORE triggers have run."));
        }
        let mut type_oid = pg_sys::InvalidOid;
        let mut collation = pg_sys::InvalidOid;
        let mut typmod = -1;
        pg_sys::get_atttypetypmodcoll(
            (*relation).rd_id,
            number as i16,
            &mut type_oid,
            &mut typmod,
            &mut collation,
        );
        Ok(Column {
            number,
            type_oid,
            typmod,
        })
    }
}

fn plan<'a>(rows: &Rows, columns: &Columns) -> Result<Plan<'a>, SqlError> {
    let image = value(rows, rows.new, &columns.image);
    let description = value(rows, rows.new, &columns.description);
    let changed = |new, column| match rows.old {
        Some(old) => !is_same(value(rows, old, column), new),
        None => true,
    };
    let new_description = changed(description, &columns.description);
    if !new_description && !changed(image, &columns.image) {
        return Ok(Plan::Keep);
    }
    Ok(match (description, image) {
        (Some(description), _) if new_description => {
            Plan::Embed(text::from_server(bytes(description))?)
        }
        (_, Some(image)) => Plan::Describe(bytes(image)),
        (_, None) => Plan::Clear,
    })
}

/// A column's value in a row; `None` is NULL.
fn value(rows: &Rows, tuple: pg_sys::HeapTuple, column: &Column) -> Option<pg_sys::Datum> {
    let mut null = false;
    // SAFETY: the tuple is a row of the relation, which has the column.
    let datum =
        unsafe { pg_sys::SPI_getbinval(tuple, (*rows.relation).rd_att, column.number, &mut null) };
    (!null).then_some(datum)
}

/// What a bytea or a text holds, fetched and decompressed if need be.
fn bytes<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: both are varlena, as `columns` checked. The bytes are the row's or
    // in the memory that PostgreSQL gives a trigger for one row: both outlive
    // the call.
    unsafe { <&[u8]>::from_datum(datum, false) }.unwrap_or_default()
}

/// Whether two values of a column, bytea or text, are the same.
fn is_same(old: Option<pg_sys::Datum>, new: Option<pg_sys::Datum>) -> bool {
    match (old, new) {
        // What an update leaves alone points to the same stored value, which
        // need not be read then.
        (Some(old), Some(new)) => stored(old) == stored(new) || bytes(old) == bytes(new),
        (old, new) => old.is_none() && new.is_none(),
    }
}

/// A value as the row holds it: maybe compressed, maybe a pointer.
fn stored<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: both types are varlena, as `columns` checked, whose size includes
    // the header; see `bytes` for their life.
    unsafe {
        let varlena = datum.cast_mut_ptr::<pg_sys::varlena>();
        std::slice::from_raw_parts(varlena.cast::<u8>(), pgrx::varsize_any(varlena))
    }
}

/// The new row with another description and vector; `None` is NULL.
fn replace(
    rows: &Rows,
    columns: &Columns,
    description: Option<pg_sys::Datum>,
    embedding: Option<pg_sys::Datum>,
) -> pg_sys::HeapTuple {
    let mut numbers = [columns.description.number, columns.embedding.number];
    let mut values = [description, embedding].map(|value| value.unwrap_or(pg_sys::Datum::from(0)));
    let mut nulls = [description.is_none(), embedding.is_none()];
    // SAFETY: three arrays of two, for columns of the relation, with values of
    // their types.
    unsafe {
        pg_sys::heap_modify_tuple_by_cols(
            rows.new,
            (*rows.relation).rd_att,
            2,
            numbers.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        )
    }
}
