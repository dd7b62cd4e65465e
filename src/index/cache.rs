//! Centroids and first pages of the lists, copied into the memory of the
//! backend, so that a search does not read them through the buffer manager.
//!
//! The copy hangs on the relation cache (`rd_amcache`), which frees it whenever
//! the relation is invalidated, and carries the stamp of the training it is of.
//! The stamp is compared with that in the meta page at each use: a standby sees
//! new trainings without invalidations.

use faiss_ivf::Metric;
use ivf_store::{Block, Meta, PageKind, list_entries, read_extent};
use pgrx::pg_sys;

use super::report::OrRaise;
use super::storage::RelationStore;

#[repr(C)]
struct Header {
    stamp: u64,
    lists: u32,
    dimensions: u32,
}

/// The lists of an index and what their centroids are.
pub(super) struct Lists<'a> {
    /// First page of each list.
    pub first: &'a [Block],
    /// `(lists, dimensions)`, empty if there is only one list.
    pub centroids: &'a [f32],
}

impl Lists<'_> {
    /// The list whose centroid is nearest to `vector`.
    ///
    /// # Safety
    /// `index` must be an open relation.
    pub unsafe fn nearest(&self, index: pg_sys::Relation, metric: Metric, vector: &[f32]) -> u32 {
        let mut list = [0];
        if self.first.len() > 1 {
            let found = faiss_ivf::assign(metric, vector.len(), self.centroids, vector, &mut list);
            // SAFETY: the caller's promise.
            unsafe { found.or_raise(index) };
        }
        list[0]
    }
}

/// Calls `work` with the lists of `index`. It must not call PostgreSQL, which
/// could invalidate the relation and so free the lists under its hands.
///
/// # Safety
/// `index` must be the open index that `store` and `meta` are of.
pub(super) unsafe fn with_lists<T>(
    index: pg_sys::Relation,
    store: &RelationStore,
    meta: &Meta,
    work: impl FnOnce(&Lists<'_>) -> T,
) -> T {
    // SAFETY: rd_amcache is null or a chunk that `load` made; nothing between
    // here and the end of `work` can free it.
    unsafe {
        let cached = (*index).rd_amcache.cast::<Header>();
        let is_current = cached.as_ref().is_some_and(|header| {
            header.stamp == meta.stamp
                && header.lists == meta.lists
                && header.dimensions == meta.dimensions
        });
        let header = if is_current {
            cached
        } else {
            load(index, store, meta)
        };
        let first = header.add(1).cast::<Block>();
        let lists = (*header).lists as usize;
        let centroids = first.add(lists).cast::<f32>();
        work(&Lists {
            first: std::slice::from_raw_parts(first, lists),
            centroids: std::slice::from_raw_parts(centroids, centroid_count(meta)),
        })
    }
}

fn centroid_count(meta: &Meta) -> usize {
    meta.centroids.bytes as usize / size_of::<f32>()
}

/// Reads lists and centroids into one chunk of the relation's own memory
/// context, which is what `rd_amcache` must be.
///
/// # Safety
/// As for [`with_lists`].
unsafe fn load(index: pg_sys::Relation, store: &RelationStore, meta: &Meta) -> *mut Header {
    // SAFETY: the chunk has room for what is written; it is hung up only when
    // it is complete, and the one before is freed.
    unsafe {
        let entries = list_entries(store, &meta.directory, meta.lists).or_raise(index);
        let centroid_bytes = meta.centroids.bytes as usize;
        let size = size_of::<Header>() + entries.len() * size_of::<Block>() + centroid_bytes;
        let chunk = pg_sys::MemoryContextAllocHuge((*index).rd_indexcxt, size);
        let header = chunk.cast::<Header>();
        header.write(Header {
            stamp: meta.stamp,
            lists: meta.lists,
            dimensions: meta.dimensions,
        });
        let first = header.add(1).cast::<Block>();
        for (list, entry) in entries.iter().enumerate() {
            first.add(list).write(entry.first);
        }
        let centroids = first.add(entries.len()).cast::<u8>();
        centroids.write_bytes(0, centroid_bytes);
        let out = std::slice::from_raw_parts_mut(centroids, centroid_bytes);
        let read = match centroid_bytes {
            0 => Ok(()),
            _ => read_extent(store, PageKind::Centroids, &meta.centroids, out),
        };
        if read.is_err() {
            pg_sys::pfree(chunk);
        }
        read.or_raise(index);
        let old = std::mem::replace(&mut (*index).rd_amcache, chunk);
        if !old.is_null() {
            pg_sys::pfree(old);
        }
        header
    }
}
