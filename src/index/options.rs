//! Options of an index (`WITH (...)`) and settings of a session.

use std::cell::Cell;
use std::mem::offset_of;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_guard, pg_sys};

/// The greatest number of lists.
pub(super) const MAX_LISTS: i32 = 65_536;

/// Of the nearest rows a scan should find this share, where nobody says another.
const DEFAULT_TARGET_RECALL: f64 = 0.95;

/// What a scan does when its first lists are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(super) enum IterativeScan {
    /// It ends.
    #[name = c"off"]
    Off,
    /// It goes on to further lists and returns what it finds there, although
    /// that may be nearer than what was returned before.
    #[name = c"relaxed_order"]
    RelaxedOrder,
    /// It goes on, and leaves out what is nearer than what was returned before.
    #[name = c"strict_order"]
    StrictOrder,
}

static NPROBE: GucSetting<i32> = GucSetting::<i32>::new(0);
static MAX_PROBES: GucSetting<i32> = GucSetting::<i32>::new(0);
static MAX_SCAN_TUPLES: GucSetting<i32> = GucSetting::<i32>::new(0);
static TARGET_RECALL: GucSetting<f64> = GucSetting::<f64>::new(0.0);
static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::StrictOrder);

/// Options of an index, as PostgreSQL keeps them in `rd_options`.
#[repr(C)]
struct IndexOptions {
    varlena_header: i32,
    /// Number of lists, 0 to choose by the number of rows.
    lists: i32,
    /// The share of the nearest rows that a scan should find.
    target_recall: f64,
}

thread_local! {
    /// The kind of options that PostgreSQL gave us, for this backend.
    static OPTION_KIND: Cell<pg_sys::relopt_kind::Type> = const { Cell::new(0) };
}

/// Defines options and settings.
pub(super) fn define() {
    GucRegistry::define_int_guc(
        c"faiss_ivf.nprobe",
        c"Number of lists that a scan of a faiss_ivf index reads first.",
        c"0 reads as many as faiss_ivf.target_recall takes.",
        &NPROBE,
        0,
        MAX_LISTS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"faiss_ivf.max_probes",
        c"Number of lists at which an iterative scan of a faiss_ivf index ends.",
        c"0 lets it go on to all lists.",
        &MAX_PROBES,
        0,
        MAX_LISTS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"faiss_ivf.max_scan_tuples",
        c"Number of rows after which an iterative scan of a faiss_ivf index reads no further lists.",
        c"0 lets it go on to all rows.",
        &MAX_SCAN_TUPLES,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"faiss_ivf.target_recall",
        c"Share of the nearest rows that a scan of a faiss_ivf index should find.",
        c"It reads as few lists as the index has learnt that this takes. 0 takes the option of the index.",
        &TARGET_RECALL,
        0.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"faiss_ivf.iterative_scan",
        c"What a scan of a faiss_ivf index does when its first lists are used up.",
        c"strict_order goes on and keeps the order of distances, relaxed_order goes on and returns late rows too, off ends.",
        &ITERATIVE_SCAN,
        GucContext::Userset,
        GucFlags::default(),
    );
    // SAFETY: constants that end in NUL; called once when the library is loaded.
    unsafe {
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(c"faiss_ivf".as_ptr());
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(c"faiss_ivf".as_ptr());
        let kind = pg_sys::add_reloption_kind();
        pg_sys::add_int_reloption(
            kind,
            c"lists".as_ptr(),
            c"Number of inverted lists".as_ptr(),
            0,
            1,
            MAX_LISTS,
            pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE,
        );
        pg_sys::add_real_reloption(
            kind,
            c"target_recall".as_ptr(),
            c"Share of the nearest rows that a scan should find".as_ptr(),
            DEFAULT_TARGET_RECALL,
            0.0,
            1.0,
            pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE,
        );
        OPTION_KIND.set(kind);
    }
}

/// What a scan does when its first lists are used up.
pub(super) fn iterative_scan() -> IterativeScan {
    ITERATIVE_SCAN.get()
}

/// How many lists a scan reads first, where a setting says it.
pub(super) fn nprobe() -> Option<u32> {
    u32::try_from(NPROBE.get())
        .ok()
        .filter(|nprobe| *nprobe > 0)
}

/// How many lists a scan reads at most, where a setting says it.
pub(super) fn max_probes() -> Option<u32> {
    u32::try_from(MAX_PROBES.get())
        .ok()
        .filter(|most| *most > 0)
}

/// How many rows a scan computes the distances of before it reads no further lists.
pub(super) fn max_scan_tuples() -> Option<u64> {
    let most = u64::try_from(MAX_SCAN_TUPLES.get()).ok();
    most.filter(|most| *most > 0)
}

/// The share of the nearest rows that a scan should find: the setting, else the option
/// of the index.
///
/// # Safety
/// `index` must be an open index of this access method.
pub(super) unsafe fn target_recall(index: pg_sys::Relation) -> f64 {
    let setting = TARGET_RECALL.get();
    if setting > 0.0 {
        return setting;
    }
    // SAFETY: the caller's promise; amoptions made what is there.
    let option = unsafe { (*index).rd_options.cast::<IndexOptions>().as_ref() };
    option.map_or(DEFAULT_TARGET_RECALL, |options| options.target_recall)
}

/// How many lists an index of `rows` rows should have: the option, else a
/// thousandth of the rows up to a million and their square root beyond.
///
/// # Safety
/// `index` must be an open index of this access method.
pub(super) unsafe fn lists(index: pg_sys::Relation, rows: f64) -> u32 {
    // SAFETY: the caller's promise; amoptions made what is there.
    let option = unsafe { (*index).rd_options.cast::<IndexOptions>().as_ref() };
    match option.map_or(0, |options| options.lists) {
        0 if rows <= 1e6 => ((rows / 1000.0).round() as u32).max(1),
        0 => (rows.sqrt().round() as u32).min(MAX_LISTS as u32),
        lists => lists as u32,
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amoptions(
    reloptions: pg_sys::Datum,
    validate: bool,
) -> *mut pg_sys::bytea {
    let elements = [
        pg_sys::relopt_parse_elt {
            optname: c"lists".as_ptr(),
            opttype: pg_sys::relopt_type::RELOPT_TYPE_INT,
            offset: offset_of!(IndexOptions, lists) as i32,
            ..Default::default()
        },
        pg_sys::relopt_parse_elt {
            optname: c"target_recall".as_ptr(),
            opttype: pg_sys::relopt_type::RELOPT_TYPE_REAL,
            offset: offset_of!(IndexOptions, target_recall) as i32,
            ..Default::default()
        },
    ];
    // SAFETY: the elements describe IndexOptions.
    unsafe {
        pg_sys::build_reloptions(
            reloptions,
            validate,
            OPTION_KIND.get(),
            size_of::<IndexOptions>(),
            elements.as_ptr(),
            elements.len() as i32,
        )
        .cast()
    }
}
