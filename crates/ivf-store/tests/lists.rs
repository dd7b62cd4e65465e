//! The list algorithms over pages in memory: random operations against a model,
//! every state in which a crash could leave the pages, and what is said of damage.

use std::collections::BTreeMap;

use ivf_store::{
    Block, Distance, Element, ListCursor, META_BLOCK, MemoryStore, Meta, NO_BLOCK, PAGE_SIZE,
    PageKind, PageStore, RecallCurve, SPECIAL_START, StoreError, Tid, insert, list_entries,
    move_insert_block, read_extent, vacuum_page, write_extent,
};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;

use support::index::{Shape, build, code, tid};

mod support {
    pub mod index;
}

type Contents = BTreeMap<Tid, (u32, Vec<u8>)>;

/// Reads everything that a scan of all lists finds.
fn contents(store: &MemoryStore) -> Result<Contents, StoreError> {
    let mut found = Contents::new();
    scan_all(store, |list, tid, code| {
        let before = found.insert(tid, (list, code.to_vec()));
        assert!(before.is_none(), "{tid:?} was found twice");
    })?;
    Ok(found)
}

fn scan_all(store: &MemoryStore, mut visit: impl FnMut(u32, Tid, &[u8])) -> Result<(), StoreError> {
    let meta = Meta::read(store)?;
    let layout = meta.layout();
    let entries = list_entries(store, &meta.directory, meta.lists)?;
    for (list, entry) in (0..).zip(entries) {
        let mut cursor = ListCursor::new(list, entry.first);
        while cursor.advance(store, layout, |page| {
            for (index, code) in page.codes().chunks(layout.code_size()).enumerate() {
                visit(list, page.tid(index), code);
            }
        })? {}
    }
    Ok(())
}

fn vacuum(store: &MemoryStore, meta: &Meta, dead: impl Fn(Tid) -> bool) {
    let mut with_room: BTreeMap<u32, Block> = BTreeMap::new();
    for block in 0..store.block_count() {
        if let Some(page) = vacuum_page(store, meta.layout(), block, &dead).unwrap()
            && page.live < meta.layout().capacity()
        {
            with_room.entry(page.list).or_insert(block);
        }
    }
    for (list, block) in with_room {
        move_insert_block(store, &meta.directory, list, block).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert { list: u32, number: u32 },
    Vacuum { modulus: u32 },
}

const LISTS: u32 = 5;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..LISTS, 1000u32..4000).prop_map(|(list, number)| Step::Insert { list, number }),
        1 => (2u32..6).prop_map(|modulus| Step::Vacuum { modulus }),
    ];
    proptest::collection::vec(step, 0..80)
}

fn shape() -> impl Strategy<Value = Shape> {
    let dimensions = prop_oneof![Just(3u32), Just(384), Just(1000), Just(2000), 1u32..600];
    let element = select(vec![Element::Float32, Element::Float16]);
    let distance = select(vec![Distance::L2, Distance::Cosine]);
    let lists = select(vec![1, LISTS]);
    (dimensions, element, distance, lists).prop_map(|(dimensions, element, distance, lists)| {
        Shape {
            dimensions,
            element,
            distance,
            lists,
        }
    })
}

proptest! {
    #[test]
    fn lists_equal_a_model_and_every_crash_leaves_a_whole_state(
        shape in shape(),
        rows in proptest::collection::btree_set(0u32..1000, 0..60),
        steps in steps(),
    ) {
        let rows: Vec<(u32, u32)> = rows.iter().map(|&n| (n % shape.lists, n)).collect();
        let (store, meta) = build(shape, &rows);
        prop_assert_eq!(&Meta::read(&store).unwrap(), &meta);
        prop_assert_eq!(RecallCurve::read(&store, &meta).unwrap().nprobe(1.0), shape.lists);
        let mut model: Contents = rows
            .iter()
            .map(|&(list, number)| (tid(number), (list, code(&meta, number.into()))))
            .collect();
        prop_assert_eq!(&contents(&store).unwrap(), &model);

        store.keep_history();
        for step in steps {
            let before = model.clone();
            match step {
                Step::Insert { list, number } => {
                    if model.contains_key(&tid(number)) {
                        continue;
                    }
                    let (list, code) = (list % shape.lists, code(&meta, number.into()));
                    insert(&store, &meta, list, tid(number), &code).unwrap();
                    model.insert(tid(number), (list, code));
                }
                Step::Vacuum { modulus } => {
                    let dead = |tid: Tid| (tid.block() * 50 + u32::from(tid.offset())).is_multiple_of(modulus);
                    vacuum(&store, &meta, dead);
                    model.retain(|&tid, _| !dead(tid));
                }
            }
            prop_assert_eq!(&contents(&store).unwrap(), &model);
            for pages in store.take_history() {
                let crashed = contents(&MemoryStore::with_pages(pages)).unwrap();
                // Nothing old is lost that lives, and nothing is there that never was.
                let kept = before.iter().filter(|(tid, _)| model.contains_key(tid));
                prop_assert!(kept.clone().all(|(tid, entry)| crashed.get(tid) == Some(entry)));
                let known = |tid: &Tid| before.get(tid).or_else(|| model.get(tid));
                prop_assert!(crashed.iter().all(|(tid, entry)| known(tid) == Some(entry)));
            }
        }
    }

    #[test]
    fn extents_return_what_was_written(bytes in proptest::collection::vec(any::<u8>(), 0..30_000)) {
        let store = MemoryStore::new();
        store.append(&[0; PAGE_SIZE]).unwrap();
        let extent = write_extent(&store, PageKind::Centroids, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        read_extent(&store, PageKind::Centroids, &extent, &mut read).unwrap();
        prop_assert_eq!(read, bytes);
        prop_assert_eq!(store.block_count(), 1 + extent.blocks);
    }
}

fn block_of(error: &StoreError) -> Block {
    match error {
        StoreError::Corrupted { block, .. } | StoreError::Version { block, .. } => *block,
    }
}

#[test]
fn structural_damage_names_its_block() {
    let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % LISTS, n)).collect();
    let (store, meta) = build(Shape::floats(300, LISTS), &rows);
    let first = list_entries(&store, &meta.directory, LISTS).unwrap()[2].first;
    let magic = SPECIAL_START + 12;
    for (block, at, bytes) in [
        (META_BLOCK, magic, &[0u8][..]),
        (META_BLOCK, 32, &[0xff, 0xff, 0xff, 0x7f]),
        (META_BLOCK, 32 + 16, &[9]),
        (META_BLOCK, 32 + 6, &[3]),
        (meta.directory.first, SPECIAL_START + 10, &[4]),
        (meta.directory.first, 32 + 2 * 16, &[0, 0, 0, 0]),
        (first, magic + 4, &[9]),
        (first, SPECIAL_START + 8, &[200]),
        (first, SPECIAL_START + 4, &[1]),
        (first, 12, &[0xff, 0xff]),
        (first, 14, &(SPECIAL_START as u16).to_ne_bytes()),
        (first, 0, &[0; PAGE_SIZE]),
    ] {
        let (store, _) = build(Shape::floats(300, LISTS), &rows);
        store.damage(block, at, bytes);
        let error = contents(&store).unwrap_err();
        assert_eq!(block_of(&error), block, "{error} for byte {at}");
    }
}

#[test]
fn a_chain_that_runs_in_a_circle_ends() {
    let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % LISTS, n)).collect();
    let (store, meta) = build(Shape::floats(300, LISTS), &rows);
    let first = list_entries(&store, &meta.directory, LISTS).unwrap()[1].first;
    store.damage(first, SPECIAL_START, &first.to_ne_bytes());
    let mut cursor = ListCursor::new(1, first);
    let error = loop {
        match cursor.advance(&store, meta.layout(), |_| {}) {
            Ok(more) => assert!(more),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("circle"), "{error}");
}

#[test]
fn a_link_beyond_the_end_is_an_error() {
    let (store, meta) = build(Shape::floats(300, LISTS), &[]);
    let first = list_entries(&store, &meta.directory, LISTS).unwrap()[0].first;
    store.damage(first, SPECIAL_START, &5000u32.to_ne_bytes());
    assert_eq!(block_of(&contents(&store).unwrap_err()), 5000);
}

#[test]
fn a_list_of_very_many_pages_is_read_to_its_end() {
    // One entry fills a page.
    let rows: Vec<(u32, u32)> = (0..1100).map(|n| (0, n)).collect();
    let (store, meta) = build(Shape::floats(2000, 1), &rows);
    assert_eq!(contents(&store).unwrap().len(), 1100);
    move_insert_block(&store, &meta.directory, 0, 1).unwrap();
    insert(&store, &meta, 0, tid(2000), &code(&meta, 2000)).unwrap();
    assert_eq!(contents(&store).unwrap().len(), 1101);
}

#[test]
fn a_meta_page_of_another_size_is_an_error() {
    let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % LISTS, n)).collect();
    let (store, meta) = build(Shape::floats(300, LISTS), &rows);
    let end = store.block_count();
    type Change = fn(&mut Meta, Block);
    let cases: [(Block, Change); 4] = [
        // What agrees with itself, but is not in the store.
        (end, |meta, end| meta.directory.first = end),
        (NO_BLOCK - 1, |meta, _| meta.recall.first = NO_BLOCK - 1),
        // What belongs to other numbers of lists.
        (META_BLOCK, |meta, _| meta.directory.bytes += 16),
        (META_BLOCK, |meta, _| meta.centroids.bytes -= 4),
    ];
    for (block, change) in cases {
        let mut wrong = meta.clone();
        change(&mut wrong, end);
        wrong.write(&store).unwrap();
        let error = Meta::read(&store).unwrap_err();
        assert_eq!(block_of(&error), block, "{error} for {wrong:?}");
    }
}

#[test]
fn pages_of_an_extent_in_another_order_are_an_error() {
    let (store, meta) = build(Shape::floats(300, 40), &[]);
    let second = meta.centroids.first + 1;
    let third = *store.read(second + 1).unwrap();
    store.damage(second, 0, &third);
    let mut bytes = vec![0; meta.centroids.bytes as usize];
    let read = read_extent(&store, PageKind::Centroids, &meta.centroids, &mut bytes);
    assert_eq!(block_of(&read.unwrap_err()), second);
}

#[test]
fn a_damaged_page_of_the_recall_curve_is_not_written_over() {
    let (store, meta) = build(Shape::floats(300, LISTS), &[]);
    // The data end early: a change would lose what lies behind.
    store.damage(meta.recall.first, 12, &40u16.to_ne_bytes());
    let error = RecallCurve::unmeasured(LISTS).replace(&store, &meta, 78);
    assert_eq!(block_of(&error.unwrap_err()), meta.recall.first);
    assert_eq!(Meta::read(&store).unwrap().stamp, meta.stamp);
}

#[test]
fn vacuum_makes_room_that_inserts_use() {
    let rows: Vec<(u32, u32)> = (0..100).map(|n| (0, n)).collect();
    let (store, meta) = build(Shape::floats(300, 1), &rows);
    vacuum(&store, &meta, |tid| tid.offset() % 2 == 0);
    let blocks = store.block_count();
    for number in 200..250 {
        insert(&store, &meta, 0, tid(number), &code(&meta, number.into())).unwrap();
    }
    assert_eq!(store.block_count(), blocks);
    assert_eq!(contents(&store).unwrap().len(), 100);
}

#[test]
fn a_large_directory_spans_pages() {
    let rows: Vec<(u32, u32)> = (0..2000).map(|n| (n, n)).collect();
    let (store, meta) = build(Shape::floats(2, 2000), &rows);
    assert!(meta.directory.blocks > 3);
    assert_eq!(contents(&store).unwrap().len(), 2000);
    move_insert_block(&store, &meta.directory, 1999, 9).unwrap();
    let entries = list_entries(&store, &meta.directory, 2000).unwrap();
    assert_eq!(entries[1999].insert, 9);
    assert_ne!(entries[1998].insert, 9);
}
