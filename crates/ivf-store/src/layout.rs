//! How entries lie in the pages of a list.
//!
//! A list page has room for a fixed number of entries, and each part of an entry has its
//! place in an array of that length: codes, then factors, then row pointers. Where
//! entries have a refine code, it lies with the row pointer in a row page instead, of
//! which a list page names as many as its entries take: a scan reads the codes of all
//! entries, and rows only of those that may be among the nearest.

use std::ops::Range;

use crate::page::{Block, DATA_START, PAGE_SIZE, PageBytes, SPECIAL_START, get_u32};

/// Codes in a block, if they are packed.
pub const BLOCK_CODES: usize = 32;
/// Numbers that a lossy code has: scale, offset, error.
pub const FACTORS: usize = 3;

const ROOM: usize = SPECIAL_START - DATA_START;
const NUMBER: usize = size_of::<f32>();
const TID: usize = size_of::<u64>();
const POINTER: usize = size_of::<u32>();
const ALIGNMENT: usize = 8;

/// What the entries of an index consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codes {
    /// Size of a code in bytes.
    pub code_size: usize,
    /// Codes are sequences of 4-bit numbers that lie in blocks of [`BLOCK_CODES`].
    pub is_packed: bool,
    /// The code is not the vector itself; [`FACTORS`] numbers belong to it.
    pub is_lossy: bool,
    /// What entries have beside it.
    pub refine: Option<RefineCodes>,
}

/// The refine codes of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefineCodes {
    /// Size of a refine code in bytes.
    pub code_size: usize,
    /// The refine code is not the vector itself; [`FACTORS`] numbers belong to it.
    pub is_lossy: bool,
}

/// Places of the parts of entries in list pages and row pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListLayout {
    codes: Codes,
    /// Entries of a list page.
    capacity: usize,
    /// Entries of a row page, 0 if there are none.
    row_capacity: usize,
}

impl ListLayout {
    /// The layout of such entries, `None` if a page has no room for one.
    #[must_use]
    pub fn new(codes: Codes) -> Option<Self> {
        // Whatever a damaged page says: nothing below overflows with these.
        let sizes = 1..=ROOM;
        let refine_fits = (codes.refine).is_none_or(|refine| sizes.contains(&refine.code_size));
        if !sizes.contains(&codes.code_size) || !refine_fits {
            return None;
        }
        let mut layout = Self {
            codes,
            capacity: 0,
            row_capacity: 0,
        };
        if let Some(refine) = codes.refine {
            layout.row_capacity = ROOM / (refine.code_size + TID);
            while layout.row_capacity > 0 && layout.rows_end() > SPECIAL_START {
                layout.row_capacity -= 1;
            }
            if layout.row_capacity == 0 {
                return None;
            }
        }
        let step = if codes.is_packed { BLOCK_CODES } else { 1 };
        layout.capacity = ROOM / codes.code_size / step * step;
        while layout.capacity > 0 && layout.end() > SPECIAL_START {
            layout.capacity -= step;
        }
        (layout.capacity > 0).then_some(layout)
    }

    /// What the entries consist of.
    #[must_use]
    pub fn codes(&self) -> Codes {
        self.codes
    }

    /// How many entries a list page has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many entries a row page has room for, 0 if there are no row pages.
    #[must_use]
    pub fn row_capacity(&self) -> usize {
        self.row_capacity
    }

    /// How many row pages belong to a full list page.
    #[must_use]
    pub fn row_pages(&self) -> usize {
        match self.row_capacity {
            0 => 0,
            capacity => self.capacity.div_ceil(capacity),
        }
    }

    /// Size of a block of packed codes in bytes.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.codes.code_size * BLOCK_CODES
    }

    /// Size of all that an entry consists of but its row pointer: code, factors, refine
    /// code, refine factors.
    #[must_use]
    pub fn record_size(&self) -> usize {
        let factors = usize::from(self.codes.is_lossy) * FACTORS * NUMBER;
        let refine = self.codes.refine.map_or(0, |refine| {
            refine.code_size + usize::from(refine.is_lossy) * FACTORS * NUMBER
        });
        self.codes.code_size + factors + refine
    }

    /// The parts of a record: code, factors, refine code, refine factors.
    pub(crate) fn split<'a>(&self, record: &'a [u8]) -> [&'a [u8]; 4] {
        let factors = usize::from(self.codes.is_lossy) * FACTORS * NUMBER;
        let refine = self.codes.refine.map_or(0, |refine| refine.code_size);
        let (code, rest) = record.split_at(self.codes.code_size);
        let (factors, rest) = rest.split_at(factors);
        let (refine, refine_factors) = rest.split_at(refine);
        [code, factors, refine, refine_factors]
    }

    /// Bytes of the codes of so many entries.
    pub(crate) fn codes_len(&self, count: usize) -> usize {
        if self.codes.is_packed {
            count.div_ceil(BLOCK_CODES) * self.block_size()
        } else {
            count * self.codes.code_size
        }
    }

    /// Between what bytes of a list page its hole lies if so many slots are in use: behind
    /// their codes, and before the arrays of the other parts.
    pub(crate) fn hole(&self, count: usize) -> (usize, usize) {
        (DATA_START + self.codes_len(count), self.factor_at(0))
    }

    /// Between what bytes of a row page its hole lies if so many places are in use.
    pub(crate) fn row_hole(&self, count: usize) -> (usize, usize) {
        (self.refine_at(count), self.refine_factor_at(0))
    }

    /// Where the numbers of one of the [`FACTORS`] begin.
    pub(crate) fn factor_at(&self, factor: usize) -> usize {
        let codes = self.codes_len(self.capacity).next_multiple_of(ALIGNMENT);
        DATA_START + codes + factor * self.capacity * NUMBER
    }

    /// Where row pointers begin, or the names of row pages.
    fn tail_at(&self) -> usize {
        let factors = usize::from(self.codes.is_lossy) * FACTORS;
        self.factor_at(factors).next_multiple_of(ALIGNMENT)
    }

    fn end(&self) -> usize {
        match self.codes.refine {
            None => self.tail_at() + self.capacity * TID,
            Some(_) => self.tail_at() + self.row_pages() * POINTER,
        }
    }

    /// Where the row pointer of an entry lies, if there are no row pages.
    pub(crate) fn tid_at(&self, index: usize) -> usize {
        self.tail_at() + index * TID
    }

    /// Where the name of a row page lies.
    pub(crate) fn row_page_at(&self, index: usize) -> usize {
        self.tail_at() + index * POINTER
    }

    /// The block of a row page of a list page, [`NO_BLOCK`](crate::NO_BLOCK) if there is
    /// none.
    pub(crate) fn row_page(&self, page: &PageBytes, index: usize) -> Block {
        get_u32(page, self.row_page_at(index))
    }

    /// Where a refine code lies in its row page.
    pub(crate) fn refine_at(&self, index: usize) -> usize {
        DATA_START + index * self.codes.refine.map_or(0, |refine| refine.code_size)
    }

    /// Where the numbers of one of the [`FACTORS`] begin in a row page.
    pub(crate) fn refine_factor_at(&self, factor: usize) -> usize {
        let codes = self.refine_at(self.row_capacity) - DATA_START;
        let begin = DATA_START + codes.next_multiple_of(ALIGNMENT);
        begin + factor * self.row_capacity * NUMBER
    }

    /// Where the row pointer of an entry lies in its row page.
    pub(crate) fn row_tid_at(&self, index: usize) -> usize {
        let is_lossy = self.codes.refine.is_some_and(|refine| refine.is_lossy);
        let factors = usize::from(is_lossy) * FACTORS;
        self.refine_factor_at(factors).next_multiple_of(ALIGNMENT) + index * TID
    }

    /// Parts of any list page that are read first: what says what page it is, and as many of
    /// its codes as a processor reads before it asks for the following ones by itself.
    #[must_use]
    pub fn first_parts() -> [Range<usize>; 2] {
        [0..256, SPECIAL_START..PAGE_SIZE]
    }

    /// Parts of a row page that are read for an entry: what says what page it is, refine
    /// code, row pointer and factors.
    ///
    /// # Panics
    /// If a page has no such place.
    pub fn row_parts(&self, index: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        assert!(index < self.row_capacity);
        let is_lossy = self.codes.refine.is_some_and(|refine| refine.is_lossy);
        let layout = *self;
        let factors = (0..usize::from(is_lossy) * FACTORS).map(move |factor| {
            let at = layout.refine_factor_at(factor) + index * NUMBER;
            at..at + NUMBER
        });
        let tid = self.row_tid_at(index);
        [
            0..DATA_START,
            SPECIAL_START..PAGE_SIZE,
            self.refine_at(index)..self.refine_at(index + 1),
            tid..tid + TID,
        ]
        .into_iter()
        .chain(factors)
    }

    fn rows_end(&self) -> usize {
        self.row_tid_at(self.row_capacity)
    }
}

/// Puts a code of 4-bit numbers, two a byte with the low half first, at `slot` of a
/// block: the layout that FAISS's fast-scan kernels read (`pq4_pack_codes` with a block
/// of 32). The numbers 2p and 2p + 1 of all codes are bytes 32 p to 32 p + 31 of the
/// block, 16 of them for each; a byte has the number of one code in its low half and
/// that of the code 16 slots on in its high half.
pub fn pack(block: &mut [u8], slot: usize, code: &[u8]) {
    let column = match slot % 16 {
        low @ 0..8 => 2 * low,
        high => 2 * (high - 8) + 1,
    };
    let shift = if slot < 16 { 0 } else { 4 };
    for (pair, byte) in code.iter().enumerate() {
        for (number, value) in [byte & 15, byte >> 4].into_iter().enumerate() {
            let place = &mut block[32 * pair + 16 * number + column];
            *place = *place & !(15 << shift) | value << shift;
        }
    }
}
