//! Pages of an index in PostgreSQL's buffers: the only place of the access
//! method that touches the buffer manager and the write-ahead log.
//!
//! An ERROR of PostgreSQL arrives here as a Rust panic, and the abort of the
//! transaction then gives back locks and pins by itself. The guards therefore
//! do nothing when they are dropped by a panic: a second release would be wrong.

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
mod bulk;
mod change;
mod page;
mod recent;

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
use ivf_store::PageBytes;
use ivf_store::{Block, PAGE_SIZE, PageStore, StoreError};
use pgrx::pg_sys;

use change::RelationChange;
use page::{PinnedBuffer, SharedPage};
pub(super) use recent::RecentBuffers;

const _: () = {
    assert!(pg_sys::BLCKSZ as usize == PAGE_SIZE);
    assert!(pg_sys::MAX_GENERIC_XLOG_PAGES as usize == ivf_store::MAX_CHANGED_PAGES);
    assert!(pg_sys::PG_PAGE_LAYOUT_VERSION == 4);
    assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_lower) == 12);
    assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_upper) == 14);
    assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_special) == 16);
    assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_pagesize_version) == 18);
};

/// `ReadBuffer`'s request for a new block at the end of the relation.
const P_NEW: Block = pg_sys::InvalidBlockNumber;

/// PostgreSQL's `InvalidSubTransactionId`.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// How changes of pages reach the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logging {
    /// One generic WAL record for each change.
    EachChange,
    /// Nothing until [`RelationStore::log_all`]: for an index being built.
    AtEnd,
}

/// The pages of one fork of an index relation.
pub(super) struct RelationStore {
    relation: pg_sys::Relation,
    fork: pg_sys::ForkNumber::Type,
    strategy: pg_sys::BufferAccessStrategy,
    logging: Logging,
    known_blocks: Cell<Block>,
    recent: Option<Rc<RecentBuffers>>,
}

impl RelationStore {
    /// The pages of an index in use.
    ///
    /// # Safety
    /// `relation` must be an open index, locked at least for access, for as
    /// long as the store lives.
    pub unsafe fn open(relation: pg_sys::Relation) -> Self {
        Self {
            relation,
            fork: pg_sys::ForkNumber::MAIN_FORKNUM,
            strategy: std::ptr::null_mut(),
            logging: Logging::EachChange,
            known_blocks: Cell::new(0),
            recent: None,
        }
    }

    /// The same pages, looked for first where they were found last.
    pub fn with_recent(self, recent: &Rc<RecentBuffers>) -> Self {
        Self {
            recent: Some(Rc::clone(recent)),
            ..self
        }
    }

    /// As [`Self::open`], reading through a buffer access strategy.
    ///
    /// # Safety
    /// As for [`Self::open`]; `strategy` must be null or valid as long.
    pub unsafe fn open_with_strategy(
        relation: pg_sys::Relation,
        strategy: pg_sys::BufferAccessStrategy,
    ) -> Self {
        Self {
            strategy,
            // SAFETY: the caller's promise.
            ..unsafe { Self::open(relation) }
        }
    }

    /// The pages of a fork that is being written for the first time. Nothing
    /// is logged until [`Self::log_all`].
    ///
    /// # Safety
    /// As for [`Self::open`], and nobody else may use the fork.
    pub unsafe fn create(relation: pg_sys::Relation, fork: pg_sys::ForkNumber::Type) -> Self {
        Self {
            fork,
            logging: Logging::AtEnd,
            // SAFETY: the caller's promise.
            ..unsafe { Self::open(relation) }
        }
    }

    /// How many pages are best asked for before they are read.
    pub fn read_ahead(&self) -> usize {
        // SAFETY: a backend reads its own setting.
        usize::try_from(unsafe { pg_sys::effective_io_concurrency }).unwrap_or(0)
    }

    /// Asks the system to read `block`, which will be read soon, if it is in no buffer;
    /// whether it did.
    pub fn prefetch(&self, block: Block) -> bool {
        let recent = self.recent.as_ref();
        if recent.is_some_and(|recent| recent.is_at_hand(block)) {
            return false;
        }
        if block >= self.known_blocks.get() && block >= self.block_count() {
            // It is an error when it is read.
            return false;
        }
        // SAFETY: the relation is open and the block exists.
        let found = unsafe { pg_sys::PrefetchBuffer(self.relation, self.fork, block) };
        if let Some(recent) = recent
            && found.recent_buffer != pg_sys::InvalidBuffer as pg_sys::Buffer
        {
            recent.remember(block, found.recent_buffer);
        }
        found.initiated_io
    }

    /// Brings parts of the page `block`, which will be read at once, into the processor's
    /// cache, if its buffer is known. What is brought may be another page by now, and nothing
    /// is done with it.
    pub fn touch(&self, block: Block, parts: impl IntoIterator<Item = Range<usize>>) {
        let recent = self.recent.as_ref();
        if let Some(buffer) = recent.and_then(|recent| recent.known(block)) {
            // SAFETY: what is remembered was given out.
            unsafe { page::touch(buffer, parts) };
        }
    }

    /// Writes all pages of the fork into the write-ahead log, if the relation
    /// or its init fork needs that.
    pub fn log_all(&self) {
        let is_init = self.fork == pg_sys::ForkNumber::INIT_FORKNUM;
        if is_init || self.needs_wal() {
            // SAFETY: the relation is open and all its pages are standard
            // pages, whose hole may be left out.
            unsafe {
                pg_sys::log_newpage_range(self.relation, self.fork, 0, self.block_count(), true);
            }
        }
    }

    /// PostgreSQL's `RelationNeedsWAL`.
    fn needs_wal(&self) -> bool {
        // SAFETY: the relation is open.
        let relation = unsafe { &*self.relation };
        // SAFETY: an open relation has its row of pg_class.
        let persistence = unsafe { (*relation.rd_rel).relpersistence };
        // SAFETY: a backend reads its own setting.
        let wal_level = unsafe { pg_sys::wal_level };
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let new_file = relation.rd_firstRelfilenodeSubid;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let new_file = relation.rd_firstRelfilelocatorSubid;
        let is_older_than_transaction =
            relation.rd_createSubid == NO_SUBTRANSACTION && new_file == NO_SUBTRANSACTION;
        persistence == pg_sys::RELPERSISTENCE_PERMANENT as std::ffi::c_char
            && (wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32
                || is_older_than_transaction)
    }

    /// Pins `block`, which must exist.
    fn pin(&self, block: Block) -> Result<PinnedBuffer, StoreError> {
        let recent = self.recent.as_ref();
        if let Some(recent) = recent
            && let Some(buffer) = recent.find(block)
        {
            // SAFETY: the relation is open.
            let pinned = unsafe { PinnedBuffer::again(self.relation, self.fork, block, buffer) };
            if let Some(pinned) = pinned {
                return Ok(pinned);
            }
            recent.forget(block);
        }
        if block >= self.known_blocks.get() && block >= self.block_count() {
            return Err(StoreError::Corrupted {
                block,
                reason: "the block lies beyond the end of the index".to_owned(),
            });
        }
        // SAFETY: the relation is open and the block exists.
        let pinned = unsafe { PinnedBuffer::read(self.relation, self.fork, block, self.strategy) };
        if let Some(recent) = recent {
            recent.remember(block, pinned.id());
        }
        Ok(pinned)
    }
}

impl PageStore for RelationStore {
    type Page<'a> = SharedPage;
    type Change<'a> = RelationChange<'a>;

    fn block_count(&self) -> Block {
        // SAFETY: the relation is open.
        let blocks = unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, self.fork) };
        self.known_blocks.set(blocks);
        blocks
    }

    fn read(&self, block: Block) -> Result<SharedPage, StoreError> {
        Ok(self.pin(block)?.lock_shared())
    }

    fn change(&self) -> RelationChange<'_> {
        RelationChange::begin(self)
    }

    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    fn append_all(&self, pages: &[&PageBytes]) -> Result<Block, StoreError> {
        match self.logging {
            Logging::EachChange => ivf_store::append_each(self, pages),
            Logging::AtEnd => Ok(bulk::append(self, pages)),
        }
    }
}
