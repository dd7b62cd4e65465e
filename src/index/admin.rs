//! Functions for those who look after an index: its relations opened for them, and
//! those that measure its recall or read it into memory.

use ivf_store::{ListCursor, ListPage, Meta, PageStore, list_entries};
use pgrx::{PgSqlErrorCode, check_for_interrupts, pg_extern, pg_sys};

use super::report::{OrRaise, Report, relation_name};
use super::storage::RelationStore;

const ACCESS_METHOD: &[u8] = b"faiss_ivf";
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

    /// Raises an ERROR if reading rows of the table would run what another user has
    /// written into the index: its expressions and its predicate.
    pub fn check_code_of_owner(&self) {
        // SAFETY: the index is open.
        unsafe {
            let has_code = !pg_sys::RelationGetIndexExpressions(self.index).is_null()
                || !pg_sys::RelationGetIndexPredicate(self.index).is_null();
            if has_code && (*(*self.index).rd_rel).relowner != pg_sys::GetUserId() {
                Report::new(
                    PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                    format!("must be owner of index \"{}\"", relation_name(self.index)),
                )
                .detail("Its expressions and its predicate are code of its owner.")
                .hint("Use SET ROLE to become the owner.")
                .raise();
            }
        }
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
            let more = cursor.advance(&store, meta.layout, |page| visitor.page(list, page));
            // SAFETY: as above.
            if !unsafe { more.or_raise(open.index) } {
                break;
            }
            visitor.unlocked();
        }
    }
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
