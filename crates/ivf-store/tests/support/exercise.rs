//! Every operation over pages that may be damaged. What an operation returns depends on
//! the damage; that it returns, from how many pages, and what may be relied on when it
//! says that all is well, does not.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::hint::black_box;

use ivf_store::{
    BLOCK_CODES, Block, FACTORS, ListCursor, ListEntry, ListLayout, ListPage, MemoryStore, Meta,
    PAGE_SIZE, PageBytes, PageChange, PageKind, PageStore, Place, QueryLists, RecallCurve, RowPage,
    StoreError, insert, list_entries, move_insert_block, read_extent, vacuum_page,
};

use super::index::{record, tid};

/// So many pages of a list may be read before their number is compared with that of all.
const UNCHECKED_PAGES: u64 = 1024;
/// Of the lists of an index at most so many take part in what is done for single lists.
const LISTS: u32 = 24;

/// A store that fails the test when an operation takes more pages than it may.
struct Counted {
    store: MemoryStore,
    left: Cell<u64>,
}

impl Counted {
    /// The result of an operation that may read and lock `most` pages.
    fn within<T>(&self, most: u64, operation: impl FnOnce(&Self) -> T) -> T {
        self.left.set(most);
        operation(self)
    }

    fn take(&self) {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.expect("too many pages for one operation"));
    }

    /// How many pages of one list may be read, even if they run in a circle.
    fn longest_list(&self) -> u64 {
        u64::from(self.store.block_count()).max(UNCHECKED_PAGES) + 1
    }
}

impl PageStore for Counted {
    type Page<'a> = <MemoryStore as PageStore>::Page<'a>;
    type Change<'a> = CountedChange<'a>;

    fn block_count(&self) -> Block {
        self.store.block_count()
    }

    fn read(&self, block: Block) -> Result<Self::Page<'_>, StoreError> {
        self.take();
        self.store.read(block)
    }

    fn change(&self) -> CountedChange<'_> {
        CountedChange {
            counted: self,
            change: self.store.change(),
        }
    }
}

struct CountedChange<'a> {
    counted: &'a Counted,
    change: <MemoryStore as PageStore>::Change<'a>,
}

impl PageChange for CountedChange<'_> {
    fn lock(&mut self, block: Block) -> Result<usize, StoreError> {
        self.counted.take();
        self.change.lock(block)
    }

    fn try_lock(&mut self, block: Block) -> Result<Option<usize>, StoreError> {
        self.counted.take();
        self.change.try_lock(block)
    }

    fn extend(&mut self) -> Result<(Block, usize), StoreError> {
        self.counted.take();
        self.change.extend()
    }

    fn page(&self, slot: usize) -> &PageBytes {
        self.change.page(slot)
    }

    fn page_mut(&mut self, slot: usize) -> &mut PageBytes {
        self.change.page_mut(slot)
    }

    fn commit(self) {
        self.change.commit();
    }
}

/// Runs every operation: with the meta page as it was before the damage, which a scan
/// may have read then, and with what it says now.
pub fn exercise(store: MemoryStore, before: &Meta) {
    let store = Counted {
        store,
        left: Cell::new(0),
    };
    if let Ok(now) = store.within(1, Meta::read) {
        assert_bounded(&now, store.block_count());
        operate(&store, &now);
    }
    operate(&store, before);
}

/// Callers allocate memory by these numbers.
fn assert_bounded(meta: &Meta, blocks: Block) {
    assert!((1..blocks).contains(&meta.lists), "{meta:?} of {blocks}");
    let size = u64::from(blocks) * PAGE_SIZE as u64;
    for extent in [meta.centroids, meta.directory, meta.state, meta.recall] {
        assert!(extent.bytes <= size, "{meta:?} of {blocks} blocks");
    }
}

fn operate(store: &Counted, meta: &Meta) {
    let pages = u64::from(meta.directory.blocks);
    let entries = store.within(pages, |store| {
        list_entries(store, &meta.directory, meta.lists)
    });
    for (kind, extent) in [
        (PageKind::Centroids, &meta.centroids),
        (PageKind::State, &meta.state),
    ] {
        let mut bytes = vec![0; extent.bytes as usize];
        // The result depends on the damage, as everywhere here.
        let _ = store.within(extent.blocks.into(), |store| {
            read_extent(store, kind, extent, &mut bytes)
        });
    }
    read_curve(store, meta);
    scan(store, meta, &entries.unwrap_or_default());
    change_lists(store, meta);
    for block in 0..store.block_count() {
        vacuum(store, meta, block);
    }
    replace_curve(store, meta);
}

fn read_curve(store: &Counted, meta: &Meta) {
    if let Ok(curve) = store.within(1, |store| RecallCurve::read(store, meta)) {
        let nprobe = curve.effort(0.95).nprobe;
        for nprobe in nprobe {
            assert!((1..=meta.lists).contains(&nprobe), "{curve:?}");
            assert!((0.0..=1.0).contains(&curve.recall(nprobe)), "{curve:?}");
        }
    }
}

fn scan(store: &Counted, meta: &Meta, entries: &[ListEntry]) {
    let layout = meta.layout;
    for (list, entry) in (0..).zip(entries) {
        let mut rows = BTreeSet::new();
        store.within(store.longest_list(), |store| {
            let mut cursor = ListCursor::new(list, entry.first);
            while let Ok(true) = cursor.advance(store, layout, |page| {
                read_list_page(page, layout, &mut rows);
            }) {}
        });
        for (block, index) in rows {
            store.within(1, |store| read_row(store, layout, list, block, index));
        }
    }
}

fn read_list_page(page: &ListPage<'_>, layout: ListLayout, rows: &mut BTreeSet<(Block, usize)>) {
    assert!(page.len() <= layout.capacity() && page.free() <= page.len());
    let codes = layout.codes();
    let step = if codes.is_packed { BLOCK_CODES } else { 1 };
    let count = page.len().next_multiple_of(step);
    assert_eq!(page.codes().len(), count * codes.code_size);
    for factor in 0..if codes.is_lossy { FACTORS } else { 0 } {
        assert_eq!(page.factor(factor).len(), 4 * page.len());
    }
    let used: usize = page.row_pages().map(|(_, used)| used).sum();
    let has_row_pages = layout.row_capacity() > 0;
    assert_eq!(used, if has_row_pages { page.len() } else { 0 });
    for entry in 0..page.len() {
        match page.place(entry) {
            Some(Place::Row { block, index }) => {
                assert!(has_row_pages && index < layout.row_capacity());
                rows.insert((block, index));
            }
            place => assert!(!has_row_pages, "{place:?}"),
        }
    }
}

/// Comes back for a row, as a scan does.
fn read_row(store: &Counted, layout: ListLayout, list: u32, block: Block, index: usize) {
    let Ok(bytes) = store.read(block) else {
        return;
    };
    let Ok(page) = RowPage::parse(&bytes, block, layout, list) else {
        return;
    };
    let refine = layout.codes().refine.expect("only these have row pages");
    assert_eq!(page.code(index).len(), refine.code_size);
    for factor in 0..if refine.is_lossy { FACTORS } else { 0 } {
        black_box(page.factor(factor, index));
    }
    black_box(page.tid(index));
}

fn change_lists(store: &Counted, meta: &Meta) {
    // A list that does not exist, too.
    for list in (0..=meta.lists).rev().take(LISTS as usize) {
        // The directory entry, the insert pages, the list, of which pages that say that they
        // have room are looked at again and with their row pages, the new page with a row
        // page, and the directory entry.
        let row_pages = meta.layout.row_pages() as u64;
        let most = store.longest_list() * (2 + row_pages) + 7;
        let record = record(meta, list.into());
        for (row, is_busy) in [(2000, false), (3000, true), (4000, false)] {
            let busy = 0..if is_busy { store.block_count() } else { 0 };
            busy.for_each(|block| store.store.make_busy(block));
            let inserted = store.within(most, |store| {
                insert(store, meta, list, tid(row + list), &record, row)
            });
            store.store.take_waits();
            assert!(inserted.is_err() || list < meta.lists);
        }
        let last = store.block_count().saturating_sub(1);
        let _ = store.within(1, |store| {
            move_insert_block(store, &meta.directory, list, last)
        });
    }
}

fn vacuum(store: &Counted, meta: &Meta, block: Block) {
    let run = || {
        // To look at it, and to change it with its list page.
        store.within(3, |store| {
            vacuum_page(store, meta.layout, block, |tid| tid.offset() % 3 == 0)
        })
    };
    if let Ok(Some(first)) = run() {
        let second = run().unwrap().unwrap();
        assert_eq!((second.live, second.removed), (first.live, 0));
        assert_eq!(second.list, first.list);
    }
}

fn replace_curve(store: &Counted, meta: &Meta) {
    let query = QueryLists {
        nearest: vec![(1, 0.0), (meta.lists, 1.0)],
        gaps: RecallCurve::ranks(meta.lists).map(|_| 0.5).collect(),
    };
    let curve = RecallCurve::measured(meta.lists, &[query]);
    let replaced = store.within(2, |store| curve.replace(store, meta, 78));
    if replaced.is_ok() {
        let read = store.within(1, |store| RecallCurve::read(store, meta));
        assert_eq!(read, Ok(curve), "a curve that was written must be read");
    }
}
