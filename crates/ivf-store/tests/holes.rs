//! The holes of list pages and row pages: the room for further codes, which is not logged.

use ivf_store::{
    Block, DATA_START, MemoryStore, Meta, PageStore, StoreError, insert, list_entries, vacuum_page,
};

use support::contents::contents;
use support::index::{Shape, build, packed, record, refined, tid};

mod support {
    pub mod contents;
    pub mod index;
}

const PD_LOWER: usize = 12;
const CODE: usize = 48;
const REFINE: usize = 384;

/// An index with one row, its list page and its row page.
fn one_row() -> (MemoryStore, Meta, Block, Block) {
    let shape = Shape::of(refined(packed(CODE), REFINE, true), 1);
    let (store, meta) = build(shape, &[(0, 1)]);
    let list = list_entries(&store, &meta.directory, 1).unwrap()[0].first;
    (store, meta, list, list + 1)
}

/// Begin and end of a page's hole, in bytes behind the begin of the data.
fn hole(store: &MemoryStore, block: Block) -> [usize; 2] {
    let page = store.read(block).unwrap();
    [PD_LOWER, PD_LOWER + 2]
        .map(|at| usize::from(u16::from_ne_bytes([page[at], page[at + 1]])) - DATA_START)
}

#[test]
fn it_is_the_room_for_further_codes() {
    let (store, meta, list, rows) = one_row();
    let layout = meta.layout;
    let (capacity, row_capacity) = (layout.capacity(), layout.row_capacity());
    let block = 32 * CODE;
    assert_eq!(hole(&store, list), [block, capacity * CODE]);
    assert_eq!(hole(&store, rows), [REFINE, row_capacity * REFINE]);
    for number in 2..=capacity {
        let row = record(&meta, number as u64);
        insert(&store, &meta, 0, tid(number as u32), &row, 0).unwrap();
        let blocks = number.div_ceil(32) * block;
        assert_eq!(hole(&store, list), [blocks, capacity * CODE]);
        let used = number.min(row_capacity) * REFINE;
        assert_eq!(hole(&store, rows), [used, row_capacity * REFINE]);
    }
    let found = contents(&store).unwrap();
    for number in 1..=capacity {
        let row = record(&meta, number as u64);
        assert_eq!(found[&tid(number as u32)].record, row);
    }
    // Codes that are not packed are room one by one.
    let (flat, meta) = build(Shape::floats(300, 1), &[(0, 1), (0, 2)]);
    let first = list_entries(&flat, &meta.directory, 1).unwrap()[0].first;
    let end = meta.layout.capacity() * 1200;
    assert_eq!(hole(&flat, first), [2 * 1200, end]);
    // Slots that vacuum frees keep their places.
    let before = [list, rows].map(|page| hole(&store, page));
    for page in [list, rows] {
        vacuum_page(&store, layout, page, |_| true).unwrap();
    }
    assert_eq!([list, rows].map(|page| hole(&store, page)), before);
}

#[test]
fn one_that_takes_in_entries_is_an_error() {
    type Use = fn(&MemoryStore, &Meta, Block) -> Result<(), StoreError>;
    let read: Use = |store, _, _| contents(store).map(drop);
    let write: Use = |store, meta, _| insert(store, meta, 0, tid(2), &record(meta, 2), 0);
    let clean: Use = |store, meta, rows| vacuum_page(store, meta.layout, rows, |_| true).map(drop);
    for (is_list, lower) in [
        (true, 0),
        (true, CODE),
        (true, 64 * CODE),
        (false, 0),
        (false, REFINE / 2),
        (false, REFINE * 1000),
    ] {
        for how in [read, write, clean] {
            let (store, meta, list, rows) = one_row();
            let page = if is_list { list } else { rows };
            let lower = (DATA_START + lower).min(0x7fff) as u16;
            store.damage(page, PD_LOWER, &lower.to_ne_bytes());
            let Err(StoreError::Corrupted { block, .. }) = how(&store, &meta, rows) else {
                panic!("no error for a hole from {lower}");
            };
            assert_eq!(block, page);
        }
    }
}
