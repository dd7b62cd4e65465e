//! `sight_index_calibrate`: how many lists searches must read, measured anew.

use faiss_ivf::FaissError;
use ivf_store::{Meta, RecallCurve, Tid};
use pgrx::iter::TableIterator;
use pgrx::{PgSqlErrorCode, check_for_interrupts, name, pg_extern, pg_guard, pg_sys};

use super::admin::{Access, OpenIndex};
use super::build::random_stamp;
use super::insert::tid_of;
use super::opclass::OpClass;
use super::random::Random;
use super::recall::Queries;
use super::report::{OrRaise, Report};
use super::sample::{Drawn, Source};
use super::statistics::rounded;
use super::storage::RelationStore;
use super::trained::Trained;
use super::vector;

/// Rows that a calibration takes for queries when it is given none.
const SAMPLED_QUERIES: u64 = 256;
/// Of the queries that are given to a calibration it takes at most so many, by chance:
/// each is compared with every row.
const MAX_QUERIES: u64 = 1000;

/// Rows that are compared with the queries at once.
const BATCH_ROWS: usize = 512;

/// `sight_index_calibrate(index regclass, queries vector[])`: measures how many lists a
/// search must read, with these queries or with rows of the index, and keeps the result.
#[pg_extern(sql = "
CREATE FUNCTION sight_index_calibrate(
    index regclass, queries vector[] DEFAULT NULL,
    OUT nprobe integer, OUT mean_lists double precision,
    OUT recall_at_10 double precision, OUT standard_error_at_10 double precision,
    OUT recall_at_100 double precision, OUT standard_error_at_100 double precision
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn sight_index_calibrate(
    index: Option<pg_sys::Oid>,
    queries: Option<pgrx::AnyElement>,
) -> TableIterator<
    'static,
    (
        name!(nprobe, i32),
        name!(mean_lists, f64),
        name!(recall_at_10, f64),
        name!(standard_error_at_10, f64),
        name!(recall_at_100, f64),
        name!(standard_error_at_100, f64),
    ),
> {
    let Some(index) = index else {
        return TableIterator::new(Vec::new());
    };
    // SAFETY: a constant that ends in NUL.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"sight_index_calibrate()".as_ptr()) };
    let open = OpenIndex::open(index, Access::Change);
    open.check_code_of_owner();
    let store = open.store();
    // SAFETY: the index is open for all that follows.
    let curve = unsafe {
        let meta = Meta::read(&store).or_raise(open.index);
        let opclass = OpClass::of(open.index);
        let info = pg_sys::BuildIndexInfo(open.index);
        // Rows as a snapshot sees them, not all that an index must have.
        (*info).ii_Concurrent = true;
        let source = Source {
            heap: open.heap,
            index: open.index,
            info,
            opclass,
            dimensions: meta.dimensions,
        };
        let drawn = match queries {
            Some(array) => {
                let vectors = of_array(array.datum(), meta.dimensions, opclass);
                Drawn::of_no_rows(vectors, meta.dimensions)
            }
            None => source.draw(source.estimate_rows(), SAMPLED_QUERIES, 1),
        };
        let curve = measure(&source, &store, &meta, drawn);
        if meta.lists > 1 {
            (curve.replace(&store, &meta, random_stamp())).or_raise(open.index);
        }
        // Plans were made for the old curve.
        pg_sys::CacheInvalidateRelcache(open.index);
        curve
    };
    let rows: Vec<_> = curve
        .points()
        .iter()
        .map(|point| {
            let [few, many] = point.recall;
            let share = rounded;
            (
                point.nprobe as i32,
                rounded(point.lists),
                share(few.mean),
                share(few.error),
                share(many.mean),
                share(many.error),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// Compares the rows of the table with queries.
///
/// # Safety
/// The relations of `source` must be open, and be those that `store` and `meta` are of.
unsafe fn measure(
    source: &Source,
    store: &RelationStore,
    meta: &Meta,
    drawn: Drawn,
) -> RecallCurve {
    if meta.lists <= 1 {
        return RecallCurve::unmeasured(1);
    }
    // SAFETY: the caller's promise; the callback gets the measurement back.
    unsafe {
        let trained = Trained::of(source.index, store, meta);
        let queries = Queries::new(source.opclass, source.dimensions, drawn, &trained.coding);
        let mut measurement = Measurement {
            source,
            trained: &trained,
            queries: queries.or_raise(source.index),
            vectors: Vec::new(),
            tids: Vec::new(),
            lists: Vec::new(),
        };
        pg_sys::table_index_build_scan(
            source.heap,
            source.index,
            source.info,
            false,
            false,
            Some(compare_row),
            std::ptr::from_mut(&mut measurement).cast(),
            std::ptr::null_mut(),
        );
        measurement.flush().or_raise(source.index);
        let curve = measurement.queries.curve(source.opclass, &trained.lists);
        curve.or_raise(source.index)
    }
}

/// Rows on their way to be compared with queries.
struct Measurement<'a> {
    source: &'a Source,
    trained: &'a Trained,
    queries: Queries,
    /// `(rows, dimensions)`
    vectors: Vec<f32>,
    tids: Vec<Tid>,
    lists: Vec<u32>,
}

#[pg_guard]
unsafe extern "C-unwind" fn compare_row(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    _is_alive: bool,
    state: *mut std::ffi::c_void,
) {
    // SAFETY: PostgreSQL passes the one column of a row, and the measurement that
    // `measure` gave it.
    unsafe {
        let measurement = &mut *state.cast::<Measurement<'_>>();
        let (opclass, dimensions) = (measurement.source.opclass, measurement.source.dimensions);
        if *isnull || !opclass.read(*values, dimensions, &mut measurement.vectors) {
            return;
        }
        measurement.tids.push(tid_of(tid));
        if measurement.tids.len() == BATCH_ROWS {
            measurement.flush().or_raise(measurement.source.index);
        }
    }
}

impl Measurement<'_> {
    fn flush(&mut self) -> Result<(), FaissError> {
        check_for_interrupts!();
        let (opclass, dimensions) = (self.source.opclass, self.source.dimensions as usize);
        opclass.make_comparable(dimensions, &mut self.vectors)?;
        let mapped = self.trained.coding.map(&self.vectors)?;
        self.lists.resize(self.tids.len(), 0);
        self.trained.lists.assign(&mapped, &mut self.lists)?;
        check_for_interrupts!();
        (self.queries).look_at(opclass, dimensions, &self.vectors, &self.tids, &self.lists)?;
        self.vectors.clear();
        self.tids.clear();
        Ok(())
    }
}

/// The vectors of an array of `vector`, at most [`MAX_QUERIES`] of them, by chance.
///
/// # Safety
/// `array` must be a `vector[]`.
unsafe fn of_array(array: pg_sys::Datum, dimensions: u32, opclass: &OpClass) -> Vec<f32> {
    let mut vectors = Vec::new();
    let mut taken = 0;
    // SAFETY: the caller's promise; vector is a varlena aligned as an integer.
    let elements = unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            (*array).elemtype,
            -1,
            false,
            pg_sys::TYPALIGN_INT as std::ffi::c_char,
            &mut values,
            &mut nulls,
            &mut count,
        );
        let count = count as usize;
        let nulls = std::slice::from_raw_parts(nulls, count);
        std::slice::from_raw_parts(values, count).iter().zip(nulls)
    };
    let mut random = Random::new(random_stamp());
    let count = elements.len() as u64;
    for (seen, (value, is_null)) in (0..).zip(elements) {
        // Knuth's algorithm S, as if none of them were NULL.
        let wanted = MAX_QUERIES.saturating_sub(taken);
        if *is_null || random.below(count - seen) >= wanted {
            continue;
        }
        // SAFETY: a vector that is not NULL.
        if unsafe { opclass.read_with(vector::read_vector, *value, dimensions, &mut vectors) } {
            taken += 1;
        }
    }
    if taken == 0 {
        Report::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "there are no query vectors",
        )
        .hint("Leave the argument out to take rows of the index.")
        .raise();
    }
    vectors
}
