use std::ops::Deref;

use crate::error::StoreError;
use crate::page::{Block, PageBytes};

/// How many pages one [`PageChange`] may hold: what a generic WAL record takes.
pub const MAX_CHANGED_PAGES: usize = 4;

/// Access to the pages of one index.
///
/// Any number of readers and writers may work on the same pages at once. A
/// page is read under a share lock and changed under an exclusive one; nobody
/// sees a page half changed.
pub trait PageStore {
    /// A page under a share lock, which is given back on drop.
    type Page<'a>: Deref<Target = PageBytes>
    where
        Self: 'a;
    /// A change under way.
    type Change<'a>: PageChange
    where
        Self: 'a;

    /// How many pages there are; others may add pages at any time.
    fn block_count(&self) -> Block;

    /// Locks a page for reading.
    ///
    /// # Errors
    /// [`StoreError::Corrupted`] if there is no such page.
    fn read(&self, block: Block) -> Result<Self::Page<'_>, StoreError>;

    /// Begins a change of up to [`MAX_CHANGED_PAGES`] pages. Work that goes on for long
    /// begins changes often: a store may cancel it here, while no page is locked.
    fn change(&self) -> Self::Change<'_>;

    /// Adds a complete page at the end and returns its number.
    ///
    /// # Errors
    /// [`StoreError`] from the change.
    fn append(&self, page: &PageBytes) -> Result<Block, StoreError> {
        let mut change = self.change();
        let (block, slot) = change.extend()?;
        *change.page_mut(slot) = *page;
        change.commit();
        Ok(block)
    }

    /// Adds complete pages at the end, one behind another, and returns the number of the
    /// first. Nobody else may add pages meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] from a change, or if the pages are not consecutive.
    fn append_all(&self, pages: &[&PageBytes]) -> Result<Block, StoreError> {
        append_each(self, pages)
    }
}

/// [`PageStore::append_all`] by one change for each page.
///
/// # Errors
/// As for that.
pub fn append_each<S: PageStore + ?Sized>(
    store: &S,
    pages: &[&PageBytes],
) -> Result<Block, StoreError> {
    let first = store.block_count();
    for (expected, page) in (first..).zip(pages) {
        let block = store.append(page)?;
        if block != expected {
            let reason = "the run of pages is interrupted";
            return Err(StoreError::corrupted(block, reason));
        }
    }
    Ok(first)
}

/// Pages that change together: after a crash either all of them have changed
/// or none. Dropping it without [`PageChange::commit`] changes nothing.
pub trait PageChange {
    /// Locks `block` exclusively, adds it to the change and returns its slot.
    ///
    /// # Errors
    /// [`StoreError::Corrupted`] if there is no such page.
    fn lock(&mut self, block: Block) -> Result<usize, StoreError>;

    /// The same without waiting: `None` if another has a lock of the page.
    ///
    /// # Errors
    /// As for [`PageChange::lock`].
    fn try_lock(&mut self, block: Block) -> Result<Option<usize>, StoreError>;

    /// Adds a new page at the end of the store to the change; its bytes are
    /// zero. Returns its number and slot.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot grow.
    fn extend(&mut self) -> Result<(Block, usize), StoreError>;

    /// The page in `slot` as it will be.
    fn page(&self, slot: usize) -> &PageBytes;

    /// The page in `slot`, to be changed.
    fn page_mut(&mut self, slot: usize) -> &mut PageBytes;

    /// Makes the change happen and gives the locks back.
    fn commit(self);
}
