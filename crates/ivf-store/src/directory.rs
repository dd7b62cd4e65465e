//! The list directory: for each inverted list its first page, which never
//! changes while a generation of the index lives, and the pages at which an
//! insert begins to look for room, which are only hints.

use crate::error::StoreError;
use crate::extent::{EXTENT_PAGE_BYTES, Extent, check_extent_page, read_extent, write_extent};
use crate::page::{Block, NO_BLOCK, PageKind, get_u32, put_u32};
use crate::store::{PageChange, PageStore};

const ENTRY_SIZE: usize = 16;
const ENTRIES_PER_PAGE: usize = EXTENT_PAGE_BYTES / ENTRY_SIZE;
const INSERT_AT: usize = 4;

/// Pages of one list at which inserts may begin to look for room: the first, which all
/// prefer, and those of who finds it busy.
pub(crate) const INSERT_PAGES: usize = 3;

const _: () = assert!(INSERT_AT + INSERT_PAGES * size_of::<Block>() == ENTRY_SIZE);

// Entries must not straddle pages, for each is changed under one lock.
const PAGE_BYTES: usize = ENTRIES_PER_PAGE * ENTRY_SIZE;
const _: () = assert!(EXTENT_PAGE_BYTES - PAGE_BYTES < ENTRY_SIZE);

/// Where an inverted list begins and where it takes new entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListEntry {
    /// First page of the list.
    pub first: Block,
    /// Page at which an insert begins to look for room.
    pub insert: Block,
}

/// Where inserts into one list begin to look for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InsertPages([Block; INSERT_PAGES]);

impl InsertPages {
    /// Each of them once, with its place among them; the first has place 0.
    pub fn distinct(&self) -> impl Iterator<Item = (usize, Block)> + '_ {
        let places = self.0.iter().copied().enumerate();
        places.filter(|&(place, block)| is_possible(block) && !self.0[..place].contains(&block))
    }

    /// A place that names no page, or one that another place names.
    pub fn unused(&self) -> Option<usize> {
        (0..INSERT_PAGES).find(|&place| self.distinct().all(|(taken, _)| taken != place))
    }
}

fn offset_of(list: u32) -> u64 {
    let page = list as usize / ENTRIES_PER_PAGE;
    let within = list as usize % ENTRIES_PER_PAGE;
    (page * EXTENT_PAGE_BYTES + within * ENTRY_SIZE) as u64
}

/// Length in bytes of the directory of so many lists.
pub(crate) fn directory_len(lists: u32) -> u64 {
    match lists {
        0 => 0,
        n => offset_of(n - 1) + ENTRY_SIZE as u64,
    }
}

/// Appends the directory of these lists.
///
/// # Errors
/// See [`write_extent`].
pub fn write_directory<S: PageStore>(
    store: &S,
    entries: &[ListEntry],
) -> Result<Extent, StoreError> {
    let mut bytes = vec![0; directory_len(entries.len() as u32) as usize];
    for (list, entry) in entries.iter().enumerate() {
        let at = offset_of(list as u32) as usize;
        put_u32(&mut bytes, at, entry.first);
        put_u32(&mut bytes, at + INSERT_AT, entry.insert);
    }
    write_extent(store, PageKind::Directory, &bytes)
}

/// Reads the entries of all `lists` lists, which must be as many as the meta page says.
///
/// # Errors
/// [`StoreError`] if the directory is damaged.
pub fn list_entries<S: PageStore>(
    store: &S,
    directory: &Extent,
    lists: u32,
) -> Result<Vec<ListEntry>, StoreError> {
    let mut bytes = vec![0; directory_len(lists) as usize];
    read_extent(store, PageKind::Directory, directory, &mut bytes)?;
    (0..lists)
        .map(|list| decode(&bytes, offset_of(list) as usize, directory, list))
        .collect()
}

/// Reads where inserts into one list begin to look for room.
///
/// # Errors
/// [`StoreError`] if the directory is damaged or has no such list.
pub(crate) fn insert_pages<S: PageStore>(
    store: &S,
    directory: &Extent,
    list: u32,
) -> Result<InsertPages, StoreError> {
    let (block, at) = locate(directory, list)?;
    let page = store.read(block)?;
    check_entry_page(&page, block, directory, at)?;
    // The first of them is there.
    decode(&page[..], at, directory, list)?;
    Ok(InsertPages(std::array::from_fn(|place| {
        get_u32(&page[..], insert_at(at, place))
    })))
}

/// Notes that inserts into `list` should begin to look for room at `insert`.
///
/// # Errors
/// [`StoreError`] if the directory is damaged or has no such list.
pub fn move_insert_block<S: PageStore>(
    store: &S,
    directory: &Extent,
    list: u32,
    insert: Block,
) -> Result<(), StoreError> {
    set_insert_page(store, directory, list, (0, insert))
}

/// Notes a page at one of the places of [`InsertPages`], which must be below
/// [`INSERT_PAGES`].
///
/// # Errors
/// As for [`move_insert_block`].
pub(crate) fn set_insert_page<S: PageStore>(
    store: &S,
    directory: &Extent,
    list: u32,
    (place, insert): (usize, Block),
) -> Result<(), StoreError> {
    let (block, at) = locate(directory, list)?;
    let mut change = store.change();
    let slot = change.lock(block)?;
    check_entry_page(change.page(slot), block, directory, at)?;
    put_u32(change.page_mut(slot), insert_at(at, place), insert);
    change.commit();
    Ok(())
}

fn insert_at(entry: usize, place: usize) -> usize {
    entry + INSERT_AT + place * size_of::<Block>()
}

/// Whether a list may have this page.
fn is_possible(block: Block) -> bool {
    block != 0 && block != NO_BLOCK
}

fn locate(directory: &Extent, list: u32) -> Result<(Block, usize), StoreError> {
    let offset = offset_of(list);
    if offset + ENTRY_SIZE as u64 > directory.bytes {
        let reason = format!("the directory has no list {list}");
        return Err(StoreError::corrupted(directory.first, reason));
    }
    Ok(directory.locate(offset))
}

fn check_entry_page(
    page: &crate::page::PageBytes,
    block: Block,
    directory: &Extent,
    at: usize,
) -> Result<(), StoreError> {
    let len = at - crate::page::DATA_START + ENTRY_SIZE;
    check_extent_page(
        page,
        block,
        PageKind::Directory,
        block - directory.first,
        len,
    )
}

fn decode(bytes: &[u8], at: usize, directory: &Extent, list: u32) -> Result<ListEntry, StoreError> {
    let entry = ListEntry {
        first: get_u32(bytes, at),
        insert: get_u32(bytes, at + INSERT_AT),
    };
    if is_possible(entry.first) && is_possible(entry.insert) {
        return Ok(entry);
    }
    let block = directory.locate(offset_of(list)).0;
    Err(StoreError::corrupted(
        block,
        format!("list {list} has no pages"),
    ))
}
