//! Inserts: a free slot or a new one, in a page of a list or in a new page.
//!
//! All who insert into a list prefer one page, so that pages fill one after another. Who
//! finds it busy goes to another of the list's insert pages, and where all are busy often,
//! the list gets one more.

use crate::directory::{InsertPages, insert_pages, set_insert_page};
use crate::error::StoreError;
use crate::layout::ListLayout;
use crate::list::{ListPage, PageCounter, init_list_page, put_entry, set_row_page};
use crate::meta::Meta;
use crate::page::{self, Block, NO_BLOCK, PageBytes};
use crate::rows::{RowPage, init_row_page, put_row};
use crate::store::{PageChange, PageStore};
use crate::tid::Tid;

/// One in so many who find all insert pages of a list busy adds a page to it. Two who meet
/// by chance should not: pages that are not full cost space, and time of each scan.
const PATIENCE: u64 = 8;

/// Adds an entry to `list`: to the first page with room from one of its insert pages on,
/// else to a new page at its end.
///
/// `writer` is a number that those who insert at the same time do not share; it spreads
/// them over the insert pages where the first is busy.
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
    writer: u32,
) -> Result<(), StoreError> {
    assert_eq!(record.len(), meta.layout.record_size());
    let insert = Insert {
        store,
        layout: meta.layout,
        list,
        tid,
        record,
    };
    let pages = insert_pages(store, &meta.directory, list)?;
    let (place, from, filled) = insert.run(&pages, writer as usize)?;
    if filled != from {
        set_insert_page(store, &meta.directory, list, (place, filled))?;
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
    /// Returns the place of the insert page from which it looked for room, that page, and
    /// the page that has the entry now.
    fn run(&self, pages: &InsertPages, writer: usize) -> Result<(usize, Block, Block), StoreError> {
        let mut distinct: Vec<(usize, Block)> = pages.distinct().collect();
        let others = distinct.len() - 1;
        if others > 0 {
            distinct[1..].rotate_left(writer % others);
        }
        let mut change = self.store.change();
        for &(place, from) in &distinct {
            if let Some(slot) = change.try_lock(from)? {
                let filled = match self.fill(change, (from, slot))? {
                    Reached::Filled(filled) => filled,
                    Reached::Full(next) => self.fill_from(next)?,
                };
                return Ok((place, from, filled));
            }
        }
        drop(change);
        let (place, from) = distinct[writer % distinct.len()];
        match pages.unused() {
            Some(unused) if self.is_impatient() => Ok((unused, NO_BLOCK, self.add_page(from)?)),
            _ => Ok((place, from, self.fill_from(from)?)),
        }
    }

    /// Chosen by the row, as by chance.
    fn is_impatient(&self) -> bool {
        // Fibonacci hashing: the upper bits of the product are spread evenly.
        let hash = self.tid.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32).is_multiple_of(PATIENCE)
    }

    /// Fills the first page with room from `block` on, and waits for it. Returns which.
    fn fill_from(&self, mut block: Block) -> Result<Block, StoreError> {
        let mut counter = PageCounter::new();
        loop {
            // Begun for each page: that is where an insert can be cancelled.
            let mut change = self.store.change();
            block = match self.behind_full(block)? {
                Some(next) => next,
                None => {
                    let slot = change.lock(block)?;
                    match self.fill(change, (block, slot))? {
                        Reached::Filled(filled) => return Ok(filled),
                        Reached::Full(next) => next,
                    }
                }
            };
            counter.count(self.store, block)?;
        }
    }

    /// The page behind `block`, if there is one and `block` has no room.
    fn behind_full(&self, block: Block) -> Result<Option<Block>, StoreError> {
        let bytes = self.store.read(block)?;
        let page = ListPage::parse_of(&bytes, block, self.layout, self.list)?;
        let has_room = page.free() > 0 || page.len() < self.layout.capacity();
        let next = page.info().next;
        Ok((!has_room && next != NO_BLOCK).then_some(next))
    }

    /// Adds a page with the entry at the end of the list, which is `block` or lies behind
    /// it. Returns which.
    fn add_page(&self, mut block: Block) -> Result<Block, StoreError> {
        let mut counter = PageCounter::new();
        let next_of = |bytes: &PageBytes, block| {
            let page = ListPage::parse_of(bytes, block, self.layout, self.list)?;
            Ok::<_, StoreError>(page.info().next)
        };
        loop {
            // As in `fill_from`.
            let mut change = self.store.change();
            let bytes = self.store.read(block)?;
            let mut next = next_of(&bytes, block)?;
            drop(bytes);
            if next == NO_BLOCK {
                let slot = change.lock(block)?;
                // Another may have been faster.
                next = next_of(change.page(slot), block)?;
                if next == NO_BLOCK {
                    return self.extend(change, slot);
                }
            }
            counter.count(self.store, block)?;
            block = next;
        }
    }

    /// Puts the entry into a list page of the change, given by its block and its slot in
    /// the change, or into a new page if it is the full end of the list.
    fn fill(
        &self,
        mut change: S::Change<'_>,
        (block, slot): (Block, usize),
    ) -> Result<Reached, StoreError> {
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
        Ok(Reached::Filled(self.extend(change, slot)?))
    }

    /// Puts the entry into a new page behind the last page of the list, which is in this
    /// slot of the change. Returns the new page.
    fn extend(&self, mut change: S::Change<'_>, last: usize) -> Result<Block, StoreError> {
        let (added, new) = change.extend()?;
        init_list_page(change.page_mut(new), self.layout, self.list);
        page::set_count(change.page_mut(new), 1);
        self.put(&mut change, (added, new), 0)?;
        page::set_next(change.page_mut(last), added);
        change.commit();
        Ok(added)
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
