//! The meta page: what the index is and where its parts are.

use crate::directory::directory_len;
use crate::error::StoreError;
use crate::extent::{EXTENT_PAGE_BYTES, Extent};
use crate::layout::{Codes, ListLayout, RefineCodes};
use crate::page::{
    self, Block, DATA_START, PAGE_SIZE, PageBytes, PageKind, SPECIAL_START, get_u32, get_u64,
    put_u32, put_u64,
};
use crate::store::{PageChange, PageStore};

/// The block of the meta page.
pub const META_BLOCK: Block = 0;

/// The longest factory string that the meta page has room for.
pub const MAX_FACTORY_LEN: usize = 128;

const DIMENSIONS: usize = DATA_START;
const DISTANCE: usize = DATA_START + 4;
const ELEMENT: usize = DATA_START + 5;
const CODE_FLAGS: usize = DATA_START + 6;
const FACTORY_LEN: usize = DATA_START + 7;
const CODE_SIZE: usize = DATA_START + 8;
const REFINE_SIZE: usize = DATA_START + 12;
const LISTS: usize = DATA_START + 16;
const GENERATION: usize = DATA_START + 20;
const STAMP: usize = DATA_START + 24;
const TRAINING_ROWS: usize = DATA_START + 32;
const TRAINED_AT: usize = DATA_START + 40;
const CENTROIDS: usize = DATA_START + 48;
const DIRECTORY: usize = DATA_START + 64;
const STATE: usize = DATA_START + 80;
const RECALL: usize = DATA_START + 96;
const CODE_DIMENSIONS: usize = DATA_START + 112;
const FACTORY: usize = DATA_START + 128;
const META_SIZE: usize = 128 + MAX_FACTORY_LEN;

const _: () = {
    assert!(DATA_START + META_SIZE <= SPECIAL_START);
    assert!(MAX_FACTORY_LEN <= u8::MAX as usize);
};

const IS_PACKED: u8 = 1;
const IS_LOSSY: u8 = 2;
const HAS_REFINE: u8 = 4;
const REFINE_IS_LOSSY: u8 = 8;

/// By what an index orders its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Distance {
    /// Euclidean distance; nearest first.
    L2 = 1,
    /// Inner product; greatest first.
    InnerProduct = 2,
    /// Cosine similarity; greatest first. Vectors are stored with length one.
    Cosine = 3,
}

/// The number format of the indexed vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Element {
    /// 32-bit floats.
    Float32 = 1,
    /// 16-bit floats.
    Float16 = 2,
}

impl Element {
    /// Size of one number in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 => 2,
        }
    }
}

/// The contents of the meta page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Dimensions of the vectors.
    pub dimensions: u32,
    /// What the index orders by.
    pub distance: Distance,
    /// Number format of the vectors.
    pub element: Element,
    /// FAISS's factory string of the index, without the number of lists.
    pub factory: String,
    /// Dimensions of centroids and codes.
    pub code_dimensions: u32,
    /// How the entries of the lists are laid out.
    pub layout: ListLayout,
    /// Number of inverted lists.
    pub lists: u32,
    /// Counts trainings: 1 for the first.
    pub generation: u32,
    /// A number that no two trainings share, to recognise cached state by.
    pub stamp: u64,
    /// Rows that k-means was trained on; 0 if the index was never trained.
    pub training_rows: u64,
    /// When the lists were learnt, in microseconds since 2000-01-01 UTC (PostgreSQL's
    /// `timestamptz`).
    pub trained_at: i64,
    /// `lists` x `code_dimensions` floats, or [`Extent::NONE`] if there is only one list.
    pub centroids: Extent,
    /// The list directory.
    pub directory: Extent,
    /// What transforms and codes have learned, or [`Extent::NONE`] if nothing.
    pub state: Extent,
    /// The recall curve, or [`Extent::NONE`] if there is only one list.
    pub recall: Extent,
}

impl Meta {
    /// The meta page.
    ///
    /// # Panics
    /// If the factory string is longer than [`MAX_FACTORY_LEN`].
    #[must_use]
    pub fn to_page(&self) -> Box<PageBytes> {
        assert!(self.factory.len() <= MAX_FACTORY_LEN);
        let mut page = Box::new([0; PAGE_SIZE]);
        page::init(&mut page, PageKind::Meta, 0);
        page::set_bounds(&mut page, DATA_START + META_SIZE, SPECIAL_START);
        put_u32(&mut page[..], DIMENSIONS, self.dimensions);
        page[DISTANCE] = self.distance as u8;
        page[ELEMENT] = self.element as u8;
        put_codes(&mut page, self.layout.codes());
        let factory = self.factory.as_bytes();
        page[FACTORY_LEN] = factory.len() as u8;
        page[FACTORY..FACTORY + factory.len()].copy_from_slice(factory);
        put_u32(&mut page[..], CODE_DIMENSIONS, self.code_dimensions);
        put_u32(&mut page[..], LISTS, self.lists);
        put_u32(&mut page[..], GENERATION, self.generation);
        put_u64(&mut page[..], STAMP, self.stamp);
        put_u64(&mut page[..], TRAINING_ROWS, self.training_rows);
        put_extent(&mut page, CENTROIDS, &self.centroids);
        put_extent(&mut page, DIRECTORY, &self.directory);
        put_u64(&mut page[..], TRAINED_AT, self.trained_at as u64);
        put_extent(&mut page, STATE, &self.state);
        put_extent(&mut page, RECALL, &self.recall);
        page
    }

    /// Reads the meta page. What it says of sizes is bounded by the size of the store,
    /// so that memory may be allocated by it.
    ///
    /// # Errors
    /// [`StoreError`] if it is damaged or of another version, or if the store ends
    /// before the extents do.
    pub fn read<S: PageStore>(store: &S) -> Result<Self, StoreError> {
        let page = store.read(META_BLOCK)?;
        let meta = Self::from_page(&page)?;
        drop(page);
        meta.check_ends(store.block_count())?;
        Ok(meta)
    }

    /// Replaces the meta page, which must exist, and nothing else.
    ///
    /// # Errors
    /// [`StoreError`] from the change.
    pub fn write<S: PageStore>(&self, store: &S) -> Result<(), StoreError> {
        let mut change = store.change();
        let slot = change.lock(META_BLOCK)?;
        *change.page_mut(slot) = *self.to_page();
        change.commit();
        Ok(())
    }

    fn from_page(page: &PageBytes) -> Result<Self, StoreError> {
        let info = page::check(page, META_BLOCK, PageKind::Meta)?;
        if info.lower != DATA_START + META_SIZE {
            return Err(damaged("its length"));
        }
        let distance = match page[DISTANCE] {
            1 => Distance::L2,
            2 => Distance::InnerProduct,
            3 => Distance::Cosine,
            _ => return Err(damaged("its distance")),
        };
        let element = match page[ELEMENT] {
            1 => Element::Float32,
            2 => Element::Float16,
            _ => return Err(damaged("its element type")),
        };
        let layout = get_codes(page).and_then(ListLayout::new);
        let meta = Self {
            dimensions: get_u32(page, DIMENSIONS),
            distance,
            element,
            factory: get_factory(page).ok_or_else(|| damaged("its factory string"))?,
            code_dimensions: get_u32(page, CODE_DIMENSIONS),
            layout: layout.ok_or_else(|| damaged("its codes"))?,
            lists: get_u32(page, LISTS),
            generation: get_u32(page, GENERATION),
            stamp: get_u64(page, STAMP),
            training_rows: get_u64(page, TRAINING_ROWS),
            centroids: get_extent(page, CENTROIDS)?,
            directory: get_extent(page, DIRECTORY)?,
            trained_at: get_u64(page, TRAINED_AT) as i64,
            state: get_extent(page, STATE)?,
            recall: get_extent(page, RECALL)?,
        };
        meta.check()?;
        Ok(meta)
    }

    fn check(&self) -> Result<(), StoreError> {
        let dimensions = 1..=PAGE_SIZE as u32;
        if !dimensions.contains(&self.dimensions) || !dimensions.contains(&self.code_dimensions) {
            return Err(damaged("its dimensions"));
        }
        let centroid_bytes = u64::from(self.lists) * u64::from(self.code_dimensions) * 4;
        let centroids_fit = match self.lists {
            1 => self.centroids == Extent::NONE,
            _ => self.centroids.bytes == centroid_bytes,
        };
        let directory_fits = self.directory.bytes == directory_len(self.lists);
        if self.lists == 0 || !directory_fits || !centroids_fit {
            return Err(damaged("its number of lists"));
        }
        let curve_fits = match self.lists {
            1 => self.recall == Extent::NONE,
            _ => self.recall.bytes == EXTENT_PAGE_BYTES as u64,
        };
        if !curve_fits {
            return Err(damaged("its recall curve"));
        }
        Ok(())
    }

    /// Checks that a store of `blocks` pages has all extents, and a page for each list.
    fn check_ends(&self, blocks: Block) -> Result<(), StoreError> {
        for extent in [self.centroids, self.directory, self.state, self.recall] {
            extent.check_end(blocks)?;
        }
        if self.lists >= blocks {
            return Err(damaged("its number of lists"));
        }
        Ok(())
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::corrupted(META_BLOCK, format!("the meta page is damaged in {what}"))
}

fn put_codes(page: &mut PageBytes, codes: Codes) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let refine = codes.refine;
    page[CODE_FLAGS] = flag(codes.is_packed, IS_PACKED)
        | flag(codes.is_lossy, IS_LOSSY)
        | flag(refine.is_some(), HAS_REFINE)
        | flag(
            refine.is_some_and(|refine| refine.is_lossy),
            REFINE_IS_LOSSY,
        );
    put_u32(&mut page[..], CODE_SIZE, codes.code_size as u32);
    let refine_size = refine.map_or(0, |refine| refine.code_size);
    put_u32(&mut page[..], REFINE_SIZE, refine_size as u32);
}

fn get_codes(page: &PageBytes) -> Option<Codes> {
    let flags = page[CODE_FLAGS];
    let has = |flag: u8| flags & flag != 0;
    let refine_size = get_u32(page, REFINE_SIZE) as usize;
    let known = IS_PACKED | IS_LOSSY | HAS_REFINE | REFINE_IS_LOSSY;
    let refine_fits = has(HAS_REFINE) == (refine_size > 0);
    let lossy_fits = has(HAS_REFINE) || !has(REFINE_IS_LOSSY);
    let is_known = flags & !known == 0 && refine_fits && lossy_fits;
    is_known.then(|| Codes {
        code_size: get_u32(page, CODE_SIZE) as usize,
        is_packed: has(IS_PACKED),
        is_lossy: has(IS_LOSSY),
        refine: has(HAS_REFINE).then(|| RefineCodes {
            code_size: refine_size,
            is_lossy: has(REFINE_IS_LOSSY),
        }),
    })
}

fn get_factory(page: &PageBytes) -> Option<String> {
    let len = usize::from(page[FACTORY_LEN]);
    let bytes = page[FACTORY..FACTORY + MAX_FACTORY_LEN].get(..len)?;
    String::from_utf8(bytes.to_vec()).ok()
}

fn put_extent(page: &mut PageBytes, at: usize, extent: &Extent) {
    put_u32(&mut page[..], at, extent.first);
    put_u32(&mut page[..], at + 4, extent.blocks);
    put_u64(&mut page[..], at + 8, extent.bytes);
}

fn get_extent(page: &PageBytes, at: usize) -> Result<Extent, StoreError> {
    let extent = Extent {
        first: get_u32(page, at),
        blocks: get_u32(page, at + 4),
        bytes: get_u64(page, at + 8),
    };
    if extent.is_possible() {
        Ok(extent)
    } else {
        Err(damaged("an extent"))
    }
}
