//! Options of an index (`WITH (...)`) and settings of a session.

use std::cell::Cell;
use std::mem::offset_of;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_guard, pg_sys};

/// The greatest number of lists.
pub(super) const MAX_LISTS: i32 = 65_536;

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
static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::StrictOrder);

/// Options of an index, as PostgreSQL keeps them in `rd_options`.
#[repr(C)]
struct IndexOptions {
    varlena_header: i32,
    /// Number of lists, 0 to choose by the number of rows.
    lists: i32,
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
        c"0 chooses by the number of lists of the index.",
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
        OPTION_KIND.set(kind);
    }
}

/// What a scan does when its first lists are used up.
pub(super) fn iterative_scan() -> IterativeScan {
    ITERATIVE_SCAN.get()
}

/// How many of `lists` lists a scan reads first.
///
/// The default is 1.5 sqrt(lists): in data that are clustered like embeddings
/// of text it finds some 95% of the ten nearest, and the centroids are not
/// more work to rank than the lists are to scan.
pub(super) fn nprobe(lists: u32) -> u32 {
    match NPROBE.get() {
        0 => (1.5 * f64::from(lists).sqrt()).ceil() as u32,
        nprobe => nprobe as u32,
    }
    .clamp(1, lists)
}

/// How many of `lists` lists a scan reads at most.
pub(super) fn max_probes(lists: u32) -> u32 {
    let first = nprobe(lists);
    match (iterative_scan(), MAX_PROBES.get()) {
        (IterativeScan::Off, _) => first,
        (_, 0) => lists,
        (_, most) => (most as u32).clamp(first, lists),
    }
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
    let elements = [pg_sys::relopt_parse_elt {
        optname: c"lists".as_ptr(),
        opttype: pg_sys::relopt_type::RELOPT_TYPE_INT,
        offset: offset_of!(IndexOptions, lists) as i32,
        ..Default::default()
    }];
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
