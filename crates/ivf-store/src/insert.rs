//! Inserts: a free slot or a new one, in a page of a list or in a new page.

use crate::directory::{list_entry, move_insert_block};
use crate::error::StoreError;
use crate::layout::ListLayout;
use crate::list::{ListPage, PageCounter, init_list_page, put_entry, set_row_page};
use crate::meta::Meta;
use crate::page::{self, Block, NO_BLOCK};
use crate::rows::{RowPage, init_row_page, put_row};
use crate::store::{PageChange, PageStore};
use crate::tid::Tid;

/// Adds an entry to `list`: to the first page with room from its insert page on, else
/// to a new page at its end.
///
/// # Errors
/// [`StoreError`] if a page on the way is damaged.
///
/// # Panics
/// If `record` has not the size of a record of the layout.
pub fn insert<S: PageStore>(
    store: &S,
    meta: &Meta,
    list: u32,
    tid: Tid,
    record: &[u8],
) -> Result<(), StoreError> {
    assert_eq!(record.len(), meta.layout.record_size());
    let insert = Insert {
        store,
        layout: meta.layout,
        list,
        tid,
        record,
    };
    let hint = list_entry(store, &meta.directory, list)?.insert;
    let mut counter = PageCounter::new();
    let mut block = hint;
    let filled = loop {
        match insert.try_page(block)? {
            Reached::Filled(block) => break block,
            Reached::Full(next) => {
                counter.count(store, block)?;
                block = next;
            }
        }
    };
    if filled != hint {
        move_insert_block(store, &meta.directory, list, filled)?;
    }
    Ok(())
}

/// An insert under way: the entry and where it goes.
struct Insert<'a, S: PageStore> {
    store: &'a S,
    layout: ListLayout,
    list: u32,
    tid: Tid,
    record: &'a [u8],
}

/// What came of an insert at a page.
enum Reached {
    /// The entry is in this page.
    Filled(Block),
    /// The page is full, and this is the next.
    Full(Block),
}

impl<S: PageStore> Insert<'_, S> {
    fn try_page(&self, block: Block) -> Result<Reached, StoreError> {
        let mut change = self.store.change();
        let slot = change.lock(block)?;
        let page = ListPage::parse_of(change.page(slot), block, self.layout, self.list)?;
        let info = page.info();
        if let Some(free) = self.free_entry(&page, block)? {
            page::set_free(change.page_mut(slot), info.free - 1);
            self.put(&mut change, (block, slot), free)?;
            change.commit();
            return Ok(Reached::Filled(block));
        }
        if info.count < self.layout.capacity() {
            // None is free, even if the page says so.
            page::set_free(change.page_mut(slot), 0);
            page::set_count(change.page_mut(slot), info.count + 1);
            self.put(&mut change, (block, slot), info.count)?;
            change.commit();
            return Ok(Reached::Filled(block));
        }
        if info.next != NO_BLOCK {
            return Ok(Reached::Full(info.next));
        }
        let (added, new) = change.extend()?;
        init_list_page(change.page_mut(new), self.layout, self.list);
        page::set_count(change.page_mut(new), 1);
        self.put(&mut change, (added, new), 0)?;
        page::set_next(change.page_mut(slot), added);
        change.commit();
        Ok(Reached::Filled(added))
    }

    /// An entry of a page in use whose row pointer is 0.
    fn free_entry(&self, page: &ListPage<'_>, block: Block) -> Result<Option<usize>, StoreError> {
        if page.free() == 0 {
            return Ok(None);
        }
        if self.layout.row_capacity() == 0 {
            return Ok((0..page.len()).find(|&entry| page.place(entry).is_none()));
        }
        for (index, (rows, used)) in page.row_pages().enumerate() {
            let bytes = self.store.read(rows)?;
            let row_page = RowPage::parse_home(&bytes, rows, self.layout, self.list, block)?;
            if let Some(row) = (0..used).find(|&row| row_page.tid(row).is_none()) {
                return Ok(Some(index * self.layout.row_capacity() + row));
            }
        }
        Ok(None)
    }

    /// Puts the entry into a list page of the change, given by its block and its slot in
    /// the change, and into the row page there.
    fn put(
        &self,
        change: &mut S::Change<'_>,
        (block, slot): (Block, usize),
        entry: usize,
    ) -> Result<(), StoreError> {
        let layout = self.layout;
        put_entry(change.page_mut(slot), layout, entry, self.tid, self.record);
        let Some(index) = entry.checked_div(layout.row_capacity()) else {
            return Ok(());
        };
        let named = layout.row_page(change.page(slot), index);
        let rows = if named == NO_BLOCK {
            let (added, rows) = change.extend()?;
            init_row_page(change.page_mut(rows), self.list, block);
            set_row_page(change.page_mut(slot), layout, index, added);
            rows
        } else {
            let rows = change.lock(named)?;
            RowPage::parse_home(change.page(rows), named, layout, self.list, block)?;
            rows
        };
        let row = entry % layout.row_capacity();
        put_row(change.page_mut(rows), layout, row, self.tid, self.record);
        Ok(())
    }
}
