//! Inverted lists: chains of pages that hold codes and, for each code, a
//! record with the row it belongs to.
//!
//! Codes lie one behind another from [`DATA_START`] upwards, so that a kernel
//! scans all of them in one call; records grow down from the special area, so
//! that record `i` belongs to code `i` and no data lies in the page's hole.

use crate::directory::{list_entry, move_insert_block};
use crate::error::StoreError;
use crate::meta::{Distance, Element, Meta};
use crate::page::{
    self, Block, DATA_START, NO_BLOCK, PageBytes, PageInfo, PageKind, SPECIAL_START, get_u64,
    put_u64,
};
use crate::store::{PageChange, PageStore};

const RECORD_SIZE: usize = 8;
const TID_BITS: u32 = 48;
/// A list may have this many pages before its length is compared with the
/// number of pages that exist, which costs a system call.
const UNCHECKED_PAGES: u32 = 1024;

/// Which row an entry belongs to: heap block and line pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(u64);

impl Tid {
    /// The row at line pointer `offset` of heap block `block`.
    #[must_use]
    pub fn new(block: u32, offset: u16) -> Self {
        Self(u64::from(block) << 16 | u64::from(offset))
    }

    /// Heap block.
    #[must_use]
    pub fn block(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Line pointer within the heap block, from 1.
    #[must_use]
    pub fn offset(self) -> u16 {
        self.0 as u16
    }
}

/// Sizes of what one entry takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListLayout {
    code_size: usize,
}

impl ListLayout {
    /// Entries whose code is the vector itself. For the cosine of 16-bit floats the
    /// reciprocal of its length follows, a 32-bit float.
    ///
    /// # Errors
    /// `None` if a page has no room for an entry.
    #[must_use]
    pub fn flat(dimensions: u32, element: Element, distance: Distance) -> Option<Self> {
        let norm = match (element, distance) {
            (Element::Float16, Distance::Cosine) => size_of::<f32>(),
            _ => 0,
        };
        let room = SPECIAL_START - DATA_START - RECORD_SIZE - norm;
        let fits = dimensions > 0 && dimensions as usize <= room / element.size();
        fits.then(|| Self {
            code_size: dimensions as usize * element.size() + norm,
        })
    }

    /// Size of a code.
    #[must_use]
    pub fn code_size(self) -> usize {
        self.code_size
    }

    /// Size of a record.
    #[must_use]
    pub fn record_size(self) -> usize {
        RECORD_SIZE
    }

    /// How many entries a page holds.
    #[must_use]
    pub fn capacity(self) -> usize {
        (SPECIAL_START - DATA_START) / (self.code_size + RECORD_SIZE)
    }

    fn code_at(self, index: usize) -> usize {
        DATA_START + index * self.code_size
    }

    fn record_at(self, index: usize) -> usize {
        SPECIAL_START - (index + 1) * RECORD_SIZE
    }

    fn set_count(self, page: &mut PageBytes, count: usize) {
        page::set_count(page, count);
        page::set_bounds(
            page,
            self.code_at(count),
            SPECIAL_START - count * RECORD_SIZE,
        );
    }

    /// Puts an entry behind the `count` entries of a page that has room.
    pub(crate) fn push(self, page: &mut PageBytes, count: usize, tid: Tid, code: &[u8]) {
        debug_assert!(count < self.capacity());
        let at = self.code_at(count);
        page[at..at + self.code_size].copy_from_slice(code);
        put_u64(&mut page[..], self.record_at(count), tid.0);
        self.set_count(page, count + 1);
    }
}

/// A page of an inverted list.
#[derive(Debug, Clone, Copy)]
pub struct ListPage<'a> {
    bytes: &'a PageBytes,
    layout: ListLayout,
    info: PageInfo,
}

impl<'a> ListPage<'a> {
    fn parse(bytes: &'a PageBytes, block: Block, layout: ListLayout) -> Result<Self, StoreError> {
        let info = page::check(bytes, block, PageKind::List)?;
        let records = SPECIAL_START - info.count.min(layout.capacity()) * RECORD_SIZE;
        if info.count > layout.capacity()
            || info.lower != layout.code_at(info.count)
            || info.upper != records
        {
            let reason = format!("{} entries do not match the bounds of the page", info.count);
            return Err(StoreError::corrupted(block, reason));
        }
        Ok(Self {
            bytes,
            layout,
            info,
        })
    }

    fn parse_of(
        bytes: &'a PageBytes,
        block: Block,
        layout: ListLayout,
        list: u32,
    ) -> Result<Self, StoreError> {
        let page = Self::parse(bytes, block, layout)?;
        if page.info.owner != list {
            let reason = format!("a page of list {}, expected list {list}", page.info.owner);
            return Err(StoreError::corrupted(block, reason));
        }
        Ok(page)
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.info.count
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.info.count == 0
    }

    /// All codes, one behind another; begins at a multiple of 32 bytes within the page.
    #[must_use]
    pub fn codes(&self) -> &'a [u8] {
        &self.bytes[DATA_START..self.layout.code_at(self.info.count)]
    }

    /// The row of entry `index`.
    #[must_use]
    pub fn tid(&self, index: usize) -> Tid {
        let record = get_u64(self.bytes, self.layout.record_at(index));
        Tid(record & ((1 << TID_BITS) - 1))
    }
}

/// Walks the pages of one list.
#[derive(Debug)]
pub struct ListCursor {
    list: u32,
    next: Block,
    visited: u32,
    limit: u32,
}

impl ListCursor {
    /// Begins at the first page of a list.
    #[must_use]
    pub fn new(list: u32, first: Block) -> Self {
        Self {
            list,
            next: first,
            visited: 0,
            limit: UNCHECKED_PAGES,
        }
    }

    /// Hands the next page to `visit`, under its share lock. Returns false at
    /// the end of the list.
    ///
    /// # Errors
    /// [`StoreError`] if the page is damaged or the chain runs in a circle.
    pub fn advance<S: PageStore>(
        &mut self,
        store: &S,
        layout: ListLayout,
        visit: impl FnOnce(&ListPage<'_>),
    ) -> Result<bool, StoreError> {
        let block = self.next;
        if block == NO_BLOCK {
            return Ok(false);
        }
        let page = store.read(block)?;
        let page = ListPage::parse_of(&page, block, layout, self.list)?;
        visit(&page);
        self.next = page.info.next;
        count_page(store, block, &mut self.visited, &mut self.limit)?;
        Ok(true)
    }
}

fn count_page<S: PageStore>(
    store: &S,
    block: Block,
    visited: &mut u32,
    limit: &mut u32,
) -> Result<(), StoreError> {
    *visited += 1;
    if *visited <= *limit {
        return Ok(());
    }
    *limit = store.block_count();
    if *visited > *limit {
        return Err(StoreError::corrupted(
            block,
            "the pages of a list run in a circle",
        ));
    }
    *limit = (*limit).max(UNCHECKED_PAGES);
    Ok(())
}

/// Adds an entry to `list`: to the first page with room from its insert page
/// on, else to a new page at its end. `code` must have the size of the layout.
///
/// # Errors
/// [`StoreError`] if a page on the way is damaged.
pub fn insert<S: PageStore>(
    store: &S,
    meta: &Meta,
    list: u32,
    tid: Tid,
    code: &[u8],
) -> Result<(), StoreError> {
    let layout = meta.layout();
    let hint = list_entry(store, &meta.directory, list)?.insert;
    let (mut visited, mut limit) = (0, UNCHECKED_PAGES);
    let mut block = hint;
    let filled = loop {
        let mut change = store.change();
        let slot = change.lock(block)?;
        let info = ListPage::parse_of(change.page(slot), block, layout, list)?.info;
        if info.count < layout.capacity() {
            layout.push(change.page_mut(slot), info.count, tid, code);
            change.commit();
            break block;
        }
        if info.next == NO_BLOCK {
            let (added, new) = change.extend()?;
            page::init(change.page_mut(new), PageKind::List, list);
            layout.push(change.page_mut(new), 0, tid, code);
            page::set_next(change.page_mut(slot), added);
            change.commit();
            break added;
        }
        drop(change);
        count_page(store, block, &mut visited, &mut limit)?;
        block = info.next;
    };
    if filled != hint {
        move_insert_block(store, &meta.directory, list, filled)?;
    }
    Ok(())
}

/// What [`vacuum_page`] found in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacuumed {
    /// The list that the page belongs to.
    pub list: u32,
    /// Entries that remain.
    pub live: usize,
    /// Entries that were removed.
    pub removed: usize,
}

/// Removes the entries of dead rows from a page and fills the gaps.
///
/// Entries never leave their page, and a scan reads a page whole under one
/// share lock; so no scan misses an entry or sees one twice. Returns `None`
/// for pages that are no list pages.
///
/// # Errors
/// [`StoreError`] if the page is damaged.
pub fn vacuum_page<S: PageStore>(
    store: &S,
    layout: ListLayout,
    block: Block,
    mut is_dead: impl FnMut(Tid) -> bool,
) -> Result<Option<Vacuumed>, StoreError> {
    let bytes = store.read(block)?;
    if page::is_new(&bytes) || page::kind_of(&bytes, block)? != PageKind::List {
        return Ok(None);
    }
    let page = ListPage::parse(&bytes, block, layout)?;
    let found = Vacuumed {
        list: page.info.owner,
        live: page.len(),
        removed: 0,
    };
    if !(0..page.len()).any(|index| is_dead(page.tid(index))) {
        return Ok(Some(found));
    }
    drop(bytes);

    let mut change = store.change();
    let slot = change.lock(block)?;
    let page = ListPage::parse_of(change.page(slot), block, layout, found.list)?;
    let keep: Vec<usize> = (0..page.len())
        .filter(|&index| !is_dead(page.tid(index)))
        .collect();
    let removed = page.len() - keep.len();
    compact(change.page_mut(slot), layout, &keep);
    change.commit();
    Ok(Some(Vacuumed {
        live: keep.len(),
        removed,
        ..found
    }))
}

/// Keeps these entries, in ascending order, and moves those from the end of the
/// page into the gaps: whatever stays where it is need not be logged.
fn compact(page: &mut PageBytes, layout: ListLayout, keep: &[usize]) {
    let live = keep.len();
    let gaps = (0..live).filter(|index| keep.binary_search(index).is_err());
    for (to, &from) in gaps.zip(keep.iter().rev()) {
        let code = layout.code_at(from);
        page.copy_within(code..code + layout.code_size, layout.code_at(to));
        let record = layout.record_at(from);
        page.copy_within(record..record + RECORD_SIZE, layout.record_at(to));
    }
    layout.set_count(page, live);
}
