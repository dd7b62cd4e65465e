use crate::directory::ListEntry;
use crate::error::StoreError;
use crate::list::{ListLayout, Tid};
use crate::page::{self, Block, PAGE_SIZE, PageBytes, PageKind};
use crate::store::PageStore;

/// Writes all lists of a new index, one behind another in consecutive pages.
/// Nobody else may add pages meanwhile.
pub struct ListWriter<'s, S> {
    store: &'s S,
    layout: ListLayout,
    list: u32,
    page: Box<PageBytes>,
    count: usize,
    block: Block,
    first: Block,
    done: Vec<ListEntry>,
}

impl<'s, S: PageStore> ListWriter<'s, S> {
    /// Begins with list 0 at the end of the store.
    #[must_use]
    pub fn new(store: &'s S, layout: ListLayout) -> Self {
        let block = store.block_count();
        let mut page = Box::new([0; PAGE_SIZE]);
        page::init(&mut page, PageKind::List, 0);
        Self {
            store,
            layout,
            list: 0,
            page,
            count: 0,
            block,
            first: block,
            done: Vec::new(),
        }
    }

    /// Adds an entry. Lists must come in ascending order.
    ///
    /// # Errors
    /// [`StoreError`] if a page cannot be added.
    ///
    /// # Panics
    /// If the list lies before that of the entry before, or the code has the
    /// wrong size.
    pub fn push(&mut self, list: u32, tid: Tid, code: &[u8]) -> Result<(), StoreError> {
        assert!(list >= self.list, "entries must be sorted by list");
        while self.list < list {
            self.finish_list()?;
        }
        if self.count == self.layout.capacity() {
            let next = self.block + 1;
            page::set_next(&mut self.page, next);
            self.write_page()?;
        }
        self.layout.push(&mut self.page, self.count, tid, code);
        self.count += 1;
        Ok(())
    }

    /// Ends the last of `lists` lists and returns where all of them lie. Every
    /// list has at least one page, so that its first page never changes.
    ///
    /// # Errors
    /// [`StoreError`] if a page cannot be added.
    pub fn finish(mut self, lists: u32) -> Result<Vec<ListEntry>, StoreError> {
        while self.list < lists {
            self.finish_list()?;
        }
        Ok(self.done)
    }

    fn finish_list(&mut self) -> Result<(), StoreError> {
        self.done.push(ListEntry {
            first: self.first,
            insert: self.block,
        });
        self.list += 1;
        self.write_page()?;
        self.first = self.block;
        Ok(())
    }

    fn write_page(&mut self) -> Result<(), StoreError> {
        let block = self.store.append(&self.page)?;
        if block != self.block {
            return Err(StoreError::corrupted(
                block,
                "the run of pages is interrupted",
            ));
        }
        self.block += 1;
        self.count = 0;
        page::init(&mut self.page, PageKind::List, self.list);
        Ok(())
    }
}
