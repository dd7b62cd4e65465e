//! From a table to the centroids of its index.

use faiss_ivf::{Coding, Factory, FaissError, KMeans, kmeans};
use ivf_store::ListLayout;
use pgrx::{PgSqlErrorCode, check_for_interrupts, pg_sys};

use super::progress::{self, Phase};
use super::workers;
use crate::index::options;
use crate::index::recall::Queries;
use crate::index::report::{OrRaise, Report, relation_name};
use crate::index::sample::Source;
use crate::index::trained::{Lists, layout_codes};

/// Sampled rows for each list, unless memory allows fewer.
const ROWS_PER_LIST: u64 = 64;
/// Samples of small indexes have at least so many rows.
const MIN_SAMPLE_ROWS: u64 = 10_000;
/// Rows with which recall is measured: with so many the standard error of a recall of
/// 0.95 is some 0.7%.
const HELD_BACK_ROWS: usize = 256;
const ITERATIONS: usize = 10;
/// Copies of the centroids when k-means ends: in the clustering, in the index that it
/// searches, and the result.
const CENTROID_COPIES: u64 = 3;
/// Bytes beside the vector of a sampled row: where it is from, and the list and the
/// distance that k-means finds for it.
const ROW_NOTES: u64 = 20;
const SEED: u64 = 20_260_101;

/// What a build has learned from its sample.
pub(super) struct Training {
    /// Number of lists.
    pub count: u32,
    pub lists: Lists,
    pub coding: Coding,
    pub layout: ListLayout,
    /// Rows of the sample, 0 if there was no training.
    pub rows: u64,
    /// Rows that the centroids were not made from, to measure recall with.
    pub held_back: Queries,
}

impl Training {
    /// One list without a centroid, which takes every row as it is.
    pub fn none(source: &Source) -> Self {
        let (opclass, dim) = (source.opclass, source.dimensions as usize);
        let coding = Coding::flat(opclass.metric(), dim, opclass.codec());
        Self {
            count: 1,
            lists: Lists::new(opclass.metric(), dim, Vec::new()),
            layout: layout(source, coding.factory()),
            coding,
            rows: 0,
            held_back: Queries::none(),
        }
    }
}

/// How the entries of an index lie in pages, or an ERROR if they do not fit.
fn layout(source: &Source, factory: &Factory) -> ListLayout {
    let codes = layout_codes(factory, source.opclass, source.dimensions as usize);
    ListLayout::new(codes).unwrap_or_else(|| {
        Report::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!(
                "vectors of {} dimensions are too long for \"{factory}\"",
                source.dimensions
            ),
        )
        .detail("An entry, or a block of 32 codes, must fit into a page.")
        .hint("Choose another factory string, for example one with SQ8.")
        .raise()
    })
}

/// Raises an ERROR: vectors of so many dimensions cannot be coded so.
fn report_misfit(factory: &Factory, source: &Source, error: &FaissError) -> ! {
    Report::new(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        format!(
            "factory string \"{factory}\" does not fit vectors of {} dimensions",
            source.dimensions
        ),
    )
    .detail(error.to_string())
    .raise()
}

/// Finds the centroids for an index on the table of `source`, and what its codes need.
///
/// # Safety
/// The relations of `source` must be open and locked for building the index.
pub(super) unsafe fn train(source: &Source) -> Training {
    // SAFETY: the caller's promise.
    unsafe {
        let factory = options::factory(source.index, source.opclass, source.dimensions);
        let dim = source.dimensions as usize;
        if let Err(error) = Coding::check(&factory, dim) {
            report_misfit(&factory, source, &error);
        }
        let layout = layout(source, &factory);
        let expected = source.estimate_rows();
        let wanted = options::lists(source.index, expected);
        if expected == 0.0 {
            report_untrained(source, wanted);
            return Training::none(source);
        }
        if wanted == 1 {
            return Training::none(source);
        }
        let capacity = sample_capacity(source, wanted);
        let least = wanted.saturating_add(HELD_BACK_ROWS as u32);
        let mut sample = source.draw_and_tell(expected, capacity, least, &progress::set_blocks);
        sample.leave_out_outliers();
        let spare = sample.tids.len().saturating_sub(wanted as usize);
        let held_back = sample.hold_back((sample.tids.len() / 10).min(HELD_BACK_ROWS).min(spare));
        let rows = sample.tids.len();
        if rows == 0 {
            report_untrained(source, wanted);
            return Training::none(source);
        }
        let count = wanted.min(rows as u32);
        if count < wanted {
            report_few_rows(source, wanted, rows);
        }
        if count <= 1 {
            return Training::none(source);
        }
        let (coding, lists) = learn(source, &factory, count, sample.vectors).or_raise(source.index);
        Training {
            count,
            held_back: Queries::new(source.opclass, source.dimensions, held_back, &coding)
                .or_raise(source.index),
            lists,
            coding,
            layout,
            rows: rows as u64,
        }
    }
}

/// Codes and centroids of `count` lists from a sample `(rows, dimensions)`.
fn learn(
    source: &Source,
    factory: &Factory,
    count: u32,
    mut sample: Vec<f32>,
) -> Result<(Coding, Lists), FaissError> {
    let (opclass, dim) = (source.opclass, source.dimensions as usize);
    let (metric, flat) = (opclass.metric(), opclass.codec());
    // SAFETY: the table is open.
    let _threads = Threads::of(unsafe { workers::helpers(source.heap) });
    progress::begin(Phase::Learning, 0);
    let mut coding = Coding::train(factory, metric, dim, flat, &mut sample, &handle_interrupts)?;
    let code_dim = coding.code_dim();
    let rows = sample.len() / code_dim;
    let options = KMeans {
        clusters: count as usize,
        iterations: ITERATIONS,
        seed: SEED,
        spherical: metric == faiss_ivf::Metric::InnerProduct,
        max_points_per_cluster: rows.div_ceil(count as usize),
    };
    progress::begin(Phase::Clustering, ITERATIONS as u64);
    let centroids = kmeans(
        &options,
        code_dim,
        &sample,
        &handle_interrupts,
        &mut |iteration| progress::set_done(iteration as u64),
    )?;
    progress::begin(Phase::Learning, 0);
    coding.train_codes(&mut sample, &centroids, &handle_interrupts)?;
    Ok((coding, Lists::new(metric, code_dim, centroids)))
}

/// Threads that FAISS may use, that of the backend included. One again when dropped.
struct Threads;

impl Threads {
    fn of(helpers: usize) -> Self {
        faiss_ivf::set_threads(1 + helpers);
        Self
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        faiss_ivf::set_threads(1);
    }
}

/// Does what interrupts ask for. A cancel leaves as a panic, which k-means
/// carries over the frames of FAISS; the others let the build go on.
fn handle_interrupts() -> bool {
    check_for_interrupts!();
    false
}

/// How many rows may be sampled: half of `maintenance_work_mem` is for them, or what
/// the centroids leave of it.
///
/// # Safety
/// As for [`train`].
unsafe fn sample_capacity(source: &Source, lists: u32) -> u64 {
    let lists = u64::from(lists);
    let vector = u64::from(source.dimensions) * size_of::<f32>() as u64;
    let (row, centroids) = (vector + ROW_NOTES, lists * vector * CENTROID_COPIES);
    // SAFETY: a backend reads its own setting, which is in kilobytes.
    let memory = unsafe { pg_sys::maintenance_work_mem } as u64 * 1024;
    let most = (memory / 2).min(memory.saturating_sub(centroids)) / row;
    if most < lists {
        // SAFETY: the caller's promise.
        let name = unsafe { relation_name(source.index) };
        let least = lists * row + centroids.max(lists * row);
        Report::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("maintenance_work_mem is too small to build index \"{name}\""),
        )
        .detail(format!(
            "Finding {lists} centroids of {} dimensions takes at least {} MB.",
            source.dimensions,
            least.div_ceil(1 << 20)
        ))
        .hint("Increase maintenance_work_mem or create the index with fewer lists.")
        .raise();
    }
    (lists * ROWS_PER_LIST).max(MIN_SAMPLE_ROWS).min(most)
}

/// # Safety
/// As for [`train`].
unsafe fn report_untrained(source: &Source, wanted: u32) {
    // SAFETY: the caller's promise.
    let name = unsafe { relation_name(source.index) };
    Report::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!("index \"{name}\" was created without rows to learn from"),
    )
    .detail(match wanted {
        1 => "It has one list, which every search reads whole.".to_owned(),
        _ => format!("It has one list instead of {wanted}, which every search reads whole."),
    })
    .hint("Answers are exact. When the table is filled, REINDEX makes searches faster.")
    .notice();
}

/// # Safety
/// As for [`train`].
unsafe fn report_few_rows(source: &Source, wanted: u32, rows: usize) {
    // SAFETY: the caller's promise.
    let name = unsafe { relation_name(source.index) };
    Report::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!("index \"{name}\" was created with {rows} lists instead of {wanted}"),
    )
    .detail("There are no more rows to learn from.")
    .hint("When the table has more rows, REINDEX makes searches faster.")
    .notice();
}
