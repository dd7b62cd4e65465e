//! The list algorithms over pages in memory: random operations against a model,
//! every state in which a crash could leave the pages, and what is said of damage.

use std::collections::BTreeMap;

use ivf_store::{
    Block, Codes, Distance, Element, ListCursor, ListLayout, META_BLOCK, MemoryStore, Meta,
    NO_BLOCK, PAGE_SIZE, PageKind, PageStore, Place, RecallCurve, RowPage, SPECIAL_START,
    StoreError, Tid, insert, list_entries, move_insert_block, read_extent, vacuum_page,
    write_extent,
};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;

use support::contents::{Contents, contents};
use support::index::{Shape, build, exact, lossy, packed, record, refined, tid};

mod support {
    pub mod contents;
    pub mod index;
}

/// List and record of each row.
type Model = BTreeMap<Tid, (u32, Vec<u8>)>;

fn without_slots(contents: &Contents) -> Model {
    (contents.iter())
        .map(|(&tid, entry)| (tid, (entry.list, entry.record.clone())))
        .collect()
}

/// The row number of a row pointer.
fn number(tid: Tid) -> u32 {
    tid.block() * 50 + u32::from(tid.offset()) - 1
}

/// Frees the slots of dead rows; inserts begin at the first page with room.
fn vacuum(store: &MemoryStore, meta: &Meta, dead: impl Fn(Tid) -> bool) {
    let mut with_room: BTreeMap<u32, Block> = BTreeMap::new();
    for block in 0..store.block_count() {
        if let Some(found) = vacuum_page(store, meta.layout, block, &dead).unwrap()
            && found.removed > 0
        {
            with_room.entry(found.list).or_insert(found.page);
        }
    }
    for (list, block) in with_room {
        move_insert_block(store, &meta.directory, list, block).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert {
        list: u32,
        number: u32,
        writer: u32,
        /// Others have locked a part of the pages.
        is_busy: bool,
    },
    Vacuum {
        modulus: u32,
    },
}

const LISTS: u32 = 5;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..LISTS, 1000u32..4000, 0u32..8, any::<bool>()).prop_map(
            |(list, number, writer, is_busy)| Step::Insert { list, number, writer, is_busy }
        ),
        1 => (2u32..6).prop_map(|modulus| Step::Vacuum { modulus }),
    ];
    proptest::collection::vec(step, 0..120)
}

/// All layouts, with sizes from one byte to the largest that fits.
fn codes() -> impl Strategy<Value = Codes> {
    let sizes = || prop_oneof![1usize..4, 1usize..300, 300usize..3000, Just(PAGE_SIZE)];
    let refine = proptest::option::of((sizes(), any::<bool>()));
    let kinds = (any::<bool>(), any::<bool>());
    (sizes(), kinds, refine).prop_map(|(code_size, (is_packed, is_lossy), refine)| {
        let largest = |limit: usize, codes: &dyn Fn(usize) -> Codes| {
            let codes = (1..=limit).rev().map(codes);
            let mut fitting = codes.filter(|&codes| ListLayout::new(codes).is_some());
            fitting.next().expect("one byte fits")
        };
        let refine = refine.and_then(|(code_size, is_lossy)| {
            largest(code_size, &|size| refined(exact(1), size, is_lossy)).refine
        });
        largest(code_size, &|code_size| Codes {
            code_size,
            is_packed,
            is_lossy,
            refine,
        })
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    let floats = prop_oneof![Just(3u32), Just(384), Just(1000), Just(2000), 1u32..600];
    let shape = prop_oneof![
        1 => floats.prop_map(|dimensions| Shape::floats(dimensions, 1)),
        4 => codes().prop_map(|codes| Shape::of(codes, 1)),
    ];
    let element = select(vec![Element::Float32, Element::Float16]);
    let distance = select(vec![Distance::L2, Distance::InnerProduct, Distance::Cosine]);
    let lists = select(vec![1, LISTS]);
    (shape, element, distance, lists).prop_map(|(shape, element, distance, lists)| Shape {
        element,
        distance,
        lists,
        ..shape
    })
}

/// Whether entries that are in both have the same slot in both.
fn slots_are_kept(before: &Contents, after: &Contents) -> bool {
    let mut both = before
        .iter()
        .filter_map(|(tid, entry)| Some((entry, after.get(tid)?)));
    both.all(|(before, after)| before == after)
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
        let nprobe = RecallCurve::read(&store, &meta).unwrap().effort(1.0).nprobe;
        prop_assert_eq!(nprobe, [shape.lists; 2]);
        let mut model: Model = rows
            .iter()
            .map(|&(list, number)| (tid(number), (list, record(&meta, number.into()))))
            .collect();
        let mut found = contents(&store).unwrap();
        prop_assert_eq!(&without_slots(&found), &model);

        store.keep_history();
        for step in steps {
            let before = model.clone();
            match step {
                Step::Insert { list, number, writer, is_busy } => {
                    if model.contains_key(&tid(number)) {
                        continue;
                    }
                    let (list, record) = (list % shape.lists, record(&meta, number.into()));
                    let busy = 0..if is_busy { store.block_count() } else { 0 };
                    // All of them, or all but every third.
                    busy.filter(|block| writer > 3 || block % 3 != writer % 3)
                        .for_each(|block| store.make_busy(block));
                    insert(&store, &meta, list, tid(number), &record, writer).unwrap();
                    store.take_waits();
                    model.insert(tid(number), (list, record));
                }
                Step::Vacuum { modulus } => {
                    let dead = |tid: Tid| number(tid).is_multiple_of(modulus);
                    vacuum(&store, &meta, dead);
                    model.retain(|&tid, _| !dead(tid));
                }
            }
            let now = contents(&store).unwrap();
            prop_assert_eq!(&without_slots(&now), &model);
            prop_assert!(slots_are_kept(&found, &now));
            for pages in store.take_history() {
                let crashed = contents(&MemoryStore::with_pages(pages)).unwrap();
                prop_assert!(slots_are_kept(&found, &crashed));
                let crashed = without_slots(&crashed);
                // Nothing old is lost that lives, and nothing is there that never was.
                let kept = before.iter().filter(|(tid, _)| model.contains_key(tid));
                prop_assert!(kept.clone().all(|(tid, entry)| crashed.get(tid) == Some(entry)));
                let known = |tid: &Tid| before.get(tid).or_else(|| model.get(tid));
                prop_assert!(crashed.iter().all(|(tid, entry)| known(tid) == Some(entry)));
            }
            found = now;
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
        (META_BLOCK, 32 + 6, &[1]),
        (META_BLOCK, 32 + 6, &[4]),
        (META_BLOCK, 32 + 6, &[8]),
        (META_BLOCK, 32 + 6, &[16]),
        (META_BLOCK, 32 + 7, &[200]),
        (META_BLOCK, 32 + 8, &[0xff; 4]),
        (META_BLOCK, 32 + 12, &[4]),
        (META_BLOCK, 32 + 112, &[0; 4]),
        (META_BLOCK, 32 + 128, &[0xff]),
        (meta.directory.first, SPECIAL_START + 10, &[4]),
        (meta.directory.first, 32 + 2 * 16, &[0, 0, 0, 0]),
        (first, magic + 4, &[9]),
        (first, SPECIAL_START + 8, &[200]),
        (first, SPECIAL_START + 4, &[1]),
        (first, 12, &[0xff, 0xff]),
        (first, 14, &[40, 0]),
        (first, SPECIAL_START + 18, &[40]),
        (first, 0, &[0; PAGE_SIZE]),
    ] {
        let (store, _) = build(Shape::floats(300, LISTS), &rows);
        store.damage(block, at, bytes);
        let Err(error) = contents(&store) else {
            panic!("no error for byte {at} of block {block}");
        };
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
        match cursor.advance(&store, meta.layout, |_| {}) {
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
    insert(&store, &meta, 0, tid(2000), &record(&meta, 2000), 0).unwrap();
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

/// One of each layout, with some pages for a hundred entries.
const LAYOUTS: [Codes; 7] = [
    exact(1200),
    lossy(300),
    packed(150),
    refined(exact(50), 1000, false),
    refined(lossy(900), 700, false),
    refined(packed(200), 1100, true),
    refined(packed(1), 8000, true),
];

#[test]
fn vacuum_makes_room_that_inserts_use() {
    let rows: Vec<(u32, u32)> = (0..100).map(|n| (0, n)).collect();
    for codes in LAYOUTS {
        let (store, meta) = build(Shape::of(codes, 1), &rows);
        let first = contents(&store).unwrap();
        vacuum(&store, &meta, |tid| number(tid).is_multiple_of(2));
        let blocks = store.block_count();
        for number in 200..250 {
            insert(
                &store,
                &meta,
                0,
                tid(number),
                &record(&meta, number.into()),
                0,
            )
            .unwrap();
        }
        assert_eq!(store.block_count(), blocks);
        let second = contents(&store).unwrap();
        for number in 200..250 {
            assert_eq!(second[&tid(number)].record, record(&meta, number.into()));
        }
        let slots = |contents: &Contents| {
            let mut slots: Vec<_> = contents.values().map(|entry| entry.slot).collect();
            slots.sort_unstable();
            slots
        };
        assert_eq!(slots(&first), slots(&second));
        assert!(slots_are_kept(&first, &second));
    }
}

#[test]
fn a_scan_that_comes_back_for_a_row_finds_the_slot_free_or_another_row() {
    let (store, meta) = build(
        Shape::of(refined(packed(4), 900, true), 1),
        &[(0, 3), (0, 4), (0, 5)],
    );
    let first = list_entries(&store, &meta.directory, 1).unwrap()[0].first;
    let mut place = None;
    ListCursor::new(0, first)
        .advance(&store, meta.layout, |page| place = page.place(1))
        .unwrap();
    let Some(Place::Row { block, index }) = place else {
        panic!("{place:?}");
    };
    let row = || {
        let bytes = store.read(block).unwrap();
        let page = RowPage::parse(&bytes, block, meta.layout, 0).unwrap();
        (page.tid(index), page.code(index).to_vec())
    };
    let code = |number: u64| record(&meta, number)[4 + 12..][..900].to_vec();
    assert_eq!(row(), (Some(tid(4)), code(4)));
    vacuum(&store, &meta, |dead| dead == tid(4));
    assert_eq!(row().0, None);
    insert(&store, &meta, 0, tid(9), &record(&meta, 9), 0).unwrap();
    assert_eq!(row(), (Some(tid(9)), code(9)));
}

#[test]
fn damaged_row_pages_are_errors_for_all_who_change_them() {
    let codes = refined(exact(1000), 2000, false);
    let rows: Vec<(u32, u32)> = (0..20).map(|n| (n / 15, n)).collect();
    let (store, meta) = build(Shape::of(codes, 2), &rows);
    assert_eq!((meta.layout.capacity(), meta.layout.row_capacity()), (8, 4));
    let entries = list_entries(&store, &meta.directory, 2).unwrap();
    let (first, list, other) = (entries[0].first, entries[0].insert, entries[1].first);
    // The pages of list 0, their row pages, and those of list 1.
    let rows_of_list = list + 1 + 2;
    assert_eq!((list, other), (first + 1, rows_of_list + 2));
    // Behind eight codes.
    let names = 32 + 8 * 1000;
    for (at, name, accused) in [
        (names, list, list),
        (names, NO_BLOCK, list),
        (names, META_BLOCK, list),
        (names + 4, list, list),
        (names + 4, other, other),
        (names + 4, other + 1, other + 1),
        (names + 4, rows_of_list - 1, rows_of_list - 1),
        (names + 4, 5000, 5000),
    ] {
        let (store, _) = build(Shape::of(codes, 2), &rows);
        store.damage(list, at, &name.to_ne_bytes());
        let result = insert(&store, &meta, 0, tid(90), &record(&meta, 90), 0);
        assert_eq!(block_of(&result.unwrap_err()), accused, "{name}");
    }
    for (at, name, accused) in [
        (SPECIAL_START, rows_of_list, rows_of_list),
        (SPECIAL_START, first, first),
        (SPECIAL_START, other, other),
        (SPECIAL_START, 5000, 5000),
        (SPECIAL_START + 4, 1, list),
    ] {
        let (store, _) = build(Shape::of(codes, 2), &rows);
        store.damage(rows_of_list, at, &name.to_ne_bytes());
        let result = vacuum_page(&store, meta.layout, rows_of_list, |_| true);
        assert_eq!(block_of(&result.unwrap_err()), accused, "{name}");
        if at > SPECIAL_START {
            assert_eq!(block_of(&contents(&store).unwrap_err()), rows_of_list);
        }
    }
}

#[test]
fn a_count_of_free_slots_that_is_too_great_is_set_right() {
    for codes in LAYOUTS {
        let (store, meta) = build(Shape::of(codes, 1), &[(0, 1), (0, 2)]);
        let first = list_entries(&store, &meta.directory, 1).unwrap()[0].first;
        store.damage(first, SPECIAL_START + 18, &2u16.to_ne_bytes());
        insert(&store, &meta, 0, tid(3), &record(&meta, 3), 0).unwrap();
        assert_eq!(contents(&store).unwrap().len(), 3);
    }
}

#[test]
fn packed_codes_lie_as_faiss_reads_them() {
    let (store, meta) = build(Shape::of(packed(2), 1), &[]);
    // The numbers 1, 2, 3, 4 at slot 3 and so on: above and below 8, and 16 slots on.
    for slot in 0..26 {
        let code = match slot {
            3 => [0x21, 0x43],
            19 => [0x65, 0x87],
            9 => [0xa9, 0xcb],
            25 => [0xed, 0x0f],
            _ => [0, 0],
        };
        let record = [&code[..], &[0; 12]].concat();
        insert(&store, &meta, 0, tid(slot), &record, 0).unwrap();
    }
    let mut expected = [0; 64];
    for (place, bytes) in [
        (0, [0x51, 0xd9]),
        (16, [0x62, 0xea]),
        (32, [0x73, 0xfb]),
        (48, [0x84, 0x0c]),
    ] {
        // Places 6 and 3 of FAISS's order 0, 8, 1, 9, 2, 10, 3, 11 and so on.
        expected[place + 6] = bytes[0];
        expected[place + 3] = bytes[1];
    }
    let first = list_entries(&store, &meta.directory, 1).unwrap()[0].first;
    ListCursor::new(0, first)
        .advance(&store, meta.layout, |page| {
            assert_eq!(page.codes(), expected);
        })
        .unwrap();
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
