//! `faiss_ivf`, an index access method: inverted lists whose distances FAISS
//! computes and whose pages PostgreSQL keeps.
//!
//! The vectors of a table are divided among lists by the nearest of a number of
//! centroids, which k-means finds when the index is built. A search ranks the
//! centroids by their distance to the query and scans the lists of the nearest.
//! `handler` maps PostgreSQL's callbacks to the files here; `storage` is the
//! only one that touches buffers; `docs/disk-format.md` has the pages.

mod admin;
mod build;
mod calibrate;
mod candidates;
mod cost;
mod exact;
#[cfg(feature = "pg18")]
mod explain;
mod handler;
mod insert;
mod list_reading;
mod opclass;
mod options;
mod probes;
mod random;
mod ranking;
mod recall;
mod report;
mod sample;
mod scan;
mod statistics;
mod storage;
mod trained;
mod vacuum;
mod validate;
mod vector;
mod work;

use pgrx::PgSqlErrorCode;

pgrx::extension_sql_file!(
    "../../sql/index.sql",
    name = "index",
    requires = [
        handler::faiss_ivf_handler,
        opclass::faiss_ivf_vector_l2,
        opclass::faiss_ivf_vector_ip,
        opclass::faiss_ivf_vector_cosine,
        opclass::faiss_ivf_halfvec_l2,
        opclass::faiss_ivf_halfvec_ip,
        opclass::faiss_ivf_halfvec_cosine
    ]
);

pgrx::extension_sql_file!(
    "../../sql/recall.sql",
    name = "recall",
    requires = [
        "index",
        calibrate::sight_index_calibrate,
        admin::sight_index_prewarm,
        statistics::sight_index_stats,
        work::sight_index_last_scan
    ]
);

/// Prepares the access method when the library is loaded.
pub(crate) fn init() {
    if let Err(unsupported) = faiss_ivf::init() {
        report::Report::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "pg_sight cannot run on this processor",
        )
        .detail(format!(
            "The processor lacks: {}.",
            unsupported.missing.join(", ")
        ))
        .hint("Build pg_sight for the processor it is to run on.")
        .raise();
    }
    options::define();
    #[cfg(feature = "pg18")]
    explain::init();
}
