use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::{Deref, Range};

use ivf_store::{Block, PageBytes};
use pgrx::pg_sys;

const CACHE_LINE: usize = 64;

/// A pinned buffer without a lock.
pub(in crate::index) struct PinnedBuffer(pg_sys::Buffer);

impl PinnedBuffer {
    /// # Safety
    /// `relation` must be open and have that block, or the block is `P_NEW`
    /// and the caller holds the relation's extension lock.
    pub(super) unsafe fn read(
        relation: pg_sys::Relation,
        fork: pg_sys::ForkNumber::Type,
        block: Block,
        strategy: pg_sys::BufferAccessStrategy,
    ) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe {
            pg_sys::ReadBufferExtended(
                relation,
                fork,
                block,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                strategy,
            )
        })
    }

    /// Pins `block` if it is still in the buffer `recent`.
    ///
    /// # Safety
    /// `relation` must be open.
    pub(super) unsafe fn again(
        relation: pg_sys::Relation,
        fork: pg_sys::ForkNumber::Type,
        block: Block,
        recent: pg_sys::Buffer,
    ) -> Option<Self> {
        // SAFETY: the caller's promise. The buffer was once given out by PostgreSQL, which
        // compares what it holds.
        unsafe {
            #[cfg(any(feature = "pg14", feature = "pg15"))]
            let file = (*relation).rd_node;
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            let file = (*relation).rd_locator;
            if !pg_sys::ReadRecentBuffer(file, fork, block, recent) {
                return None;
            }
            count_hit(relation);
        }
        Some(Self(recent))
    }

    pub(super) fn id(&self) -> pg_sys::Buffer {
        self.0
    }

    /// # Safety
    /// The caller has a pin on the buffer, and gives it away.
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    pub(super) unsafe fn of(buffer: pg_sys::Buffer) -> Self {
        Self(buffer)
    }

    pub(super) fn lock_shared(self) -> SharedPage {
        SharedPage(self.lock(pg_sys::BUFFER_LOCK_SHARE as i32))
    }

    pub(super) fn lock_exclusive(self) -> LockedBuffer {
        self.lock(pg_sys::BUFFER_LOCK_EXCLUSIVE as i32)
    }

    /// `None` if another has a lock.
    pub(super) fn try_lock_exclusive(self) -> Option<LockedBuffer> {
        let buffer = self.0;
        // SAFETY: the buffer is pinned and this backend has no lock on it.
        if !unsafe { pg_sys::ConditionalLockBuffer(buffer) } {
            return None;
        }
        // The pin belongs to the locked buffer now.
        std::mem::forget(self);
        Some(LockedBuffer(buffer))
    }

    fn lock(self, mode: i32) -> LockedBuffer {
        let buffer = self.0;
        // SAFETY: the buffer is pinned and this backend has no lock on it.
        unsafe { pg_sys::LockBuffer(buffer, mode) };
        // The pin belongs to the locked buffer now.
        std::mem::forget(self);
        LockedBuffer(buffer)
    }
}

/// What `ReadBuffer` counts of a relation and `ReadRecentBuffer` does not: a page that was
/// wanted and was there.
///
/// # Safety
/// `relation` must be open.
unsafe fn count_hit(relation: pg_sys::Relation) {
    // SAFETY: the caller's promise; the statistics belong to the relation.
    if let Some(statistics) = unsafe { (*relation).pgstat_info.as_mut() } {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        {
            statistics.t_counts.t_blocks_fetched += 1;
            statistics.t_counts.t_blocks_hit += 1;
        }
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        {
            statistics.counts.blocks_fetched += 1;
            statistics.counts.blocks_hit += 1;
        }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the pin is ours and is given back once.
            unsafe { pg_sys::ReleaseBuffer(self.0) };
        }
    }
}

/// A buffer that is pinned and locked, both until it is dropped.
pub(super) struct LockedBuffer(pg_sys::Buffer);

impl LockedBuffer {
    pub(super) fn id(&self) -> pg_sys::Buffer {
        self.0
    }

    pub(super) fn block(&self) -> Block {
        // SAFETY: the buffer is pinned.
        unsafe { pg_sys::BufferGetBlockNumber(self.0) }
    }

    /// Where the page lies; valid while the buffer is pinned.
    pub(super) fn address(&self) -> *mut PageBytes {
        // SAFETY: PostgreSQL's BufferGetBlock. A buffer number is an index from
        // 1 into the shared buffers, or its negative into the local ones.
        unsafe {
            if self.0 < 0 {
                (*pg_sys::LocalBufferBlockPointers.add((-self.0 - 1) as usize)).cast()
            } else {
                shared_address(self.0)
            }
        }
    }
}

/// Where the page of a shared buffer lies.
///
/// # Safety
/// `buffer` must be one that PostgreSQL has given out, from 1 on.
unsafe fn shared_address(buffer: pg_sys::Buffer) -> *mut PageBytes {
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::BufferBlocks
            .cast::<PageBytes>()
            .add(buffer as usize - 1)
    }
}

/// Brings parts of a page, and what PostgreSQL knows of its buffer, into the processor's
/// cache. The buffer need not be pinned, for nothing is read.
///
/// # Safety
/// PostgreSQL must have given the buffer out; it has as many of them until it ends.
pub(super) unsafe fn touch(buffer: pg_sys::Buffer, parts: impl IntoIterator<Item = Range<usize>>) {
    // Pages of temporary tables lie elsewhere.
    if buffer <= 0 {
        return;
    }
    // SAFETY: the caller's promise.
    let (page, description) = unsafe {
        let description = pg_sys::BufferDescriptors.add(buffer as usize - 1);
        (
            shared_address(buffer).cast::<i8>(),
            description.cast::<i8>(),
        )
    };
    prefetch(description);
    for part in parts {
        for at in (part.start / CACHE_LINE * CACHE_LINE..part.end).step_by(CACHE_LINE) {
            prefetch(page.wrapping_add(at));
        }
    }
}

fn prefetch(address: *const i8) {
    // SAFETY: an address that cannot be read is passed over.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: lock and pin are ours and are given back once.
            unsafe { pg_sys::UnlockReleaseBuffer(self.0) };
        }
    }
}

/// A page under a share lock.
pub(in crate::index) struct SharedPage(LockedBuffer);

impl Deref for SharedPage {
    type Target = PageBytes;

    fn deref(&self) -> &PageBytes {
        // SAFETY: the page is pinned and nobody writes it while we hold the
        // share lock, except for hint bits, which pages of this kind have not.
        unsafe { &*self.0.address() }
    }
}
