//! Inverted lists: chains of pages that hold the entries of one list.
//!
//! `layout` says where the parts of an entry lie. An entry has a slot, which it keeps
//! for as long as it lives: a scan that has read a code may come back for the row. A
//! slot whose row pointer is 0 is free.

use crate::error::StoreError;
use crate::layout::{BLOCK_CODES, FACTORS, ListLayout, pack};
use crate::meta::META_BLOCK;
use crate::page::{
    self, Block, DATA_START, NO_BLOCK, PageBytes, PageInfo, PageKind, get_u64, put_u32, put_u64,
};
use crate::store::PageStore;
use crate::tid::Tid;

/// A list may have this many pages before its length is compared with the
/// number of pages that exist, which costs a system call.
const UNCHECKED_PAGES: u32 = 1024;

/// Where the row of an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The row pointer lies with the code.
    Tid(Tid),
    /// It lies in a row page.
    Row {
        /// The row page.
        block: Block,
        /// Place in the row page.
        index: usize,
    },
}

/// A page of an inverted list.
#[derive(Debug, Clone, Copy)]
pub struct ListPage<'a> {
    bytes: &'a PageBytes,
    layout: ListLayout,
    info: PageInfo,
}

impl<'a> ListPage<'a> {
    pub(crate) fn parse(
        bytes: &'a PageBytes,
        block: Block,
        layout: ListLayout,
    ) -> Result<Self, StoreError> {
        let info = page::check(bytes, block, PageKind::List)?;
        if info.count > layout.capacity() || info.free > info.count {
            let reason = format!("{} entries of which {} are free", info.count, info.free);
            return Err(StoreError::corrupted(block, reason));
        }
        if (info.lower, info.upper) != layout.hole(info.count) {
            let reason = format!(
                "{} entries, and a hole from {} to {}",
                info.count, info.lower, info.upper
            );
            return Err(StoreError::corrupted(block, reason));
        }
        let page = Self {
            bytes,
            layout,
            info,
        };
        page.check_row_pages(block)?;
        Ok(page)
    }

    pub(crate) fn parse_of(
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

    /// Checks that row pages have names as far as entries have rows, and none that would
    /// lock a page twice.
    fn check_row_pages(&self, block: Block) -> Result<(), StoreError> {
        let used = self.row_pages().len();
        for index in 0..self.layout.row_pages() {
            let rows = self.layout.row_page(self.bytes, index);
            let is_possible = if index < used {
                ![NO_BLOCK, META_BLOCK, block].contains(&rows)
            } else {
                rows == NO_BLOCK
            };
            if !is_possible {
                let reason = format!("row page {index} of {used} is block {rows}");
                return Err(StoreError::corrupted(block, reason));
            }
        }
        Ok(())
    }

    pub(crate) fn info(&self) -> PageInfo {
        self.info
    }

    /// Number of slots in use, some of which may be free again.
    #[must_use]
    pub fn len(&self) -> usize {
        self.info.count
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.info.count == 0
    }

    /// How many of these slots are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.info.free
    }

    /// The codes of all slots in use, one behind another or in whole blocks; begins at a
    /// multiple of 32 bytes within the page.
    #[must_use]
    pub fn codes(&self) -> &'a [u8] {
        let len = self.layout.codes_len(self.info.count);
        &self.bytes[DATA_START..DATA_START + len]
    }

    /// The 32-bit floats of one of the factors of a lossy code, for all slots in use.
    ///
    /// # Panics
    /// If there is no such factor.
    #[must_use]
    pub fn factor(&self, factor: usize) -> &'a [u8] {
        assert!(self.layout.codes().is_lossy && factor < FACTORS);
        let at = self.layout.factor_at(factor);
        &self.bytes[at..at + self.info.count * size_of::<f32>()]
    }

    /// Where the row of slot `index`, one of those in use, is. `None` if the slot is known
    /// to be free; where there are row pages, only the row page knows.
    ///
    /// # Panics
    /// If the slot is not in use.
    #[must_use]
    pub fn place(&self, index: usize) -> Option<Place> {
        assert!(index < self.info.count);
        match self.layout.row_capacity() {
            0 => {
                let bits = get_u64(self.bytes, self.layout.tid_at(index));
                Tid::from_bits(bits).map(Place::Tid)
            }
            capacity => Some(Place::Row {
                block: self.layout.row_page(self.bytes, index / capacity),
                index: index % capacity,
            }),
        }
    }

    /// The rows of all slots in use, `None` for free ones; nothing where there are row pages.
    pub fn tids(&self) -> impl Iterator<Item = Option<Tid>> + use<'a> {
        let count = match self.layout.row_capacity() {
            0 => self.info.count,
            _ => 0,
        };
        let at = self.layout.tid_at(0);
        let (bits, _) = self.bytes[at..at + count * size_of::<u64>()].as_chunks();
        bits.iter()
            .map(|bits| Tid::from_bits(u64::from_ne_bytes(*bits)))
    }

    /// The row pages, each with how many of its slots are in use.
    pub fn row_pages(&self) -> impl ExactSizeIterator<Item = (Block, usize)> + use<'a> {
        let (page, capacity) = (*self, self.layout.row_capacity());
        let pages = match capacity {
            0 => 0,
            capacity => page.info.count.div_ceil(capacity),
        };
        (0..pages).map(move |index| {
            let used = page.info.count - index * capacity;
            let block = page.layout.row_page(page.bytes, index);
            (block, used.min(capacity))
        })
    }
}

/// Makes `page` a page of `list` without entries.
pub(crate) fn init_list_page(page: &mut PageBytes, layout: ListLayout, list: u32) {
    page::init(page, PageKind::List, list);
    let (lower, upper) = layout.hole(0);
    page::set_bounds(page, lower, upper);
    for index in 0..layout.row_pages() {
        put_u32(page, layout.row_page_at(index), NO_BLOCK);
    }
}

/// Puts code and factors of an entry, and its row pointer if there are no row pages,
/// into a slot.
pub(crate) fn put_entry(
    page: &mut PageBytes,
    layout: ListLayout,
    slot: usize,
    tid: Tid,
    record: &[u8],
) {
    let (lower, upper) = layout.hole(slot + 1);
    page::shrink_hole(page, lower, upper);
    let [code, factors, ..] = layout.split(record);
    if layout.codes().is_packed {
        let size = layout.block_size();
        let at = DATA_START + slot / BLOCK_CODES * size;
        pack(&mut page[at..at + size], slot % BLOCK_CODES, code);
    } else {
        let at = DATA_START + slot * code.len();
        page[at..at + code.len()].copy_from_slice(code);
    }
    for (factor, number) in factors.chunks_exact(size_of::<f32>()).enumerate() {
        let at = layout.factor_at(factor) + slot * number.len();
        page[at..at + number.len()].copy_from_slice(number);
    }
    if layout.row_capacity() == 0 {
        put_u64(page, layout.tid_at(slot), tid.to_bits());
    }
}

pub(crate) fn set_row_page(page: &mut PageBytes, layout: ListLayout, index: usize, block: Block) {
    put_u32(page, layout.row_page_at(index), block);
}

/// Counts the pages of a chain, to notice one that runs in a circle.
#[derive(Debug)]
pub(crate) struct PageCounter {
    visited: u32,
    limit: u32,
}

impl PageCounter {
    pub(crate) fn new() -> Self {
        Self {
            visited: 0,
            limit: UNCHECKED_PAGES,
        }
    }

    /// Counts `block`.
    ///
    /// # Errors
    /// [`StoreError`] if the chain has more pages than the store.
    pub(crate) fn count<S: PageStore>(
        &mut self,
        store: &S,
        block: Block,
    ) -> Result<(), StoreError> {
        self.visited += 1;
        if self.visited <= self.limit {
            return Ok(());
        }
        self.limit = store.block_count();
        if self.visited > self.limit {
            let reason = "the pages of a list run in a circle";
            return Err(StoreError::corrupted(block, reason));
        }
        Ok(())
    }
}

/// Walks the pages of one list.
#[derive(Debug)]
pub struct ListCursor {
    list: u32,
    next: Block,
    counter: PageCounter,
}

impl ListCursor {
    /// Begins at the first page of a list.
    #[must_use]
    pub fn new(list: u32, first: Block) -> Self {
        Self {
            list,
            next: first,
            counter: PageCounter::new(),
        }
    }

    /// The page that comes next, `None` at the end of the list.
    #[must_use]
    pub fn next(&self) -> Option<Block> {
        Some(self.next).filter(|next| *next != NO_BLOCK)
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
        self.counter.count(store, block)?;
        Ok(true)
    }
}
