//! What an index has learned, in the memory of the backend: centroids, codes, and where
//! its lists begin, so that a search does not read them through the buffer manager.
//!
//! Each training has a stamp, a random number in the meta page, which is read anew for
//! each use: what is kept under a stamp never becomes wrong, whoever changes the index,
//! also on a standby, which sees new trainings without invalidations.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use faiss_ivf::{CoarseCentroids, Coding, Factory, FaissError, Metric};
use ivf_store::{
    Block, Codes, Extent, Meta, PageKind, PageStore, RecallCurve, RefineCodes, StoreError,
    list_entries, read_extent,
};
use pgrx::pg_sys;

use super::opclass::OpClass;
use super::report::OrRaise;
use super::storage::{RecentBuffers, RelationStore};

/// So many bytes are kept for indexes that were used before the last one.
const MOST_BYTES: usize = 256 << 20;

/// Centroids, and what is computed from them once.
pub(super) struct Lists {
    metric: Metric,
    /// Dimensions of a centroid.
    dim: usize,
    /// `(lists, dim)`, empty if there is only one list.
    pub centroids: Vec<f32>,
    /// Squared lengths of the centroids.
    pub squares: Vec<f32>,
    /// By which the lists of one vector are found; made when they are first wanted.
    coarse: OnceLock<CoarseCentroids>,
    /// Whether lists were ranked before.
    was_ranked: AtomicBool,
}

/// So many floats are ranked as fast in full.
const FEW_FLOATS: usize = 1 << 15;

impl Lists {
    pub fn new(metric: Metric, dim: usize, centroids: Vec<f32>) -> Self {
        let squares = centroids
            .chunks_exact(dim)
            .map(|centroid| faiss_ivf::squared(centroid) as f32)
            .collect();
        Self {
            metric,
            dim,
            centroids,
            squares,
            coarse: OnceLock::new(),
            was_ranked: AtomicBool::new(false),
        }
    }

    /// Centroids by which the lists of a query are ranked faster than by all that is known
    /// of them; not for the first query, which would have to wait for them to be made.
    pub fn coarse_for_rank(&self) -> Option<&CoarseCentroids> {
        if self.centroids.len() <= FEW_FLOATS {
            return None;
        }
        let is_first = !self.was_ranked.swap(true, Ordering::Relaxed);
        match is_first {
            true => self.coarse.get(),
            false => Some(self.coarse()),
        }
    }

    fn coarse(&self) -> &CoarseCentroids {
        self.coarse
            .get_or_init(|| CoarseCentroids::new(self.metric, self.dim, &self.centroids))
    }

    /// The list of one vector `(dim)`, as the transform maps it.
    pub fn nearest(&self, mapped: &[f32]) -> Result<u32, FaissError> {
        if self.centroids.len() <= self.dim {
            return Ok(0);
        }
        let list = self.coarse().nearest(mapped, &self.centroids)?;
        Ok(list as u32)
    }

    /// The lists of vectors `(n, dim)`, as the transform maps them.
    pub fn assign(&self, mapped: &[f32], lists: &mut [u32]) -> Result<(), FaissError> {
        lists.fill(0);
        match self.centroids.len() > self.dim {
            true => faiss_ivf::assign(self.metric, self.dim, &self.centroids, mapped, lists),
            false => Ok(()),
        }
    }

    /// The centroid of a list; empty if there is only one list.
    pub fn centroid(&self, list: u32) -> &[f32] {
        let begin = list as usize * self.dim;
        self.centroids.get(begin..begin + self.dim).unwrap_or(&[])
    }
}

/// What an index has learned.
pub(super) struct Trained {
    stamp: u64,
    /// What its entries consist of.
    codes: Codes,
    pub coding: Coding,
    pub lists: Lists,
    /// First page of each list.
    pub first: Vec<Block>,
    pub curve: RecallCurve,
    /// Where this backend has found its pages.
    pub recent: Rc<RecentBuffers>,
}

thread_local! {
    /// The one that was used last comes first.
    static KEPT: RefCell<VecDeque<Rc<Trained>>> = const { RefCell::new(VecDeque::new()) };
}

impl Trained {
    /// What the index of `meta` has learned.
    ///
    /// # Safety
    /// `index` must be the open index that `store` and `meta` are of.
    pub unsafe fn of(index: pg_sys::Relation, store: &RelationStore, meta: &Meta) -> Rc<Self> {
        if let Some(kept) = find(meta.stamp) {
            if kept.codes != meta.layout.codes() || kept.first.len() != meta.lists as usize {
                let changed = Err::<(), _>(damaged("the meta page is not that of its stamp"));
                // SAFETY: the caller's promise.
                unsafe { changed.or_raise(index) };
            }
            return kept;
        }
        // SAFETY: the caller's promise.
        let loaded = Rc::new(unsafe { load(index, store, meta) });
        keep(&loaded);
        loaded
    }

    fn bytes(&self) -> usize {
        let floats = self.lists.centroids.len() + self.lists.squares.len() + self.first.len();
        let coarse = self.lists.coarse.get().map_or(0, CoarseCentroids::bytes);
        floats * size_of::<f32>() + coarse + self.coding.state_len() + self.recent.bytes()
    }
}

fn find(stamp: u64) -> Option<Rc<Trained>> {
    KEPT.with_borrow_mut(|kept| {
        let place = kept.iter().position(|trained| trained.stamp == stamp)?;
        let found = kept.remove(place)?;
        kept.push_front(Rc::clone(&found));
        Some(found)
    })
}

fn keep(trained: &Rc<Trained>) {
    KEPT.with_borrow_mut(|kept| {
        kept.push_front(Rc::clone(trained));
        let mut bytes = 0;
        let within = kept.iter().take_while(|trained| {
            bytes += trained.bytes();
            bytes <= MOST_BYTES
        });
        let count = within.count().max(1);
        kept.truncate(count);
    });
}

/// # Safety
/// As for [`Trained::of`].
unsafe fn load(index: pg_sys::Relation, store: &RelationStore, meta: &Meta) -> Trained {
    // SAFETY: the caller's promise.
    unsafe {
        let opclass = OpClass::of(index);
        let (metric, flat) = (opclass.metric(), opclass.codec());
        let dim = meta.dimensions as usize;
        let entries = list_entries(store, &meta.directory, meta.lists).or_raise(index);
        let bytes = read_all(store, PageKind::Centroids, &meta.centroids).or_raise(index);
        let centroids = bytes
            .chunks_exact(size_of::<f32>())
            .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let state = read_all(store, PageKind::State, &meta.state).or_raise(index);
        let factory = factory_of(meta).or_raise(index);
        let coding = Coding::from_state(&factory, metric, dim, flat, &state)
            .map_err(|error| StoreError::Corrupted {
                block: match meta.state {
                    Extent::NONE => ivf_store::META_BLOCK,
                    state => state.first,
                },
                reason: error.to_string(),
            })
            .or_raise(index);
        if coding.code_dim() != meta.code_dimensions as usize
            || layout_codes(&factory, opclass, dim) != meta.layout.codes()
        {
            Err::<(), _>(damaged("its codes are not those of its factory string")).or_raise(index);
        }
        Trained {
            stamp: meta.stamp,
            codes: meta.layout.codes(),
            lists: Lists::new(metric, coding.code_dim(), centroids),
            coding,
            first: entries.iter().map(|entry| entry.first).collect(),
            curve: RecallCurve::read(store, meta).or_raise(index),
            recent: Rc::new(RecentBuffers::new(store.block_count())),
        }
    }
}

fn damaged(reason: &str) -> StoreError {
    StoreError::Corrupted {
        block: ivf_store::META_BLOCK,
        reason: reason.to_owned(),
    }
}

fn factory_of(meta: &Meta) -> Result<Factory, StoreError> {
    meta.factory
        .parse()
        .map_err(|error: faiss_ivf::FactoryError| damaged(&error.to_string()))
}

fn read_all<S: PageStore>(
    store: &S,
    kind: PageKind,
    extent: &Extent,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; extent.bytes as usize];
    if *extent != Extent::NONE {
        read_extent(store, kind, extent, &mut bytes)?;
    }
    Ok(bytes)
}

/// What the entries of an index consist of.
pub(super) fn layout_codes(factory: &Factory, opclass: &OpClass, dim: usize) -> Codes {
    let sizes = Coding::sizes(factory, dim, opclass.codec());
    Codes {
        code_size: sizes.code,
        is_packed: sizes.is_packed,
        is_lossy: sizes.is_lossy,
        refine: sizes.refine.map(|(code_size, is_lossy)| RefineCodes {
            code_size,
            is_lossy,
        }),
    }
}
