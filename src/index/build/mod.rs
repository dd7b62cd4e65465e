//! Building an index: draw a sample, find centroids, assign every row to its
//! list, sort by list, and write the lists one behind another.
//!
//! Pages are written without WAL records of their own; the whole file goes
//! into the log at the end, and a crash before that leaves no index.

mod assign;
pub(super) mod progress;
mod sort;
mod train;
mod workers;

use ivf_store::{Extent, ListWriter, Meta, PageKind, PageStore, write_directory, write_extent};
use pgrx::{PgBox, PgSqlErrorCode, PgTupleDesc, check_for_interrupts, pg_guard, pg_sys};

use self::progress::Phase;
use self::sort::ListSort;
use self::train::Training;
use super::opclass::OpClass;
use super::report::{OrRaise, Report};
use super::sample::Source;
use super::storage::RelationStore;

/// How many rows are written between two updates of the progress.
const PROGRESS_STEP: u64 = 1024;

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn ambuild(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
) -> *mut pg_sys::IndexBuildResult {
    // SAFETY: PostgreSQL passes the table and the new, empty index, both
    // locked so that nobody else uses the index.
    unsafe {
        let opclass = OpClass::of(index);
        let source = Source {
            heap,
            index,
            info,
            opclass,
            dimensions: column_dimensions(index, opclass),
        };
        progress::begin(Phase::Sampling, 0);
        let mut training = train::train(&source);
        let (sort, counts) = assign::assign_rows(&source, &mut training);
        progress::begin(Phase::Writing, counts.indexed);
        let store = RelationStore::create(index, pg_sys::ForkNumber::MAIN_FORKNUM);
        write_index(&store, &source, &training, Some(sort));
        store.log_all();

        let mut result = PgBox::<pg_sys::IndexBuildResult>::alloc0();
        result.heap_tuples = counts.read;
        result.index_tuples = counts.indexed as f64;
        result.into_pg()
    }
}

/// Writes the init fork of an unlogged index: an index of no rows.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn ambuildempty(index: pg_sys::Relation) {
    // SAFETY: PostgreSQL passes the new index, which nobody else uses. There
    // is no table to read from, and nothing reads it.
    unsafe {
        let opclass = OpClass::of(index);
        let source = Source {
            heap: std::ptr::null_mut(),
            index,
            info: std::ptr::null_mut(),
            opclass,
            dimensions: column_dimensions(index, opclass),
        };
        let store = RelationStore::create(index, pg_sys::ForkNumber::INIT_FORKNUM);
        write_index(&store, &source, &Training::none(&source), None);
        store.log_all();
    }
}

/// The number of dimensions that the indexed column declares.
///
/// # Safety
/// `index` must be an open index of `opclass`.
unsafe fn column_dimensions(index: pg_sys::Relation, opclass: &OpClass) -> u32 {
    // SAFETY: the caller's promise; the descriptor lives as long as the relation.
    let typmod = unsafe {
        let columns = PgTupleDesc::from_pg_unchecked((*index).rd_att);
        columns.get(0).map_or(-1, |column| column.atttypmod)
    };
    let Ok(dimensions @ 1..) = u32::try_from(typmod) else {
        Report::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "column does not have dimensions",
        )
        .detail("A faiss_ivf index needs to know the number of dimensions of its vectors.")
        .hint("Declare the column with them, for example as vector(768), or index an expression that casts to such a type.")
        .raise();
    };
    if dimensions > opclass.max_dimensions {
        Report::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!(
                "column cannot have more than {} dimensions for faiss_ivf index",
                opclass.max_dimensions
            ),
        )
        .detail(format!("The column has {dimensions} dimensions."))
        .raise();
    }
    dimensions
}

/// Writes all pages of a new index: the meta page, the centroids, the recall curve, the
/// lists, and at last their directory.
///
/// # Safety
/// The index must be open, and nobody else may use it.
unsafe fn write_index(
    store: &RelationStore,
    source: &Source,
    training: &Training,
    sort: Option<ListSort>,
) {
    let mut meta = Meta {
        dimensions: source.dimensions,
        distance: source.opclass.distance,
        element: source.opclass.element,
        factory: training.coding.factory().to_string(),
        code_dimensions: training.coding.code_dim() as u32,
        layout: training.layout,
        lists: training.count,
        generation: 1,
        stamp: random_stamp(),
        training_rows: training.rows,
        // SAFETY: reads the clock.
        trained_at: unsafe { pg_sys::GetCurrentTimestamp() },
        centroids: Extent::NONE,
        directory: Extent::NONE,
        state: Extent::NONE,
        recall: Extent::NONE,
    };
    // SAFETY: the caller's promise.
    unsafe {
        store.append(&meta.to_page()).or_raise(source.index);
        // Not copied, as the sort may hold all memory but theirs.
        let centroids = training.lists.centroids.as_slice();
        let centroids =
            std::slice::from_raw_parts(centroids.as_ptr().cast::<u8>(), size_of_val(centroids));
        meta.centroids = write_extent(store, PageKind::Centroids, centroids).or_raise(source.index);
        let state = training.coding.state();
        meta.state = write_extent(store, PageKind::State, &state).or_raise(source.index);
        if training.count > 1 {
            let curve = (training.held_back).curve(source.opclass, &training.lists);
            meta.recall = (curve.or_raise(source.index).append(store)).or_raise(source.index);
        }
        let mut writer = ListWriter::new(store, meta.layout);
        if let Some(mut sort) = sort {
            let mut written = 0;
            while let Some(pushed) = sort.next(|list, tid, code| writer.push(list, tid, code)) {
                pushed.or_raise(source.index);
                written += 1;
                if written % PROGRESS_STEP == 0 {
                    check_for_interrupts!();
                    progress::set_done(written);
                }
            }
            progress::set_done(written);
        }
        let entries = writer.finish(training.count).or_raise(source.index);
        meta.directory = write_directory(store, &entries).or_raise(source.index);
        meta.write(store).or_raise(source.index);
    }
}

pub(super) fn random_stamp() -> u64 {
    let mut stamp = [0; 8];
    // SAFETY: fills the eight bytes.
    let is_random = unsafe { pg_sys::pg_strong_random(stamp.as_mut_ptr().cast(), stamp.len()) };
    if !is_random {
        Report::new(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            "could not generate a random number",
        )
        .raise();
    }
    u64::from_ne_bytes(stamp)
}
