//! Many new pages at a time.

use ivf_store::{Block, PageBytes};
use pgrx::{check_for_interrupts, pg_sys};

use super::RelationStore;
use super::page::PinnedBuffer;

/// So many pages are added together: PostgreSQL's own limit (`MAX_BUFFERS_TO_EXTEND_BY`).
const MOST_PAGES: usize = 64;

/// Adds pages at the end of a fork that nobody else uses and that is logged at its end;
/// returns the number of the first.
pub(super) fn append(store: &RelationStore, pages: &[&PageBytes]) -> Block {
    let mut first = None;
    let mut rest = pages;
    while !rest.is_empty() {
        check_for_interrupts!();
        let (block, added) = extend(store, rest.len().min(MOST_PAGES));
        first.get_or_insert(block);
        store.known_blocks.set(block + added.len() as Block);
        // PostgreSQL adds fewer where pins are short, but at least one.
        let (now, later) = rest.split_at(added.len());
        for (buffer, page) in added.into_iter().zip(now) {
            let locked = buffer.lock_exclusive();
            // SAFETY: the page is pinned and exclusively locked.
            unsafe {
                *locked.address() = **page;
                pg_sys::MarkBufferDirty(locked.id());
            }
        }
        rest = later;
    }
    first.unwrap_or_else(|| ivf_store::PageStore::block_count(store))
}

/// Adds at most `count` pages of zeros; returns the number of the first, and all of them.
fn extend(store: &RelationStore, count: usize) -> (Block, Vec<PinnedBuffer>) {
    let mut buffers = [0; MOST_PAGES];
    let mut added = 0;
    let relation = pg_sys::BufferManagerRelation {
        rel: store.relation,
        ..Default::default()
    };
    // SAFETY: the relation is open, and there is room for so many buffers.
    let first = unsafe {
        pg_sys::ExtendBufferedRelBy(
            relation,
            store.fork,
            store.strategy,
            0,
            count as u32,
            buffers.as_mut_ptr(),
            &mut added,
        )
    };
    let added = &buffers[..added as usize];
    // SAFETY: these pins are ours.
    let pinned = added
        .iter()
        .map(|&buffer| unsafe { PinnedBuffer::of(buffer) });
    (first, pinned.collect())
}
