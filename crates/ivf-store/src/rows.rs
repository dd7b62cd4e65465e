//! Row pages: refine codes and row pointers of the entries of one list page.

use crate::error::StoreError;
use crate::layout::{FACTORS, ListLayout};
use crate::page::{self, Block, PageBytes, PageKind, get_u64, put_u64};
use crate::tid::Tid;

/// A page with the rows of entries.
#[derive(Debug, Clone, Copy)]
pub struct RowPage<'a> {
    bytes: &'a PageBytes,
    layout: ListLayout,
}

impl<'a> RowPage<'a> {
    /// Reads a row page of `list`.
    ///
    /// # Errors
    /// [`StoreError`] if it is damaged, or the page of another list.
    pub fn parse(
        bytes: &'a PageBytes,
        block: Block,
        layout: ListLayout,
        list: u32,
    ) -> Result<Self, StoreError> {
        let info = page::check(bytes, block, PageKind::Rows)?;
        if info.owner != list {
            let reason = format!("rows of list {}, expected list {list}", info.owner);
            return Err(StoreError::corrupted(block, reason));
        }
        let size = layout.refine_at(1) - layout.refine_at(0);
        let used = (info.lower - layout.refine_at(0)).checked_div(size);
        let is_possible = used.is_some_and(|used| {
            (1..=layout.row_capacity()).contains(&used)
                && (info.lower, info.upper) == layout.row_hole(used)
        });
        if !is_possible {
            let reason = format!("a hole from {} to {}", info.lower, info.upper);
            return Err(StoreError::corrupted(block, reason));
        }
        Ok(Self { bytes, layout })
    }

    /// The same, and checks that it belongs to the list page `home`.
    pub(crate) fn parse_home(
        bytes: &'a PageBytes,
        block: Block,
        layout: ListLayout,
        list: u32,
        home: Block,
    ) -> Result<Self, StoreError> {
        let page = Self::parse(bytes, block, layout, list)?;
        let found = page::info(bytes).next;
        if found != home {
            let reason = format!("rows of list page {found}, expected list page {home}");
            return Err(StoreError::corrupted(block, reason));
        }
        Ok(page)
    }

    /// The row at `index`, `None` if the slot is free.
    ///
    /// # Panics
    /// If a page has no such place.
    #[must_use]
    pub fn tid(&self, index: usize) -> Option<Tid> {
        assert!(index < self.layout.row_capacity());
        Tid::from_bits(get_u64(self.bytes, self.layout.row_tid_at(index)))
    }

    /// The refine code at `index`.
    ///
    /// # Panics
    /// If a page has no such place.
    #[must_use]
    pub fn code(&self, index: usize) -> &'a [u8] {
        assert!(index < self.layout.row_capacity());
        &self.bytes[self.layout.refine_at(index)..self.layout.refine_at(index + 1)]
    }

    /// One of the [`FACTORS`] numbers of the refine code at `index`, if such
    /// codes are lossy.
    ///
    /// # Panics
    /// If a page has no such place, or codes no such number.
    #[must_use]
    pub fn factor(&self, factor: usize, index: usize) -> f32 {
        let refine = self.layout.codes().refine;
        assert!(refine.is_some_and(|refine| refine.is_lossy) && factor < FACTORS);
        assert!(index < self.layout.row_capacity());
        let at = self.layout.refine_factor_at(factor) + index * size_of::<f32>();
        f32::from_bits(page::get_u32(self.bytes, at))
    }
}

/// Makes `page` a row page without rows, of the list page `home` of `list`. Others must
/// not see it before it has a row.
pub(crate) fn init_row_page(page: &mut PageBytes, list: u32, home: Block) {
    page::init(page, PageKind::Rows, list);
    page::set_next(page, home);
}

/// Puts refine code, its factors and the row pointer of an entry into a place.
pub(crate) fn put_row(
    page: &mut PageBytes,
    layout: ListLayout,
    index: usize,
    tid: Tid,
    record: &[u8],
) {
    let (lower, upper) = layout.row_hole(index + 1);
    page::shrink_hole(page, lower, upper);
    let [_, _, code, factors] = layout.split(record);
    let at = layout.refine_at(index);
    page[at..at + code.len()].copy_from_slice(code);
    for (factor, number) in factors.chunks_exact(size_of::<f32>()).enumerate() {
        let at = layout.refine_factor_at(factor) + index * number.len();
        page[at..at + number.len()].copy_from_slice(number);
    }
    put_u64(page, layout.row_tid_at(index), tid.to_bits());
}
