//! The list algorithms over pages in memory: random operations against a model,
//! every state in which a crash could leave the pages, and damaged pages.

use std::collections::BTreeMap;

use ivf_store::{
    Block, Distance, Element, Extent, ListCursor, ListWriter, META_BLOCK, MemoryStore, Meta,
    PAGE_SIZE, PageKind, PageStore, RecallCurve, SPECIAL_START, StoreError, Tid, insert,
    list_entries, move_insert_block, read_extent, vacuum_page, write_directory, write_extent,
};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

type Contents = BTreeMap<Tid, (u32, Vec<u8>)>;

fn code(meta: &Meta, seed: u64) -> Vec<u8> {
    (0..meta.layout().code_size())
        .map(|i| (seed.wrapping_mul(31).wrapping_add(i as u64)) as u8)
        .collect()
}

fn tid(number: u32) -> Tid {
    Tid::new(number / 50, (number % 50 + 1) as u16)
}

/// Writes an index of `rows`, which are pairs of list and row number.
fn build(dimensions: u32, lists: u32, rows: &[(u32, u32)]) -> (MemoryStore, Meta) {
    let store = MemoryStore::new();
    let mut meta = Meta {
        dimensions,
        distance: Distance::L2,
        element: Element::Float32,
        lists,
        generation: 1,
        stamp: 77,
        training_rows: rows.len() as u64,
        trained_at: 5,
        centroids: Extent::NONE,
        directory: Extent::NONE,
        recall: Extent::NONE,
    };
    store.append(&meta.to_page()).unwrap();
    if lists > 1 {
        let bytes = vec![7; lists as usize * dimensions as usize * 4];
        meta.centroids = write_extent(&store, PageKind::Centroids, &bytes).unwrap();
        meta.recall = RecallCurve::unmeasured(lists).append(&store).unwrap();
    }
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    let mut writer = ListWriter::new(&store, meta.layout());
    for (list, number) in sorted {
        let code = code(&meta, number.into());
        writer.push(list, tid(number), &code).unwrap();
    }
    meta.directory = write_directory(&store, &writer.finish(lists).unwrap()).unwrap();
    meta.write(&store).unwrap();
    (store, meta)
}

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

fn dimensions() -> impl Strategy<Value = u32> {
    prop_oneof![Just(3u32), Just(384), Just(1000), Just(2000), 1u32..600]
}

proptest! {
    #[test]
    fn lists_equal_a_model_and_every_crash_leaves_a_whole_state(
        dimensions in dimensions(),
        rows in proptest::collection::btree_set(0u32..1000, 0..60),
        steps in steps(),
    ) {
        let rows: Vec<(u32, u32)> = rows.iter().map(|&n| (n % LISTS, n)).collect();
        let (store, meta) = build(dimensions, LISTS, &rows);
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
                    let code = code(&meta, number.into());
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
    fn damage_is_an_error_and_never_a_panic(
        block in 0u32..12,
        at in prop_oneof![0usize..PAGE_SIZE, 0usize..200, SPECIAL_START..PAGE_SIZE],
        byte in any::<u8>(),
        list in 0..LISTS,
    ) {
        let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % LISTS, n)).collect();
        let (store, meta) = build(300, LISTS, &rows);
        store.damage(block % store.block_count(), at, &[byte]);
        // Whether the damage shows depends on the byte; that each of these
        // returns at all is what is tested.
        drop(scan_all(&store, |_, _, _| {}));
        drop(insert(&store, &meta, list, tid(2000), &code(&meta, 1)));
        for block in 0..store.block_count() {
            drop(vacuum_page(&store, meta.layout(), block, |tid| tid.offset() > 20));
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
    let (store, meta) = build(300, LISTS, &rows);
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
        (first, 0, &[0; PAGE_SIZE]),
    ] {
        let (store, _) = build(300, LISTS, &rows);
        store.damage(block, at, bytes);
        let error = contents(&store).unwrap_err();
        assert_eq!(block_of(&error), block, "{error} for byte {at}");
    }
}

#[test]
fn a_chain_that_runs_in_a_circle_ends() {
    let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % LISTS, n)).collect();
    let (store, meta) = build(300, LISTS, &rows);
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
    let (store, meta) = build(300, LISTS, &[]);
    let first = list_entries(&store, &meta.directory, LISTS).unwrap()[0].first;
    store.damage(first, SPECIAL_START, &5000u32.to_ne_bytes());
    assert_eq!(block_of(&contents(&store).unwrap_err()), 5000);
}

#[test]
fn vacuum_makes_room_that_inserts_use() {
    let rows: Vec<(u32, u32)> = (0..100).map(|n| (0, n)).collect();
    let (store, meta) = build(300, 1, &rows);
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
    let (store, meta) = build(2, 2000, &rows);
    assert!(meta.directory.blocks > 3);
    assert_eq!(contents(&store).unwrap().len(), 2000);
    move_insert_block(&store, &meta.directory, 1999, 9).unwrap();
    let entries = list_entries(&store, &meta.directory, 2000).unwrap();
    assert_eq!(entries[1999].insert, 9);
    assert_ne!(entries[1998].insert, 9);
}
