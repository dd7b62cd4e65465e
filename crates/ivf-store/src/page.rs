//! What all pages have in common: PostgreSQL's page header, a data area that
//! begins at a multiple of 32 bytes, and a special area with magic, version,
//! kind and links.
//!
//! Numbers are in native byte order, as in all of PostgreSQL's files.

use crate::error::StoreError;

/// Size of a page in bytes, PostgreSQL's default block size.
pub const PAGE_SIZE: usize = 8192;
/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];
/// Number of a page within the index.
pub type Block = u32;
/// No page: the end of a chain (PostgreSQL's `InvalidBlockNumber`).
pub const NO_BLOCK: Block = Block::MAX;
/// Where the data of every page begins: the first multiple of 32 bytes, the
/// widest load of the scanning kernels, behind PostgreSQL's page header.
pub const DATA_START: usize = 32;
/// Size of the special area at the end of every page.
pub const SPECIAL_SIZE: usize = 24;
/// Where the special area begins.
pub const SPECIAL_START: usize = PAGE_SIZE - SPECIAL_SIZE;
/// Marks a page of a `faiss_ivf` index ("FIVF").
pub const MAGIC: u32 = 0x4649_5646;
/// Version of the page format.
pub const VERSION: u16 = 1;

const PD_LOWER: usize = 12;
const PD_UPPER: usize = 14;
const PD_SPECIAL: usize = 16;
const PD_PAGESIZE_VERSION: usize = 18;
const PAGE_HEADER_SIZE: usize = 24;
const PAGE_LAYOUT_VERSION: u16 = 4;

const NEXT: usize = SPECIAL_START;
const OWNER: usize = SPECIAL_START + 4;
const COUNT: usize = SPECIAL_START + 8;
const KIND: usize = SPECIAL_START + 10;
const MAGIC_AT: usize = SPECIAL_START + 12;
const VERSION_AT: usize = SPECIAL_START + 16;
const FREE: usize = SPECIAL_START + 18;

const _: () = {
    assert!(DATA_START >= PAGE_HEADER_SIZE && DATA_START.is_multiple_of(32));
    assert!(
        SPECIAL_START.is_multiple_of(8),
        "the special area must be MAXALIGNed"
    );
    assert!(FREE + 2 <= PAGE_SIZE);
};

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// Block 0: what the index is and where its parts are.
    Meta = 1,
    /// A piece of the centroids.
    Centroids = 2,
    /// A piece of the list directory.
    Directory = 3,
    /// Entries of one inverted list.
    List = 4,
    /// The recall curve.
    Recall = 5,
    /// Refine codes and row pointers of the entries of one list page.
    Rows = 6,
    /// A piece of what transforms and codes have learned.
    State = 7,
}

/// The fields of a page's header and special area, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageInfo {
    /// Next page of the chain, or [`NO_BLOCK`]; the list page of a row page.
    pub next: Block,
    /// List number of a list page or row page, position within its run for an extent page.
    pub owner: u32,
    /// Number of slots in use of a list page.
    pub count: usize,
    /// Number of these slots that are free.
    pub free: usize,
    /// End of the data, or of what lies before the hole.
    pub lower: usize,
    /// End of the hole.
    pub upper: usize,
}

pub(crate) fn get_u16(page: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

pub(crate) fn get_u32(page: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

pub(crate) fn get_u64(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

pub(crate) fn put_u16(page: &mut [u8], at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

pub(crate) fn put_u32(page: &mut [u8], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

pub(crate) fn put_u64(page: &mut [u8], at: usize, value: u64) {
    page[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// Makes `page` an empty page of `kind`.
pub(crate) fn init(page: &mut PageBytes, kind: PageKind, owner: u32) {
    page.fill(0);
    put_u16(page, PD_SPECIAL, SPECIAL_START as u16);
    put_u16(
        page,
        PD_PAGESIZE_VERSION,
        PAGE_SIZE as u16 | PAGE_LAYOUT_VERSION,
    );
    set_bounds(page, DATA_START, SPECIAL_START);
    set_next(page, NO_BLOCK);
    put_u32(page, OWNER, owner);
    page[KIND] = kind as u8;
    put_u32(page, MAGIC_AT, MAGIC);
    put_u16(page, VERSION_AT, VERSION);
}

/// Sets the bounds of the unused hole in the middle of a page. PostgreSQL's
/// generic WAL records zero whatever lies between them.
pub(crate) fn set_bounds(page: &mut PageBytes, lower: usize, upper: usize) {
    put_u16(page, PD_LOWER, lower as u16);
    put_u16(page, PD_UPPER, upper as u16);
}

pub(crate) fn bounds(page: &PageBytes) -> (usize, usize) {
    (
        get_u16(page, PD_LOWER).into(),
        get_u16(page, PD_UPPER).into(),
    )
}

pub(crate) fn set_next(page: &mut PageBytes, next: Block) {
    put_u32(page, NEXT, next);
}

/// Lets the hole of a page, which ends at `upper`, begin at `lower` or behind it: what
/// lies in it is left out of the log.
pub(crate) fn shrink_hole(page: &mut PageBytes, lower: usize, upper: usize) {
    let (before, _) = bounds(page);
    set_bounds(page, before.max(lower), upper);
}

pub(crate) fn set_free(page: &mut PageBytes, free: usize) {
    put_u16(page, FREE, free as u16);
}

pub(crate) fn set_count(page: &mut PageBytes, count: usize) {
    put_u16(page, COUNT, count as u16);
}

/// Whether this is a page that was allocated and never written: what a crash
/// between extending the relation and filling the page leaves behind.
pub(crate) fn is_new(page: &PageBytes) -> bool {
    get_u16(page, PD_UPPER) == 0
}

/// The kind of a page of this index, after checks of header and special area.
///
/// # Errors
/// [`StoreError`] if the page is no page of a `faiss_ivf` index.
pub(crate) fn kind_of(page: &PageBytes, block: Block) -> Result<PageKind, StoreError> {
    if is_new(page) {
        return Err(StoreError::corrupted(block, "the page is empty"));
    }
    if usize::from(get_u16(page, PD_SPECIAL)) != SPECIAL_START || get_u32(page, MAGIC_AT) != MAGIC {
        return Err(StoreError::corrupted(
            block,
            "not a page of a faiss_ivf index",
        ));
    }
    let version = get_u16(page, VERSION_AT);
    if version != VERSION {
        return Err(StoreError::Version {
            block,
            found: version,
        });
    }
    match page[KIND] {
        1 => Ok(PageKind::Meta),
        2 => Ok(PageKind::Centroids),
        3 => Ok(PageKind::Directory),
        4 => Ok(PageKind::List),
        5 => Ok(PageKind::Recall),
        6 => Ok(PageKind::Rows),
        7 => Ok(PageKind::State),
        other => Err(StoreError::corrupted(
            block,
            format!("unknown page kind {other}"),
        )),
    }
}

/// Checks that `page` is a page of `kind` and returns its fields.
///
/// # Errors
/// [`StoreError`] if it is not, or if its bounds are impossible.
pub(crate) fn check(
    page: &PageBytes,
    block: Block,
    kind: PageKind,
) -> Result<PageInfo, StoreError> {
    let found = kind_of(page, block)?;
    if found != kind {
        let reason = format!("expected a page of kind {kind:?}, found {found:?}");
        return Err(StoreError::corrupted(block, reason));
    }
    let (lower, upper) = bounds(page);
    if lower < DATA_START || lower > upper || upper > SPECIAL_START {
        let reason = format!("impossible page bounds {lower} and {upper}");
        return Err(StoreError::corrupted(block, reason));
    }
    Ok(info(page))
}

/// The fields of a page that was checked.
pub(crate) fn info(page: &PageBytes) -> PageInfo {
    PageInfo {
        next: get_u32(page, NEXT),
        owner: get_u32(page, OWNER),
        count: get_u16(page, COUNT).into(),
        free: get_u16(page, FREE).into(),
        lower: get_u16(page, PD_LOWER).into(),
        upper: get_u16(page, PD_UPPER).into(),
    }
}
