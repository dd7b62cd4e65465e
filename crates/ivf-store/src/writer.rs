use crate::directory::ListEntry;
use crate::error::StoreError;
use crate::layout::ListLayout;
use crate::list::{init_list_page, put_entry, set_row_page};
use crate::page::{self, Block, PAGE_SIZE, PageBytes};
use crate::rows::{init_row_page, put_row};
use crate::store::PageStore;
use crate::tid::Tid;

/// So many list pages lie one behind another, then the row pages of all of them: a scan
/// reads list pages, and what is read together should lie together.
const RUN: usize = 16;

/// Writes all lists of a new index, one behind another in consecutive pages.
/// Nobody else may add pages meanwhile.
pub struct ListWriter<'s, S> {
    store: &'s S,
    layout: ListLayout,
    list: u32,
    /// The list pages that are not written yet.
    pages: Vec<Box<PageBytes>>,
    /// Their row pages: which list page each belongs to, and which of its row pages it is.
    rows: Vec<(usize, usize, Box<PageBytes>)>,
    /// Entries of the last of `pages`.
    count: usize,
    /// Where the first of `pages` will be.
    block: Block,
    /// First page of the list.
    first: Block,
    /// The lists that are complete.
    done: Vec<ListEntry>,
}

impl<'s, S: PageStore> ListWriter<'s, S> {
    /// Begins with list 0 at the end of the store.
    #[must_use]
    pub fn new(store: &'s S, layout: ListLayout) -> Self {
        let block = store.block_count();
        let mut writer = Self {
            store,
            layout,
            list: 0,
            pages: Vec::new(),
            rows: Vec::new(),
            count: 0,
            block,
            first: block,
            done: Vec::new(),
        };
        writer.add_page();
        writer
    }

    /// Adds an entry. Lists must come in ascending order.
    ///
    /// # Errors
    /// [`StoreError`] if a page cannot be added.
    ///
    /// # Panics
    /// If the list lies before that of the entry before, or the record has the
    /// wrong size.
    pub fn push(&mut self, list: u32, tid: Tid, record: &[u8]) -> Result<(), StoreError> {
        assert!(list >= self.list, "entries must be sorted by list");
        assert_eq!(record.len(), self.layout.record_size());
        while self.list < list {
            self.finish_list()?;
        }
        if self.count == self.layout.capacity() {
            if self.pages.len() == RUN {
                self.write_run(true)?;
            }
            self.add_page();
        }
        let (layout, slot) = (self.layout, self.count);
        let last = self.pages.len() - 1;
        put_entry(&mut self.pages[last], layout, slot, tid, record);
        if let Some(index) = slot.checked_div(layout.row_capacity()) {
            let row = slot % layout.row_capacity();
            if row == 0 {
                self.rows.push((last, index, Box::new([0; PAGE_SIZE])));
                let home = self.block + last as Block;
                if let Some((.., page)) = self.rows.last_mut() {
                    init_row_page(page, list, home);
                }
            }
            if let Some((.., page)) = self.rows.last_mut() {
                put_row(page, layout, row, tid, record);
            }
        }
        self.count += 1;
        page::set_count(&mut self.pages[last], self.count);
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

    fn add_page(&mut self) {
        let mut page = Box::new([0; PAGE_SIZE]);
        init_list_page(&mut page, self.layout, self.list);
        self.pages.push(page);
        self.count = 0;
    }

    fn finish_list(&mut self) -> Result<(), StoreError> {
        self.done.push(ListEntry {
            first: self.first,
            insert: self.block + (self.pages.len() - 1) as Block,
        });
        self.write_run(false)?;
        self.list += 1;
        self.first = self.block;
        self.add_page();
        Ok(())
    }

    /// Writes the pages at hand; the list may go on behind them.
    fn write_run(&mut self, goes_on: bool) -> Result<(), StoreError> {
        let (first, pages) = (self.block, self.pages.len() as Block);
        let end = first + pages + self.rows.len() as Block;
        for (block, (home, index, _)) in (first + pages..).zip(&self.rows) {
            set_row_page(&mut self.pages[*home], self.layout, *index, block);
        }
        let last = self.pages.len() - 1;
        for (place, page) in self.pages.iter_mut().enumerate() {
            match place {
                place if place < last => page::set_next(page, first + place as Block + 1),
                _ if goes_on => page::set_next(page, end),
                _ => {}
            }
        }
        let rows = self.rows.iter().map(|(.., page)| page);
        let pages: Vec<&PageBytes> = self.pages.iter().chain(rows).map(|page| &**page).collect();
        let block = self.store.append_all(&pages)?;
        if block != first {
            let reason = "the run of pages is interrupted";
            return Err(StoreError::corrupted(block, reason));
        }
        self.pages.clear();
        self.rows.clear();
        self.block = end;
        Ok(())
    }
}
