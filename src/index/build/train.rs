//! From a table to the centroids of its index.

use faiss_ivf::{KMeans, kmeans};
use pgrx::{PgSqlErrorCode, check_for_interrupts, pg_sys};

use super::progress::{self, Phase};
use super::recall::HeldBack;
use super::sample::Source;
use crate::index::options;
use crate::index::report::{OrRaise, Report, relation_name};

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
    pub lists: u32,
    /// `(lists, dimensions)`, empty for a single list.
    pub centroids: Vec<f32>,
    /// Rows of the sample, 0 if there was no training.
    pub rows: u64,
    /// Rows that the centroids were not made from, to measure recall with.
    pub held_back: HeldBack,
}

impl Training {
    /// One list without a centroid, which takes every row.
    pub fn none() -> Self {
        Self {
            lists: 1,
            centroids: Vec::new(),
            rows: 0,
            held_back: HeldBack::none(),
        }
    }
}

/// Finds the centroids for an index on the table of `source`.
///
/// # Safety
/// The relations of `source` must be open and locked for building the index.
pub(super) unsafe fn train(source: &Source) -> Training {
    // SAFETY: the caller's promise.
    unsafe {
        let expected = source.estimate_rows();
        let wanted = options::lists(source.index, expected);
        if expected == 0.0 {
            report_untrained(source, wanted);
            return Training::none();
        }
        if wanted == 1 {
            return Training::none();
        }
        let capacity = sample_capacity(source, wanted);
        let least = wanted.saturating_add(HELD_BACK_ROWS as u32);
        let mut sample = source.draw(expected, capacity, least);
        let spare = sample.tids.len().saturating_sub(wanted as usize);
        let held_back = sample.hold_back((sample.tids.len() / 10).min(HELD_BACK_ROWS).min(spare));
        let rows = sample.tids.len();
        let lists = wanted.min(rows as u32);
        if lists < wanted {
            report_few_rows(source, wanted, rows);
        }
        if lists <= 1 {
            return Training::none();
        }
        cluster(
            source,
            lists,
            &sample.vectors,
            HeldBack::new(source, held_back),
        )
    }
}

/// # Safety
/// As for [`train`].
unsafe fn cluster(source: &Source, lists: u32, sample: &[f32], held_back: HeldBack) -> Training {
    let dimensions = source.dimensions as usize;
    let rows = sample.len() / dimensions;
    let options = KMeans {
        clusters: lists as usize,
        iterations: ITERATIONS,
        seed: SEED,
        spherical: source.opclass.metric() == faiss_ivf::Metric::InnerProduct,
        max_points_per_cluster: rows.div_ceil(lists as usize),
    };
    progress::begin(Phase::Clustering, ITERATIONS as u64);
    let centroids = kmeans(
        &options,
        dimensions,
        sample,
        &handle_interrupts,
        &mut |iteration| progress::set_done(iteration as u64),
    );
    Training {
        lists,
        // SAFETY: the caller's promise.
        centroids: unsafe { centroids.or_raise(source.index) },
        rows: rows as u64,
        held_back,
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
