//! Every operation over pages that may be damaged. What an operation returns depends on
//! the damage; that it returns, from how many pages, and what may be relied on when it
//! says that all is well, does not.

use std::cell::Cell;
use std::hint::black_box;

use ivf_store::{
    Block, ListCursor, ListEntry, MemoryStore, Meta, PAGE_SIZE, PageBytes, PageChange, PageKind,
    PageStore, RecallCurve, StoreError, insert, list_entries, list_entry, move_insert_block,
    read_extent, vacuum_page,
};

use super::index::{code, tid};

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
    for extent in [meta.centroids, meta.directory, meta.recall] {
        assert!(extent.bytes <= size, "{meta:?} of {blocks} blocks");
    }
}

fn operate(store: &Counted, meta: &Meta) {
    let pages = u64::from(meta.directory.blocks);
    let entries = store.within(pages, |store| {
        list_entries(store, &meta.directory, meta.lists)
    });
    let mut centroids = vec![0; meta.centroids.bytes as usize];
    // The result depends on the damage, as everywhere here.
    let _ = store.within(meta.centroids.blocks.into(), |store| {
        read_extent(store, PageKind::Centroids, &meta.centroids, &mut centroids)
    });
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
        let nprobe = curve.nprobe(0.95);
        assert!((1..=meta.lists).contains(&nprobe), "{curve:?}");
        assert!((0.0..=1.0).contains(&curve.recall(nprobe)), "{curve:?}");
    }
}

fn scan(store: &Counted, meta: &Meta, entries: &[ListEntry]) {
    let layout = meta.layout();
    for (list, entry) in (0..).zip(entries) {
        store.within(store.longest_list(), |store| {
            let mut cursor = ListCursor::new(list, entry.first);
            while let Ok(true) = cursor.advance(store, layout, |page| {
                assert_eq!(page.codes().len(), page.len() * layout.code_size());
                assert!(page.len() <= layout.capacity());
                for entry in 0..page.len() {
                    black_box(page.tid(entry));
                }
            }) {}
        });
    }
}

fn change_lists(store: &Counted, meta: &Meta) {
    // A list that does not exist, too.
    for list in (0..=meta.lists).rev().take(LISTS as usize) {
        let entry = store.within(1, |store| list_entry(store, &meta.directory, list));
        assert!(entry.is_err() || list < meta.lists);
        // The directory entry, the list and its new page, and the directory entry.
        let most = store.longest_list() + 3;
        let code = code(meta, list.into());
        let _ = store.within(most, |store| {
            insert(store, meta, list, tid(2000 + list), &code)
        });
        let last = store.block_count().saturating_sub(1);
        let _ = store.within(1, |store| {
            move_insert_block(store, &meta.directory, list, last)
        });
    }
}

fn vacuum(store: &Counted, meta: &Meta, block: Block) {
    let run = || {
        store.within(2, |store| {
            vacuum_page(store, meta.layout(), block, |tid| tid.offset() % 3 == 0)
        })
    };
    if let Ok(Some(first)) = run() {
        let second = run().unwrap().unwrap();
        assert_eq!((second.live, second.removed), (first.live, 0));
        assert_eq!(second.list, first.list);
    }
}

fn replace_curve(store: &Counted, meta: &Meta) {
    let curve = RecallCurve::measured(meta.lists, &[vec![1, meta.lists]]);
    let replaced = store.within(2, |store| curve.replace(store, meta, 78));
    if replaced.is_ok() {
        let read = store.within(1, |store| RecallCurve::read(store, meta));
        assert_eq!(read, Ok(curve), "a curve that was written must be read");
    }
}
