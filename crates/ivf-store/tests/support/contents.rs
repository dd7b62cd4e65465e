//! What a scan of all lists finds, entry by entry.

use std::collections::BTreeMap;

use ivf_store::{
    FACTORS, ListCursor, ListLayout, ListPage, MemoryStore, Meta, PageStore, Place, RowPage,
    StoreError, Tid, list_entries,
};

/// Which numbers share a byte of a packed block with those of the code 16 slots on, as in
/// FAISS's `pq4_pack_codes`.
const COLUMNS: [usize; 16] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

/// An entry as a scan finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub list: u32,
    /// Place of its page in the list, and its own there.
    pub slot: (usize, usize),
    pub record: Vec<u8>,
}

/// All entries.
pub type Contents = BTreeMap<Tid, Entry>;

/// Reads all entries, and checks that list pages count their free slots.
pub fn contents(store: &MemoryStore) -> Result<Contents, StoreError> {
    let meta = Meta::read(store)?;
    let layout = meta.layout;
    let mut found = Contents::new();
    let entries = list_entries(store, &meta.directory, meta.lists)?;
    for (list, entry) in (0..).zip(entries) {
        let mut cursor = ListCursor::new(list, entry.first);
        for number in 0.. {
            let (mut parts, mut free) = (Vec::new(), 0);
            if !cursor.advance(store, layout, |page| {
                assert!(page.len() <= layout.capacity());
                parts = (0..page.len())
                    .map(|slot| (page.place(slot), first_part(page, layout, slot)))
                    .collect();
                free = page.free();
            })? {
                break;
            }
            for (slot, (place, mut record)) in parts.into_iter().enumerate() {
                let Some(tid) = second_part(store, layout, list, place, &mut record)? else {
                    free -= 1;
                    continue;
                };
                let slot = (number, slot);
                let before = found.insert(tid, Entry { list, slot, record });
                assert!(before.is_none(), "{tid:?} was found twice");
            }
            assert_eq!(free, 0, "slots that are counted as free, but are not");
        }
    }
    Ok(found)
}

/// Code and factors of a slot.
fn first_part(page: &ListPage<'_>, layout: ListLayout, slot: usize) -> Vec<u8> {
    let codes = layout.codes();
    let mut record = if codes.is_packed {
        unpacked(page.codes(), layout.block_size(), slot)
    } else {
        let begin = slot * codes.code_size;
        page.codes()[begin..begin + codes.code_size].to_vec()
    };
    for factor in 0..if codes.is_lossy { FACTORS } else { 0 } {
        record.extend(&page.factor(factor)[4 * slot..4 * slot + 4]);
    }
    record
}

fn unpacked(codes: &[u8], block_size: usize, slot: usize) -> Vec<u8> {
    let block = codes.chunks_exact(block_size).nth(slot / 32).unwrap();
    let column = COLUMNS.iter().position(|&column| column == slot % 16);
    let number = |half: &[u8]| match slot % 32 {
        0..16 => half[column.unwrap()] & 15,
        _ => half[column.unwrap()] >> 4,
    };
    block
        .chunks_exact(32)
        .map(|pair| number(&pair[..16]) | number(&pair[16..]) << 4)
        .collect()
}

/// The row of a slot, whose refine code and refine factors are added to `record`.
fn second_part(
    store: &MemoryStore,
    layout: ListLayout,
    list: u32,
    place: Option<Place>,
    record: &mut Vec<u8>,
) -> Result<Option<Tid>, StoreError> {
    let (block, index) = match place {
        None => return Ok(None),
        Some(Place::Tid(tid)) => return Ok(Some(tid)),
        Some(Place::Row { block, index }) => (block, index),
    };
    let bytes = store.read(block)?;
    let page = RowPage::parse(&bytes, block, layout, list)?;
    record.extend(page.code(index));
    let is_lossy = (layout.codes().refine).is_some_and(|refine| refine.is_lossy);
    for factor in 0..if is_lossy { FACTORS } else { 0 } {
        record.extend(page.factor(factor, index).to_ne_bytes());
    }
    Ok(page.tid(index))
}
