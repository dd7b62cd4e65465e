//! Inserts into a list whose pages others work on: where they go, and for what they wait.

use std::collections::BTreeSet;

use ivf_store::{
    Block, ListCursor, MemoryStore, Meta, NO_BLOCK, PageStore, SPECIAL_START, StoreError, insert,
    list_entries,
};

use support::contents::contents;
use support::index::{Shape, build, packed, record, refined, tid};

mod support {
    pub mod contents;
    pub mod index;
}

/// Sixteen entries to a page, or 128 with row pages.
const SHAPES: [Shape; 2] = [
    Shape::floats(125, 1),
    Shape::of(refined(packed(48), 380, true), 1),
];
/// So many insert pages a list may have.
const MOST: usize = 3;

/// An index with one list, into which rows are inserted one after another.
struct Hot {
    store: MemoryStore,
    meta: Meta,
    rows: u32,
}

impl Hot {
    fn new(shape: Shape) -> Self {
        let (store, meta) = build(shape, &[(0, 0)]);
        Self {
            store,
            meta,
            rows: 1,
        }
    }

    fn capacity(&self) -> usize {
        self.meta.layout.capacity()
    }

    /// The pages of the list, each with how many entries it has.
    fn pages(&self) -> Vec<(Block, usize)> {
        let first = list_entries(&self.store, &self.meta.directory, 1).unwrap()[0].first;
        let mut cursor = ListCursor::new(0, first);
        let mut pages = Vec::new();
        let mut block = first;
        while block != NO_BLOCK {
            let mut count = 0;
            cursor
                .advance(&self.store, self.meta.layout, |page| count = page.len())
                .unwrap();
            pages.push((block, count));
            let bytes = self.store.read(block).unwrap();
            let next = bytes[SPECIAL_START..SPECIAL_START + 4].try_into().unwrap();
            block = Block::from_ne_bytes(next);
        }
        pages
    }

    fn try_insert(&mut self, writer: u32, busy: &[Block]) -> Result<Vec<Block>, StoreError> {
        for &block in busy {
            self.store.make_busy(block);
        }
        let record = record(&self.meta, self.rows.into());
        insert(&self.store, &self.meta, 0, tid(self.rows), &record, writer)?;
        self.rows += 1;
        Ok(self.store.take_waits())
    }

    /// Inserts a row while these pages are busy; returns for which of them it waited.
    fn insert(&mut self, writer: u32, busy: &[Block]) -> Vec<Block> {
        self.try_insert(writer, busy).unwrap()
    }

    /// Inserts rows while all pages are busy until the list has so many pages.
    fn grow(&mut self, pages: usize) {
        for _ in 0..200 {
            let busy: Vec<Block> = self.pages().iter().map(|&(block, _)| block).collect();
            if busy.len() == pages {
                return;
            }
            self.insert(0, &busy);
        }
        panic!("200 rows found all pages busy, and none made another page");
    }
}

#[test]
fn rows_go_to_one_page_after_another_if_none_is_busy() {
    for shape in SHAPES {
        let mut hot = Hot::new(shape);
        let capacity = hot.capacity();
        for writer in 0..capacity as u32 {
            assert_eq!(hot.insert(writer, &[]), []);
        }
        let counts: Vec<usize> = hot.pages().iter().map(|&(_, count)| count).collect();
        assert_eq!(counts, [capacity, 1]);
    }
}

#[test]
fn who_finds_a_page_busy_goes_to_another_one() {
    for shape in SHAPES {
        let mut hot = Hot::new(shape);
        hot.grow(2);
        let [(first, before), (second, count)] = hot.pages()[..] else {
            panic!("{:?}", hot.pages());
        };
        for writer in 0..4 {
            assert_eq!(hot.insert(writer, &[first]), []);
        }
        assert_eq!(hot.pages(), [(first, before), (second, count + 4)]);
        // The first is preferred as soon as it is not busy.
        assert_eq!(hot.insert(3, &[second]), []);
        assert_eq!(hot.insert(3, &[]), []);
        assert_eq!(hot.pages(), [(first, before + 2), (second, count + 4)]);
        assert_eq!(contents(&hot.store).unwrap().len(), hot.rows as usize);
    }
}

#[test]
fn a_list_gets_only_so_many_insert_pages_and_writers_spread_over_them() {
    let mut hot = Hot::new(SHAPES[1]);
    hot.grow(MOST);
    let busy: Vec<Block> = hot.pages().iter().map(|&(block, _)| block).collect();
    let mut waited = BTreeSet::new();
    for writer in 0..60 {
        let waits = hot.insert(writer, &busy);
        assert_eq!(waits.len(), 1, "it waits for the page that it chose");
        waited.extend(waits);
    }
    assert_eq!(waited, busy.iter().copied().collect());
    assert_eq!(hot.pages().len(), MOST);
    // Where the first is busy, the others share the work.
    let [_, second, third] = hot.pages()[..] else {
        panic!("{:?}", hot.pages());
    };
    for writer in 0..10 {
        assert_eq!(hot.insert(writer, &busy[..1]), []);
    }
    let [_, second_now, third_now] = hot.pages()[..] else {
        panic!("{:?}", hot.pages());
    };
    assert_eq!((second_now.1, third_now.1), (second.1 + 5, third.1 + 5));
}

#[test]
fn pages_of_a_list_that_was_hot_are_filled_before_it_gets_others() {
    for shape in SHAPES {
        let mut hot = Hot::new(shape);
        hot.grow(MOST);
        let room: usize = (hot.pages().iter())
            .map(|&(_, count)| hot.capacity() - count)
            .sum();
        for _ in 0..room {
            hot.insert(0, &[]);
        }
        let full = hot.capacity();
        assert!(hot.pages().iter().all(|&(_, count)| count == full));
        assert_eq!(hot.pages().len(), MOST);
        // All insert pages are full, and whoever comes finds the way to the end.
        for writer in 0..3 {
            hot.insert(writer, &[]);
        }
        assert_eq!(hot.pages().len(), MOST + 1);
        assert_eq!(contents(&hot.store).unwrap().len(), hot.rows as usize);
    }
}

#[test]
fn a_list_that_stays_hot_fills_its_pages() {
    let mut hot = Hot::new(SHAPES[0]);
    for row in 0..2000 {
        // Now this page is busy, now that one, and often all of them.
        let pages = hot.pages();
        let busy: Vec<Block> = (pages.iter().rev())
            .take(MOST)
            .enumerate()
            .filter(|&(place, _)| row % 5 < 3 || place != row % MOST)
            .map(|(_, &(block, _))| block)
            .collect();
        hot.insert(row as u32 % 8, &busy);
    }
    let pages = hot.pages();
    let room = hot.capacity() * pages.len() - hot.rows as usize;
    assert!(
        room <= MOST * hot.capacity(),
        "room for {room} in {} pages",
        pages.len()
    );
    assert_eq!(contents(&hot.store).unwrap().len(), hot.rows as usize);
}

#[test]
fn a_wrong_insert_page_is_an_error() {
    // No page, no page, the state of the codes, what lies beyond the end.
    for (place, block) in [(0, 0), (0, NO_BLOCK), (0, 1), (1, 1), (2, 5000)] {
        let mut hot = Hot::new(SHAPES[1]);
        let first = hot.pages()[0].0;
        let directory = hot.meta.directory.first;
        let at = 32 + 4 + 4 * place;
        hot.store.damage(directory, at, &Block::to_ne_bytes(block));
        let pages = hot.store.block_count();
        let found = hot.try_insert(0, &[first]);
        assert!(found.is_err(), "block {block} at place {place}");
        assert_eq!(hot.store.block_count(), pages);
    }
}
