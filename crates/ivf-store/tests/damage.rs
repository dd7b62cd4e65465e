//! Damaged pages: whatever they hold, every operation ends with a result or an error.

use ivf_store::{Block, DATA_START, Distance, NO_BLOCK, PAGE_SIZE, SPECIAL_START, VERSION};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

use support::damage::{Damage, SHAPES, exercise_bytes, exercise_damaged};
use support::index::Shape;

mod support {
    pub mod damage;
    pub mod exercise;
    pub mod index;
}

/// A block of a small index; the first and the last, meta page and directory, more often
/// than others.
fn block() -> impl Strategy<Value = Block> {
    prop_oneof![2 => Just(0), 2 => Just(NO_BLOCK), 3 => 0u32..12, 2 => any::<u32>()]
}

/// A field of the page header, of the meta page, of the first entries of the directory,
/// or of the special area.
fn field() -> impl Strategy<Value = usize> {
    let word = |from: usize, to: usize| (from / 2..to / 2).prop_map(|half| 2 * half);
    prop_oneof![
        1 => word(0, 24),
        1 => select(vec![12, 14]),
        4 => word(DATA_START, DATA_START + 144),
        4 => word(SPECIAL_START, SPECIAL_START + 20),
    ]
}

/// A number that a field could hold, in as many bytes as a field could have.
fn number() -> impl Strategy<Value = Vec<u8>> {
    let special = select(vec![
        0,
        1,
        u32::from(VERSION),
        DATA_START as u32,
        SPECIAL_START as u32,
        PAGE_SIZE as u32,
        u32::MAX / 2,
        NO_BLOCK - 1,
        NO_BLOCK,
    ]);
    let value = prop_oneof![special, 0u32..40, 0u32..10_000, any::<u32>()];
    (value, select(vec![1usize, 2, 4, 8])).prop_map(|(value, size)| {
        let bytes = u64::from(value).to_ne_bytes();
        bytes[..size].to_vec()
    })
}

fn claim() -> impl Strategy<Value = Damage> {
    let lists = prop_oneof![0u32..10, 0u32..2000, any::<u32>()];
    let first = prop_oneof![1u32..12, any::<u32>()];
    // As many dimensions as fit into a page, or the codes of another index.
    let shape = prop_oneof![
        (1u32..2000).prop_map(|dimensions| Shape::floats(dimensions, 1)),
        select(SHAPES.to_vec()),
    ];
    let distance = select(vec![Distance::L2, Distance::Cosine]);
    (lists, first, shape, distance).prop_map(|(lists, first, shape, distance)| {
        let shape = Shape {
            distance,
            lists,
            ..shape
        };
        Damage::Claim { shape, first }
    })
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = proptest::collection::vec(any::<u8>(), 1..64);
    prop_oneof![
        8 => (block(), field(), number())
            .prop_map(|(block, at, bytes)| Damage::Write { block, at, bytes }),
        3 => (block(), 0..PAGE_SIZE, bytes)
            .prop_map(|(block, at, bytes)| Damage::Write { block, at, bytes }),
        1 => (block(), block()).prop_map(|(one, other)| Damage::Swap(one, other)),
        1 => (block(), block()).prop_map(|(from, to)| Damage::Copy { from, to }),
        1 => block().prop_map(Damage::Clear),
        1 => block().prop_map(Damage::Truncate),
        2 => (block(), prop_oneof![-3i16..4, any::<i16>()])
            .prop_map(|(block, beyond)| Damage::Count { block, beyond }),
        2 => (block(), 0u16..100).prop_map(|(block, free)| Damage::Free { block, free }),
        3 => (block(), 0usize..8, prop_oneof![3 => 0u32..30, 1 => block()])
            .prop_map(|(block, index, rows)| Damage::Rows { block, index, rows }),
        2 => claim(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn damaged_pages_never_panic_and_never_hold_anybody_up(
        shape in select(SHAPES.to_vec()),
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        exercise_damaged(shape, &damages);
    }

    #[test]
    fn nor_do_pages_damaged_as_the_fuzzer_does_it(
        data in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        exercise_bytes(&data);
    }
}

#[test]
fn undamaged_pages_stand_every_operation() {
    for shape in SHAPES {
        exercise_damaged(shape, &[]);
    }
}
