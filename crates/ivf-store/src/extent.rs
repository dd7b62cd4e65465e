//! Byte strings longer than a page: centroids, the list directory, and what
//! later codecs have to keep. An extent is a run of consecutive pages, so that
//! the page of any offset is known without reading another.

use crate::error::StoreError;
use crate::page::{self, Block, DATA_START, NO_BLOCK, PAGE_SIZE, PageKind, SPECIAL_START};
use crate::store::PageStore;

/// How many bytes of an extent one page holds.
pub(crate) const EXTENT_PAGE_BYTES: usize = SPECIAL_START - DATA_START;

/// So many pages of an extent are added together.
const EXTENT_RUN: usize = 64;

/// Where an extent lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block, [`NO_BLOCK`] if there is no such extent.
    pub first: Block,
    /// Number of consecutive blocks.
    pub blocks: u32,
    /// Length in bytes.
    pub bytes: u64,
}

impl Extent {
    /// The extent that does not exist.
    pub const NONE: Self = Self {
        first: NO_BLOCK,
        blocks: 0,
        bytes: 0,
    };

    pub(crate) fn is_possible(&self) -> bool {
        let blocks = self.bytes.div_ceil(EXTENT_PAGE_BYTES as u64);
        let end = u64::from(self.first) + u64::from(self.blocks);
        *self == Self::NONE
            || (self.bytes > 0
                && u64::from(self.blocks) == blocks
                && end <= u64::from(NO_BLOCK)
                && self.first > 0)
    }

    /// Checks that an extent that is possible lies in a store of `blocks` pages.
    pub(crate) fn check_end(&self, blocks: Block) -> Result<(), StoreError> {
        if *self == Self::NONE || blocks - self.first.min(blocks) >= self.blocks {
            return Ok(());
        }
        let last = self.first + (self.blocks - 1);
        let reason = "a part of the index lies beyond its end";
        Err(StoreError::corrupted(last, reason))
    }

    /// The block that holds byte `offset`, and where in its data area.
    pub(crate) fn locate(&self, offset: u64) -> (Block, usize) {
        let page = offset / EXTENT_PAGE_BYTES as u64;
        let within = offset % EXTENT_PAGE_BYTES as u64;
        (self.first + page as Block, DATA_START + within as usize)
    }
}

/// Appends `bytes` as pages of `kind`. Nobody else may add pages meanwhile.
///
/// # Errors
/// [`StoreError`] if the pages are not consecutive or cannot be added.
pub fn write_extent<S: PageStore>(
    store: &S,
    kind: PageKind,
    bytes: &[u8],
) -> Result<Extent, StoreError> {
    if bytes.is_empty() {
        return Ok(Extent::NONE);
    }
    let first = store.block_count();
    let mut blocks = 0;
    let mut buffers = vec![[0; PAGE_SIZE]; EXTENT_RUN.min(bytes.len().div_ceil(EXTENT_PAGE_BYTES))];
    for run in bytes.chunks(EXTENT_RUN * EXTENT_PAGE_BYTES) {
        let chunks = run.chunks(EXTENT_PAGE_BYTES);
        let mut pages = Vec::with_capacity(EXTENT_RUN);
        for ((buffer, chunk), sequence) in buffers.iter_mut().zip(chunks).zip(blocks..) {
            page::init(buffer, kind, sequence);
            let end = DATA_START + chunk.len();
            buffer[DATA_START..end].copy_from_slice(chunk);
            page::set_bounds(buffer, end, SPECIAL_START);
            pages.push(&*buffer);
        }
        let block = store.append_all(&pages)?;
        if block != first + blocks {
            return Err(StoreError::corrupted(
                block,
                "the run of pages is interrupted",
            ));
        }
        blocks += pages.len() as Block;
    }
    Ok(Extent {
        first,
        blocks,
        bytes: bytes.len() as u64,
    })
}

/// Reads a whole extent into `out`, whose length must be that of the extent.
///
/// # Errors
/// [`StoreError`] if a page is damaged or the length is another.
pub fn read_extent<S: PageStore>(
    store: &S,
    kind: PageKind,
    extent: &Extent,
    out: &mut [u8],
) -> Result<(), StoreError> {
    if out.len() as u64 != extent.bytes {
        let reason = format!("extent of {} bytes, expected {}", extent.bytes, out.len());
        return Err(StoreError::corrupted(extent.first, reason));
    }
    for (sequence, chunk) in (0u32..).zip(out.chunks_mut(EXTENT_PAGE_BYTES)) {
        let block = extent.first + sequence;
        let page = store.read(block)?;
        check_extent_page(&page, block, kind, sequence, chunk.len())?;
        chunk.copy_from_slice(&page[DATA_START..DATA_START + chunk.len()]);
    }
    Ok(())
}

pub(crate) fn check_extent_page(
    bytes: &page::PageBytes,
    block: Block,
    kind: PageKind,
    sequence: u32,
    len: usize,
) -> Result<(), StoreError> {
    let info = page::check(bytes, block, kind)?;
    if info.owner != sequence || info.lower < DATA_START + len {
        return Err(StoreError::corrupted(
            block,
            "not the expected piece of its extent",
        ));
    }
    Ok(())
}
