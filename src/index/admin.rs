//! Functions for those who look after an index: its relations opened for them, and
//! those that measure its recall or read it into memory.

use faiss_ivf::{CodeScanner, FaissError};
use ivf_store::{ListCursor, ListPage, Meta, PageStore, RecallCurve, Tid, list_entries};
use pgrx::iter::TableIterator;
use pgrx::{PgSqlErrorCode, check_for_interrupts, name, pg_extern, pg_sys};

use super::build::random_stamp;
use super::cache;
use super::opclass::OpClass;
use super::random::Random;
use super::recall::{NEIGHBOURS, Nearest, ranks};
use super::report::{OrRaise, Report, relation_name};
use super::statistics::rounded;
use super::storage::RelationStore;
use super::vector;

const ACCESS_METHOD: &[u8] = b"faiss_ivf";
/// Rows that a calibration takes for queries when it is given none.
const SAMPLED_QUERIES: u64 = 256;
/// Of the queries that are given to a calibration it takes at most so many, by chance:
/// each is compared with every row.
const MAX_QUERIES: u64 = 1000;

/// An index of this access method and its table, open and locked; closed with the
/// locks kept until the end of the transaction.
pub(super) struct OpenIndex {
    pub heap: pg_sys::Relation,
    pub index: pg_sys::Relation,
}

/// What somebody wants to do with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// For its owner and members of `pg_stat_scan_tables`.
    Look,
    /// For its owner.
    Change,
}

impl OpenIndex {
    /// Opens the index `oid`, or raises an ERROR.
    pub fn open(oid: pg_sys::Oid, access: Access) -> Self {
        let lock = match access {
            Access::Look => pg_sys::AccessShareLock,
            Access::Change => pg_sys::ShareUpdateExclusiveLock,
        } as pg_sys::LOCKMODE;
        // SAFETY: looks the relation up; the table is locked first, as everywhere.
        unsafe {
            check_kind(oid);
            check_rights(oid, access);
            let heap = pg_sys::IndexGetRelation(oid, false);
            let open = Self {
                heap: pg_sys::table_open(heap, lock),
                index: pg_sys::index_open(oid, lock),
            };
            open.check_usable();
            open
        }
    }

    pub fn store(&self) -> RelationStore {
        // SAFETY: the index is open as long as this.
        unsafe { RelationStore::open(self.index) }
    }

    /// # Safety
    /// Both relations must be open.
    unsafe fn check_usable(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let index = &*self.index;
            if !(*index.rd_index).indisvalid {
                Report::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("index \"{}\" is not valid", relation_name(self.index)),
                )
                .detail("It is being built, or a concurrent build of it has failed.")
                .hint("Wait for its build, or rebuild it with REINDEX.")
                .raise();
            }
            let persistence = (*index.rd_rel).relpersistence;
            if persistence == pg_sys::RELPERSISTENCE_TEMP as std::ffi::c_char
                && !index.rd_islocaltemp
            {
                Report::new(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "cannot access temporary indexes of other sessions",
                )
                .raise();
            }
        }
    }
}

impl Drop for OpenIndex {
    fn drop(&mut self) {
        // An ERROR closes them by itself.
        if !std::thread::panicking() {
            // SAFETY: they are open; the locks stay.
            unsafe {
                pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
                pg_sys::table_close(self.heap, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}

/// # Safety
/// Needs a transaction.
unsafe fn check_kind(oid: pg_sys::Oid) {
    // SAFETY: look-ups by oid; a name that is found ends in NUL.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        if name.is_null() {
            Report::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {} does not exist", oid.to_u32()),
            )
            .raise();
        }
        let name = std::ffi::CStr::from_ptr(name).to_string_lossy();
        let kind = pg_sys::get_rel_relkind(oid) as u8;
        if kind == pg_sys::RELKIND_PARTITIONED_INDEX {
            Report::new(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{name}\" is a partitioned index"),
            )
            .hint("Name the index of a partition; pg_partition_tree lists them.")
            .raise();
        }
        if kind != pg_sys::RELKIND_INDEX || !is_of_access_method(oid) {
            Report::new(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{name}\" is not a faiss_ivf index"),
            )
            .raise();
        }
    }
}

/// # Safety
/// `oid` must be that of an index; needs a transaction.
unsafe fn is_of_access_method(oid: pg_sys::Oid) -> bool {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the index is open as long as it is looked at; the name ends in NUL.
    unsafe {
        let index = pg_sys::relation_open(oid, lock);
        let method = pg_sys::get_am_name((*(*index).rd_rel).relam);
        pg_sys::relation_close(index, lock);
        !method.is_null() && std::ffi::CStr::from_ptr(method).to_bytes() == ACCESS_METHOD
    }
}

/// # Safety
/// Needs a transaction.
unsafe fn check_rights(oid: pg_sys::Oid, access: Access) {
    // SAFETY: look-ups by oid.
    let may = unsafe {
        let user = pg_sys::GetUserId();
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let owns = pg_sys::pg_class_ownercheck(oid, user);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let owns = pg_sys::object_ownercheck(pg_sys::RelationRelationId, oid, user);
        let scans = pg_sys::Oid::from(pg_sys::ROLE_PG_STAT_SCAN_TABLES);
        owns || (access == Access::Look && pg_sys::has_privs_of_role(user, scans))
    };
    if !may {
        let kind = pg_sys::ObjectType::OBJECT_INDEX;
        // SAFETY: as above.
        unsafe {
            pg_sys::aclcheck_error(
                pg_sys::AclResult::ACLCHECK_NOT_OWNER,
                kind,
                pg_sys::get_rel_name(oid),
            );
        }
    }
}

/// What looks at the pages of all lists.
pub(super) trait Visitor {
    /// A page of a list, under its share lock: whatever takes long must wait for
    /// [`Self::unlocked`].
    fn page(&mut self, list: u32, page: &ListPage<'_>);

    /// Called after each page, when its lock was given back.
    fn unlocked(&mut self) {}
}

impl<F: FnMut(u32, &ListPage<'_>)> Visitor for F {
    fn page(&mut self, list: u32, page: &ListPage<'_>) {
        self(list, page);
    }
}

/// Shows every page of every list to `visitor`.
pub(super) fn visit_pages(open: &OpenIndex, meta: &Meta, visitor: &mut impl Visitor) {
    let store = open.store();
    // SAFETY: the index is open.
    let entries = unsafe { list_entries(&store, &meta.directory, meta.lists).or_raise(open.index) };
    for (list, entry) in (0..).zip(entries) {
        let mut cursor = ListCursor::new(list, entry.first);
        loop {
            check_for_interrupts!();
            let more = cursor.advance(&store, meta.layout(), |page| visitor.page(list, page));
            // SAFETY: as above.
            if !unsafe { more.or_raise(open.index) } {
                break;
            }
            visitor.unlocked();
        }
    }
}

/// Queries whose exact neighbours are looked for in an index.
struct Queries {
    /// `(queries, dimensions)`, as they are compared.
    vectors: Vec<f32>,
    /// The row that each is of, if it is of one.
    tids: Vec<Option<Tid>>,
}

impl Queries {
    /// Those of an array of `vector`.
    ///
    /// # Safety
    /// `array` must be a `vector[]`.
    unsafe fn of_array(array: pg_sys::Datum, dimensions: u32, opclass: &OpClass) -> Self {
        let mut queries = Self {
            vectors: Vec::new(),
            tids: Vec::new(),
        };
        // SAFETY: the caller's promise; vector is a varlena aligned as an integer.
        let elements = unsafe {
            let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let (mut values, mut nulls, mut count) =
                (std::ptr::null_mut(), std::ptr::null_mut(), 0);
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
            let wanted = MAX_QUERIES.saturating_sub(queries.tids.len() as u64);
            if *is_null || random.below(count - seen) >= wanted {
                continue;
            }
            let vectors = &mut queries.vectors;
            // SAFETY: a vector that is not NULL.
            if unsafe { opclass.read_with(vector::read_vector, *value, dimensions, vectors) } {
                queries.tids.push(None);
            }
        }
        if queries.tids.is_empty() {
            Report::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "there are no query vectors",
            )
            .hint("Leave the argument out to take rows of the index.")
            .raise();
        }
        queries
    }

    /// Random rows of the index (algorithm R of Vitter, 1985).
    fn sample(open: &OpenIndex, meta: &Meta) -> Self {
        let mut random = Random::new(random_stamp());
        let size = meta.layout().code_size();
        let mut chosen: Vec<(Tid, Vec<u8>)> = Vec::new();
        let mut seen = 0;
        visit_pages(open, meta, &mut |_: u32, page: &ListPage<'_>| {
            for (entry, code) in page.codes().chunks_exact(size).enumerate() {
                let place = match seen {
                    few if few < SAMPLED_QUERIES => few,
                    _ => random.below(seen + 1),
                } as usize;
                seen += 1;
                let row = || (page.tid(entry), code.to_vec());
                if place == chosen.len() && seen <= SAMPLED_QUERIES {
                    chosen.push(row());
                } else if let Some(old) = chosen.get_mut(place) {
                    *old = row();
                }
            }
        });
        let mut queries = Self {
            vectors: Vec::new(),
            tids: Vec::new(),
        };
        // SAFETY: the index is open.
        let codec = unsafe { OpClass::of(open.index) }.codec();
        for (tid, code) in chosen {
            let decoded = codec.decode(meta.dimensions as usize, &code, &mut queries.vectors);
            // SAFETY: as above.
            unsafe { decoded.or_raise(open.index) };
            queries.tids.push(Some(tid));
        }
        queries
    }

    /// The exact nearest rows of each in the index.
    fn nearest(&self, open: &OpenIndex, meta: &Meta) -> Vec<Nearest> {
        // SAFETY: the index is open.
        let opclass = unsafe { OpClass::of(open.index) };
        let dimensions = meta.dimensions as usize;
        let scanners: Vec<Box<dyn CodeScanner>> = self
            .vectors
            .chunks_exact(dimensions)
            // SAFETY: as above.
            .map(|query| unsafe {
                opclass
                    .codec()
                    .scanner(opclass.metric(), query)
                    .or_raise(open.index)
            })
            .collect();
        let mut search = ExactSearch {
            opclass,
            code_size: meta.layout().code_size(),
            nearest: vec![Nearest::new(NEIGHBOURS); scanners.len()],
            scanners,
            own: &self.tids,
            list: 0,
            codes: Vec::new(),
            tids: Vec::new(),
            distances: Vec::new(),
            failed: Ok(()),
        };
        visit_pages(open, meta, &mut search);
        // SAFETY: as above.
        unsafe { search.failed.or_raise(open.index) };
        search.nearest
    }
}

/// Compares all entries with all queries: a copy of each page, when its lock was given
/// back.
struct ExactSearch<'a> {
    opclass: &'static OpClass,
    code_size: usize,
    scanners: Vec<Box<dyn CodeScanner>>,
    nearest: Vec<Nearest>,
    /// The rows of the queries.
    own: &'a [Option<Tid>],
    /// The page that was seen last.
    list: u32,
    codes: Vec<u8>,
    tids: Vec<Tid>,
    distances: Vec<f32>,
    failed: Result<(), FaissError>,
}

impl Visitor for ExactSearch<'_> {
    fn page(&mut self, list: u32, page: &ListPage<'_>) {
        self.list = list;
        self.codes.clear();
        self.codes.extend_from_slice(page.codes());
        self.tids.clear();
        self.tids
            .extend((0..page.len()).map(|entry| page.tid(entry)));
    }

    fn unlocked(&mut self) {
        debug_assert_eq!(self.codes.len(), self.tids.len() * self.code_size);
        let count = self.tids.len();
        self.distances.resize(count, 0.0);
        let searches = self.scanners.iter().zip(&mut self.nearest).zip(self.own);
        for ((scanner, nearest), own) in searches {
            check_for_interrupts!();
            if let Err(error) = scanner.scan(&self.codes, count, &mut self.distances) {
                self.failed = Err(error);
                return;
            }
            for (tid, &distance) in self.tids.iter().zip(&self.distances) {
                if *own != Some(*tid) {
                    nearest.offer(self.opclass.key(distance), self.list);
                }
            }
        }
    }
}

/// `sight_index_calibrate(index regclass, queries vector[])`: measures how many lists a
/// search must read, with these queries or with rows of the index, and keeps the result.
#[pg_extern(sql = "
CREATE FUNCTION sight_index_calibrate(
    index regclass, queries vector[] DEFAULT NULL,
    OUT nprobe integer,
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
    let store = open.store();
    // SAFETY: the index is open for all that follows.
    let curve = unsafe {
        let meta = Meta::read(&store).or_raise(open.index);
        let opclass = OpClass::of(open.index);
        let mut queries = match queries {
            Some(array) => Queries::of_array(array.datum(), meta.dimensions, opclass),
            None => Queries::sample(&open, &meta),
        };
        opclass
            .make_comparable(meta.dimensions as usize, &mut queries.vectors)
            .or_raise(open.index);
        let curve = if meta.lists > 1 {
            let nearest = queries.nearest(&open, &meta);
            let rows = queries.vectors.chunks_exact(meta.dimensions as usize);
            let mut all = Vec::with_capacity(nearest.len());
            for (query, nearest) in rows.zip(&nearest) {
                check_for_interrupts!();
                let found = cache::with_lists(open.index, &store, &meta, |lists| {
                    ranks(opclass, query, lists.centroids, nearest)
                });
                all.push(found.or_raise(open.index));
            }
            let curve = RecallCurve::measured(meta.lists, &all);
            (curve.replace(&store, &meta, random_stamp())).or_raise(open.index);
            curve
        } else {
            RecallCurve::unmeasured(1)
        };
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
                share(few.mean),
                share(few.error),
                share(many.mean),
                share(many.error),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// `sight_index_prewarm(index regclass) → bigint`: reads all pages of the index into the
/// buffers, as far as they have room, and returns how many there are.
#[pg_extern(sql = "
CREATE FUNCTION sight_index_prewarm(index regclass) RETURNS bigint
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn sight_index_prewarm(index: pg_sys::Oid) -> i64 {
    let open = OpenIndex::open(index, Access::Look);
    let store = open.store();
    let blocks = store.block_count();
    for block in 0..blocks {
        check_for_interrupts!();
        // SAFETY: the index is open.
        drop(unsafe { store.read(block).or_raise(open.index) });
    }
    i64::from(blocks)
}
