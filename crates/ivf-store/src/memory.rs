use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::error::StoreError;
use crate::page::{self, Block, PAGE_SIZE, PageBytes};
use crate::store::{MAX_CHANGED_PAGES, PageChange, PageStore};

/// A page store in memory, for tests.
///
/// It is as strict as PostgreSQL is: a page that is locked twice, or locked while it is
/// read, panics instead of waiting for ever, and a commit zeroes what lies in the hole of a
/// page, as replaying a generic WAL record does. [`MemoryStore::make_busy`] stands for
/// others who work on the same pages.
#[derive(Default)]
pub struct MemoryStore {
    pages: RefCell<Vec<Box<PageBytes>>>,
    locked: RefCell<BTreeSet<Block>>,
    /// The pages that are read, and how many times.
    shared: RefCell<BTreeMap<Block, usize>>,
    /// The pages that another has locked until somebody waits for them.
    busy: RefCell<BTreeSet<Block>>,
    waits: RefCell<Vec<Block>>,
    history: RefCell<Vec<Vec<Box<PageBytes>>>>,
    keeps_history: Cell<bool>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that holds copies of these pages.
    #[must_use]
    pub fn with_pages(pages: Vec<Box<PageBytes>>) -> Self {
        Self {
            pages: RefCell::new(pages),
            ..Self::default()
        }
    }

    /// From now on keeps a copy of all pages after each commit: the states in
    /// which a crash may leave the store.
    pub fn keep_history(&self) {
        self.keeps_history.set(true);
    }

    /// Takes the copies kept since the last call, oldest first.
    pub fn take_history(&self) -> Vec<Vec<Box<PageBytes>>> {
        self.history.take()
    }

    /// Lets another lock a page exclusively until somebody waits for it.
    pub fn make_busy(&self, block: Block) {
        self.busy.borrow_mut().insert(block);
    }

    /// Ends all locks of [`Self::make_busy`], and returns for which of these pages somebody
    /// has waited since the last call.
    pub fn take_waits(&self) -> Vec<Block> {
        self.busy.borrow_mut().clear();
        self.waits.take()
    }

    fn wait_for(&self, block: Block) {
        if self.busy.borrow_mut().remove(&block) {
            self.waits.borrow_mut().push(block);
        }
    }

    fn copy(&self, block: Block) -> Result<Box<PageBytes>, StoreError> {
        let pages = self.pages.borrow();
        let page = pages.get(block as usize).cloned();
        page.ok_or_else(|| StoreError::corrupted(block, "no such block"))
    }

    /// Overwrites bytes of a page behind the back of the algorithms.
    ///
    /// # Panics
    /// If there is no such page or the bytes do not fit.
    pub fn damage(&self, block: Block, at: usize, bytes: &[u8]) {
        self.pages.borrow_mut()[block as usize][at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A page of a [`MemoryStore`] that is read.
pub struct MemoryPage<'a> {
    store: &'a MemoryStore,
    block: Block,
    bytes: Box<PageBytes>,
}

impl Deref for MemoryPage<'_> {
    type Target = PageBytes;

    fn deref(&self) -> &PageBytes {
        &self.bytes
    }
}

impl Drop for MemoryPage<'_> {
    fn drop(&mut self) {
        if let Some(readers) = self.store.shared.borrow_mut().get_mut(&self.block) {
            *readers -= 1;
        }
    }
}

/// A change of a [`MemoryStore`].
pub struct MemoryChange<'a> {
    store: &'a MemoryStore,
    pages: Vec<(Block, Box<PageBytes>)>,
}

impl PageStore for MemoryStore {
    type Page<'a> = MemoryPage<'a>;
    type Change<'a> = MemoryChange<'a>;

    fn block_count(&self) -> Block {
        self.pages.borrow().len() as Block
    }

    fn read(&self, block: Block) -> Result<MemoryPage<'_>, StoreError> {
        assert!(
            !self.locked.borrow().contains(&block),
            "block {block} is read by the holder of its exclusive lock"
        );
        self.wait_for(block);
        let bytes = self.copy(block)?;
        *self.shared.borrow_mut().entry(block).or_default() += 1;
        Ok(MemoryPage {
            store: self,
            block,
            bytes,
        })
    }

    fn change(&self) -> MemoryChange<'_> {
        MemoryChange {
            store: self,
            pages: Vec::new(),
        }
    }
}

impl MemoryChange<'_> {
    fn add(&mut self, block: Block, page: Box<PageBytes>) -> usize {
        assert!(
            self.pages.len() < MAX_CHANGED_PAGES,
            "too many pages in one change"
        );
        assert!(
            self.store.locked.borrow_mut().insert(block),
            "block {block} is locked twice"
        );
        self.pages.push((block, page));
        self.pages.len() - 1
    }
}

impl PageChange for MemoryChange<'_> {
    fn lock(&mut self, block: Block) -> Result<usize, StoreError> {
        let readers = self.store.shared.borrow().get(&block).copied();
        assert!(
            readers.is_none_or(|readers| readers == 0),
            "block {block} is locked by its reader"
        );
        self.store.wait_for(block);
        let page = self.store.copy(block)?;
        Ok(self.add(block, page))
    }

    fn try_lock(&mut self, block: Block) -> Result<Option<usize>, StoreError> {
        let is_busy = self.store.busy.borrow().contains(&block);
        if is_busy {
            return Ok(None);
        }
        self.lock(block).map(Some)
    }

    fn extend(&mut self) -> Result<(Block, usize), StoreError> {
        let empty = Box::new([0; PAGE_SIZE]);
        let block = self.store.block_count();
        // As in PostgreSQL, the page stays when the change is dropped.
        self.store.pages.borrow_mut().push(empty.clone());
        Ok((block, self.add(block, empty)))
    }

    fn page(&self, slot: usize) -> &PageBytes {
        &self.pages[slot].1
    }

    fn page_mut(&mut self, slot: usize) -> &mut PageBytes {
        &mut self.pages[slot].1
    }

    fn commit(mut self) {
        let mut pages = self.store.pages.borrow_mut();
        for (block, mut page) in self.pages.drain(..) {
            let (lower, upper) = page::bounds(&page);
            page[lower..upper].fill(0);
            pages[block as usize] = page;
            self.store.locked.borrow_mut().remove(&block);
        }
        if self.store.keeps_history.get() {
            self.store.history.borrow_mut().push(pages.clone());
        }
    }
}

impl Drop for MemoryChange<'_> {
    fn drop(&mut self) {
        for (block, _) in &self.pages {
            self.store.locked.borrow_mut().remove(block);
        }
    }
}
