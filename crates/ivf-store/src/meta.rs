//! The meta page: what the index is and where its parts are.

use crate::directory::directory_len;
use crate::error::StoreError;
use crate::extent::{EXTENT_PAGE_BYTES, Extent};
use crate::list::ListLayout;
use crate::page::{
    self, Block, DATA_START, PAGE_SIZE, PageBytes, PageKind, SPECIAL_START, get_u16, get_u32,
    get_u64, put_u16, put_u32, put_u64,
};
use crate::store::{PageChange, PageStore};

/// The block of the meta page.
pub const META_BLOCK: Block = 0;

const META_SIZE: usize = 160;
const DIMENSIONS: usize = DATA_START;
const DISTANCE: usize = DATA_START + 4;
const ELEMENT: usize = DATA_START + 5;
const CODEC: usize = DATA_START + 6;
const REFINE_CODEC: usize = DATA_START + 7;
const CODE_SIZE: usize = DATA_START + 8;
const RECORD_SIZE: usize = DATA_START + 12;
const FILTER_COLUMNS: usize = DATA_START + 14;
const LISTS: usize = DATA_START + 16;
const GENERATION: usize = DATA_START + 20;
const STAMP: usize = DATA_START + 24;
const TRAINING_ROWS: usize = DATA_START + 32;
const TRAINED_AT: usize = DATA_START + 40;
const CENTROIDS: usize = DATA_START + 48;
const DIRECTORY: usize = DATA_START + 64;
const RECALL: usize = DATA_START + 112;
/// Codec state, refine state, filter columns: none of them is written by this version.
const RESERVED_EXTENTS: [usize; 3] = [DATA_START + 80, DATA_START + 96, DATA_START + 128];

const _: () = {
    assert!(DATA_START + META_SIZE <= SPECIAL_START);
    assert!(RESERVED_EXTENTS[2] + 16 + 16 == DATA_START + META_SIZE);
};

const CODEC_FLAT: u8 = 0;
const REFINE_NONE: u8 = 0;

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

/// The number format of the flat codes.
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
    /// Number format of the codes.
    pub element: Element,
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
    /// `lists` x `dimensions` floats, or [`Extent::NONE`] if there is only one list.
    pub centroids: Extent,
    /// The list directory.
    pub directory: Extent,
    /// The recall curve, or [`Extent::NONE`] if there is only one list.
    pub recall: Extent,
}

impl Meta {
    /// How the entries of the lists are laid out.
    #[must_use]
    pub fn layout(&self) -> ListLayout {
        ListLayout::flat(self.dimensions, self.element, self.distance)
            .expect("it was checked when the meta page was read or the index built")
    }

    /// The meta page.
    #[must_use]
    pub fn to_page(&self) -> Box<PageBytes> {
        let mut page = Box::new([0; PAGE_SIZE]);
        page::init(&mut page, PageKind::Meta, 0);
        page::set_bounds(&mut page, DATA_START + META_SIZE, SPECIAL_START);
        put_u32(&mut page[..], DIMENSIONS, self.dimensions);
        page[DISTANCE] = self.distance as u8;
        page[ELEMENT] = self.element as u8;
        page[CODEC] = CODEC_FLAT;
        page[REFINE_CODEC] = REFINE_NONE;
        put_u32(&mut page[..], CODE_SIZE, self.layout().code_size() as u32);
        put_u16(
            &mut page[..],
            RECORD_SIZE,
            self.layout().record_size() as u16,
        );
        put_u32(&mut page[..], LISTS, self.lists);
        put_u32(&mut page[..], GENERATION, self.generation);
        put_u64(&mut page[..], STAMP, self.stamp);
        put_u64(&mut page[..], TRAINING_ROWS, self.training_rows);
        put_extent(&mut page, CENTROIDS, &self.centroids);
        put_extent(&mut page, DIRECTORY, &self.directory);
        put_u64(&mut page[..], TRAINED_AT, self.trained_at as u64);
        put_extent(&mut page, RECALL, &self.recall);
        for at in RESERVED_EXTENTS {
            put_extent(&mut page, at, &Extent::NONE);
        }
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
        let meta = Self {
            dimensions: get_u32(page, DIMENSIONS),
            distance,
            element,
            lists: get_u32(page, LISTS),
            generation: get_u32(page, GENERATION),
            stamp: get_u64(page, STAMP),
            training_rows: get_u64(page, TRAINING_ROWS),
            centroids: get_extent(page, CENTROIDS)?,
            directory: get_extent(page, DIRECTORY)?,
            trained_at: get_u64(page, TRAINED_AT) as i64,
            recall: get_extent(page, RECALL)?,
        };
        meta.check(page)?;
        Ok(meta)
    }

    fn check(&self, page: &PageBytes) -> Result<(), StoreError> {
        let layout = ListLayout::flat(self.dimensions, self.element, self.distance)
            .ok_or_else(|| damaged("its dimensions"))?;
        let sizes = (get_u32(page, CODE_SIZE), get_u16(page, RECORD_SIZE));
        if page[CODEC] != CODEC_FLAT
            || page[REFINE_CODEC] != REFINE_NONE
            || get_u16(page, FILTER_COLUMNS) != 0
            || sizes != (layout.code_size() as u32, layout.record_size() as u16)
        {
            return Err(damaged("its codec"));
        }
        let centroid_bytes = u64::from(self.lists) * u64::from(self.dimensions) * 4;
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
        for extent in [self.centroids, self.directory, self.recall] {
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
