//! Undamaged indexes, and what may happen to their pages.

use ivf_store::{
    Block, DATA_START, Distance, Element, Extent, FACTORS, ListLayout, MemoryStore, Meta, NO_BLOCK,
    PAGE_SIZE, PageBytes, PageStore, SPECIAL_START,
};

use super::exercise::exercise;
use super::index::{Shape, build, exact, lossy, packed, refined};

/// What the undamaged indexes are: one list and many, centroids and directories of
/// several pages, chains of pages, all layouts and all sizes of codes.
pub const SHAPES: [Shape; 15] = [
    Shape::floats(3, 1),
    Shape::floats(300, 1),
    Shape::floats(300, 5),
    Shape::floats(2000, 3),
    Shape::floats(2, 600),
    Shape {
        element: Element::Float16,
        distance: Distance::InnerProduct,
        codes: exact(1404),
        ..Shape::floats(700, 40)
    },
    Shape::of(exact(1), 2),
    Shape::of(lossy(300), 3),
    Shape::of(packed(8), 1),
    Shape::of(packed(234), 2),
    Shape::of(refined(exact(1000), 2000, false), 1),
    Shape::of(refined(lossy(300), 1500, false), 5),
    Shape::of(refined(packed(96), 400, true), 1),
    Shape::of(refined(packed(200), 5000, true), 2),
    Shape::of(refined(packed(1), 8000, false), 3),
];

/// Bytes of an extent in a page, and entries of the directory in it.
const EXTENT_PAGE_BYTES: u64 = 8136;
const DIRECTORY_ENTRIES: u64 = 508;

/// One damage. Blocks and places are taken modulo what there is; the block before
/// block 0 is the last, in which the directory ends.
#[derive(Debug, Clone)]
pub enum Damage {
    /// Other bytes somewhere in a page.
    Write {
        block: Block,
        at: usize,
        bytes: Vec<u8>,
    },
    /// Two pages in each other's place.
    Swap(Block, Block),
    /// A page in the place of another one.
    Copy { from: Block, to: Block },
    /// A page of zeros.
    Clear(Block),
    /// Fewer pages, or none.
    Truncate(Block),
    /// Another number of entries in a list page, so many more than it has room for.
    Count { block: Block, beyond: i16 },
    /// Another number of free entries in a list page.
    Free { block: Block, free: u16 },
    /// Another block as a row page of a list page.
    Rows {
        block: Block,
        index: usize,
        rows: Block,
    },
    /// A meta page that agrees with itself, of an index that is not this one.
    Claim { shape: Shape, first: Block },
}

impl Damage {
    fn apply(&self, layout: ListLayout, pages: &mut Vec<Box<PageBytes>>) {
        let count = pages.len();
        if count == 0 {
            return;
        }
        let place = |block: Block| match block {
            NO_BLOCK => count - 1,
            block => block as usize % count,
        };
        match self {
            Self::Write { block, at, bytes } => {
                write(pages, place(*block), at % PAGE_SIZE, bytes);
            }
            Self::Swap(one, other) => pages.swap(place(*one), place(*other)),
            Self::Copy { from, to } => pages[place(*to)] = pages[place(*from)].clone(),
            Self::Clear(block) => pages[place(*block)].fill(0),
            Self::Truncate(blocks) => pages.truncate(place(*blocks)),
            Self::Count { block, beyond } => {
                let count = layout.capacity().saturating_add_signed((*beyond).into());
                write(
                    pages,
                    place(*block),
                    SPECIAL_START + 8,
                    &(count as u16).to_ne_bytes(),
                );
            }
            Self::Free { block, free } => {
                write(
                    pages,
                    place(*block),
                    SPECIAL_START + 18,
                    &free.to_ne_bytes(),
                );
            }
            Self::Rows { block, index, rows } => {
                // Nothing else lies at this place if there are no row pages.
                let at = row_pages_at(layout) + 4 * (index % layout.row_pages().max(1));
                write(pages, place(*block), at, &rows.to_ne_bytes());
            }
            Self::Claim { shape, first } => pages[0] = claim(*shape, *first),
        }
    }

    /// Takes a damage from the begin of `data`, which has no meaning of its own.
    fn parse(data: &mut &[u8]) -> Option<Self> {
        let mut take = |count: usize| data.split_off(..count);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &byte| n << 8 | u32::from(byte));
        let [kind, block] = *take(2)? else {
            return None;
        };
        let block = Block::from(block);
        Some(match kind % 16 {
            0 => Self::Swap(block, number(take(1)?)),
            1 => Self::Copy {
                from: block,
                to: number(take(1)?),
            },
            2 => Self::Clear(block),
            3 => Self::Truncate(block),
            4 => Self::Claim {
                shape: Shape::floats(block + 1, number(take(4)?)),
                first: number(take(4)?),
            },
            5 => Self::Count {
                block,
                beyond: number(take(2)?) as i16,
            },
            6 => Self::Free {
                block,
                free: number(take(1)?) as u16,
            },
            7 => Self::Rows {
                block,
                index: number(take(1)?) as usize,
                rows: number(take(1)?),
            },
            place => {
                let at = number(take(2)?) as usize;
                let at = match place {
                    8..10 => SPECIAL_START + at % (PAGE_SIZE - SPECIAL_START),
                    10..13 => at % 192,
                    _ => at,
                };
                let length = 1 + take(1)?[0] as usize % 16;
                let bytes = take(length)?.to_vec();
                Self::Write { block, at, bytes }
            }
        })
    }
}

/// Overwrites bytes of a page as far as it goes.
fn write(pages: &mut [Box<PageBytes>], place: usize, at: usize, bytes: &[u8]) {
    let end = PAGE_SIZE.min(at + bytes.len());
    pages[place][at..end].copy_from_slice(&bytes[..end - at]);
}

/// Where a list page names its row pages: behind codes and factors.
fn row_pages_at(layout: ListLayout) -> usize {
    let codes = layout.codes();
    let factors = if codes.is_lossy { FACTORS } else { 0 };
    let arrays = [codes.code_size, 4 * factors].map(|size| size * layout.capacity());
    arrays
        .iter()
        .fold(DATA_START, |at, array| (at + array).next_multiple_of(8))
}

/// The meta page of an index of `shape` whose extents begin at `first`.
fn claim(shape: Shape, first: Block) -> Box<PageBytes> {
    let lists = u64::from(shape.lists);
    let last = lists.saturating_sub(1);
    let directory = last / DIRECTORY_ENTRIES * EXTENT_PAGE_BYTES + last % DIRECTORY_ENTRIES * 16;
    let extent = |bytes: u64| Extent {
        first,
        blocks: bytes.div_ceil(EXTENT_PAGE_BYTES) as u32,
        bytes,
    };
    let only_of_many = |extent| if lists > 1 { extent } else { Extent::NONE };
    let meta = Meta {
        dimensions: shape.dimensions,
        distance: shape.distance,
        element: shape.element,
        factory: "Claim".to_owned(),
        code_dimensions: shape.dimensions,
        layout: ListLayout::new(shape.codes).expect("codes that fit"),
        lists: shape.lists,
        generation: 1,
        stamp: 79,
        training_rows: 0,
        trained_at: 0,
        centroids: only_of_many(extent(lists * u64::from(shape.dimensions) * 4)),
        directory: extent(directory + 16),
        state: extent(lists * 3),
        recall: only_of_many(extent(EXTENT_PAGE_BYTES)),
    };
    meta.to_page()
}

/// Runs every operation over the index of a shape after these damages.
pub fn exercise_damaged(shape: Shape, damages: &[Damage]) {
    let rows: Vec<(u32, u32)> = (0..80).map(|n| (n % shape.lists, n)).collect();
    let (store, meta) = build(shape, &rows);
    let mut pages: Vec<Box<PageBytes>> = (0..store.block_count())
        .map(|block| Box::new(*store.read(block).unwrap()))
        .collect();
    for damage in damages {
        damage.apply(meta.layout, &mut pages);
    }
    exercise(MemoryStore::with_pages(pages), &meta);
}

/// The same for a shape and damages that are chosen by bytes of any kind.
pub fn exercise_bytes(mut data: &[u8]) {
    let Some(choice) = data.split_off_first() else {
        return;
    };
    let shape = SHAPES[usize::from(*choice) % SHAPES.len()];
    let damages: Vec<Damage> = std::iter::from_fn(|| Damage::parse(&mut data)).collect();
    exercise_damaged(shape, &damages);
}
