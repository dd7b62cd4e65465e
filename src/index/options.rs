//! Options of an index (`WITH (...)`) and settings of a session.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::mem::offset_of;

use faiss_ivf::Factory;
use ivf_store::ListLayout;
use pgrx::{
    GucContext, GucFlags, GucRegistry, GucSetting, PgSqlErrorCode, PostgresGucEnum, pg_guard,
    pg_sys,
};

use super::opclass::OpClass;
use super::report::Report;
use super::trained::layout_codes;

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
    /// Where the factory string lies, from the begin of the options; 0 if there is none.
    factory: i32,
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
        pg_sys::add_string_reloption(
            kind,
            c"factory".as_ptr(),
            c"FAISS's factory string: transform, inverted lists, code and refinement".as_ptr(),
            std::ptr::null(),
            Some(check_factory),
            pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE,
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
    // SAFETY: the caller's promise.
    let option = unsafe { options_of(index) };
    option.map_or(DEFAULT_TARGET_RECALL, |options| options.target_recall)
}

/// The options of an index, `None` if there are none.
///
/// # Safety
/// `index` must be an open index of this access method.
unsafe fn options_of<'a>(index: pg_sys::Relation) -> Option<&'a IndexOptions> {
    // SAFETY: the caller's promise; amoptions made what is there.
    unsafe { (*index).rd_options.cast::<IndexOptions>().as_ref() }
}

/// The factory string of an index, if there is one.
///
/// # Safety
/// As for [`options_of`].
unsafe fn factory_option(index: pg_sys::Relation) -> Option<Factory> {
    // SAFETY: the caller's promise; a string lies behind the options and ends in NUL.
    unsafe {
        let options = options_of(index)?;
        let offset = usize::try_from(options.factory).ok().filter(|at| *at > 0)?;
        let string = std::ptr::from_ref(options).cast::<c_char>().add(offset);
        Some(parse_factory(CStr::from_ptr(string)))
    }
}

/// What the lists of an index hold: the option, else the default for vectors of `dim`
/// dimensions.
///
/// # Safety
/// As for [`options_of`].
pub(super) unsafe fn factory(index: pg_sys::Relation, opclass: &OpClass, dim: u32) -> Factory {
    // SAFETY: the caller's promise.
    let option = unsafe { factory_option(index) };
    let factory = option.unwrap_or_else(|| default_factory(opclass, dim));
    let with_copies = factory.with_copies();
    match dim >= MIN_CODED_DIMENSIONS && fits(&with_copies, opclass, dim) {
        true => with_copies,
        false => factory,
    }
}

/// Whether such entries fit into pages.
fn fits(factory: &Factory, opclass: &OpClass, dim: u32) -> bool {
    ListLayout::new(layout_codes(factory, opclass, dim as usize)).is_some()
}

/// Vectors of fewer dimensions are stored as they are where nobody says anything else, and
/// without copies: few signs say little, and the vectors are not much longer.
const MIN_CODED_DIMENSIONS: u32 = 64;

/// What the lists hold where nobody says it.
fn default_factory(opclass: &OpClass, dim: u32) -> Factory {
    if dim < MIN_CODED_DIMENSIONS {
        Factory::FLAT
    } else if fits(&Factory::DEFAULT, opclass, dim) {
        Factory::DEFAULT
    } else {
        Factory::DEFAULT_FOR_LONG
    }
}

fn parse_factory(string: &CStr) -> Factory {
    let string = string.to_string_lossy();
    string
        .parse()
        .unwrap_or_else(|error: faiss_ivf::FactoryError| {
            Report::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                error.to_string(),
            )
            .hint(error.hint())
            .raise()
        })
}

#[pg_guard]
unsafe extern "C-unwind" fn check_factory(string: *const c_char) {
    if string.is_null() {
        return;
    }
    // SAFETY: PostgreSQL passes a string that ends in NUL.
    let factory = parse_factory(unsafe { CStr::from_ptr(string) });
    if factory.lists.is_some_and(|lists| lists > MAX_LISTS as u32) {
        Report::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("a faiss_ivf index has at most {MAX_LISTS} lists"),
        )
        .raise();
    }
}

/// How many lists an index of `rows` rows should have: the option or the factory
/// string, else a thousandth of the rows up to a million and their square root beyond.
///
/// # Safety
/// As for [`options_of`].
pub(super) unsafe fn lists(index: pg_sys::Relation, rows: f64) -> u32 {
    // SAFETY: the caller's promise.
    let (option, factory) = unsafe { (options_of(index), factory_option(index)) };
    let option = option.map_or(0, |options| options.lists as u32);
    let named = factory.and_then(|factory| factory.lists);
    match (option, named) {
        (0, None) if rows <= 1e6 => ((rows / 1000.0).round() as u32).max(1),
        (0, None) => (rows.sqrt().round() as u32).min(MAX_LISTS as u32),
        (0, Some(named)) => named,
        (option, Some(named)) if option != named => Report::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("option \"lists\" is {option}, but the factory string has {named} lists"),
        )
        .hint("Leave one of them out.")
        .raise(),
        (option, _) => option,
    }
}

#[cfg_attr(
    not(feature = "pg18"),
    expect(
        clippy::needless_update,
        reason = "the elements have a further field since 18"
    )
)]
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
        pg_sys::relopt_parse_elt {
            optname: c"factory".as_ptr(),
            opttype: pg_sys::relopt_type::RELOPT_TYPE_STRING,
            offset: offset_of!(IndexOptions, factory) as i32,
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
