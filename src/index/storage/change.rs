use ivf_store::{Block, MAX_CHANGED_PAGES, PAGE_SIZE, PageBytes, PageChange, StoreError};
use pgrx::{check_for_interrupts, pg_sys};

use super::page::{LockedBuffer, PinnedBuffer};
use super::{Logging, P_NEW, RelationStore};

/// A page of a change: the locked buffer and the bytes it will have.
struct Slot {
    buffer: LockedBuffer,
    image: Image,
}

enum Image {
    /// A copy that the generic WAL record keeps.
    Generic(*mut PageBytes),
    /// A copy of our own, where nothing is logged.
    Own(Box<PageBytes>),
}

/// Pages that change in one WAL record.
pub(in crate::index) struct RelationChange<'a> {
    store: &'a RelationStore,
    /// Null where nothing is logged, and once the record is finished.
    record: *mut pg_sys::GenericXLogState,
    slots: Vec<Slot>,
}

impl<'a> RelationChange<'a> {
    /// Takes interrupts first, for no page is locked yet.
    pub(super) fn begin(store: &'a RelationStore) -> Self {
        check_for_interrupts!();
        let record = match store.logging {
            // SAFETY: the relation is open; the record ends in commit or drop,
            // or with the transaction.
            Logging::EachChange => unsafe { pg_sys::GenericXLogStart(store.relation) },
            Logging::AtEnd => std::ptr::null_mut(),
        };
        Self {
            store,
            record,
            slots: Vec::with_capacity(MAX_CHANGED_PAGES),
        }
    }

    fn add(&mut self, buffer: LockedBuffer, is_new: bool) -> usize {
        let image = if self.record.is_null() {
            // SAFETY: the page is pinned and exclusively locked.
            Image::Own(Box::new(unsafe { *buffer.address() }))
        } else {
            let flags = if is_new {
                pg_sys::GENERIC_XLOG_FULL_IMAGE
            } else {
                0
            };
            // SAFETY: the record is open and the buffer is exclusively locked.
            let page = unsafe {
                pg_sys::GenericXLogRegisterBuffer(self.record, buffer.id(), flags as i32)
            };
            Image::Generic(page.cast())
        };
        self.slots.push(Slot { buffer, image });
        self.slots.len() - 1
    }
}

impl PageChange for RelationChange<'_> {
    fn lock(&mut self, block: Block) -> Result<usize, StoreError> {
        let buffer = self.store.pin(block)?.lock_exclusive();
        Ok(self.add(buffer, false))
    }

    fn try_lock(&mut self, block: Block) -> Result<Option<usize>, StoreError> {
        let buffer = self.store.pin(block)?.try_lock_exclusive();
        Ok(buffer.map(|buffer| self.add(buffer, false)))
    }

    fn extend(&mut self) -> Result<(Block, usize), StoreError> {
        let store = self.store;
        let lock = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        // SAFETY: the relation is open. The new buffer is locked before the
        // extension lock is given back; whoever reads the page before we do
        // sees zeros. On an error the abort gives the lock back.
        let buffer = unsafe {
            pg_sys::LockRelationForExtension(store.relation, lock);
            let pinned =
                PinnedBuffer::read(store.relation, store.fork, P_NEW, std::ptr::null_mut());
            let locked = pinned.lock_exclusive();
            pg_sys::UnlockRelationForExtension(store.relation, lock);
            locked
        };
        let block = buffer.block();
        store.known_blocks.set(block + 1);
        let slot = self.add(buffer, true);
        self.page_mut(slot).copy_from_slice(&[0; PAGE_SIZE]);
        Ok((block, slot))
    }

    fn page(&self, slot: usize) -> &PageBytes {
        match &self.slots[slot].image {
            // SAFETY: the image lives as long as the record, which is open.
            Image::Generic(page) => unsafe { &**page },
            Image::Own(page) => page,
        }
    }

    fn page_mut(&mut self, slot: usize) -> &mut PageBytes {
        match &mut self.slots[slot].image {
            // SAFETY: as in `page`; each slot has an image of its own.
            Image::Generic(page) => unsafe { &mut **page },
            Image::Own(page) => page,
        }
    }

    fn commit(mut self) {
        if !self.record.is_null() {
            let record = std::mem::replace(&mut self.record, std::ptr::null_mut());
            // SAFETY: the record is open and its buffers are locked.
            unsafe { pg_sys::GenericXLogFinish(record) };
        }
        for slot in self.slots.drain(..) {
            if let Image::Own(image) = slot.image {
                // SAFETY: the page is pinned and exclusively locked.
                unsafe {
                    *slot.buffer.address() = *image;
                    pg_sys::MarkBufferDirty(slot.buffer.id());
                }
            }
        }
    }
}

impl Drop for RelationChange<'_> {
    fn drop(&mut self) {
        if !self.record.is_null() && !std::thread::panicking() {
            // SAFETY: the record is open; its memory belongs to it alone.
            unsafe { pg_sys::GenericXLogAbort(self.record) };
        }
    }
}
