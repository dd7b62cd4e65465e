//! Vacuum: freeing the slots of dead rows.

use crate::error::StoreError;
use crate::layout::ListLayout;
use crate::list::ListPage;
use crate::page::{self, Block, PageBytes, PageKind, get_u64, put_u64};
use crate::rows::RowPage;
use crate::store::{PageChange, PageStore};
use crate::tid::Tid;

/// What [`vacuum_page`] found in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacuumed {
    /// The list that the page belongs to.
    pub list: u32,
    /// The list page that has the codes of these entries.
    pub page: Block,
    /// Entries that remain.
    pub live: usize,
    /// Entries that were removed.
    pub removed: usize,
}

/// Frees the slots of dead rows in a page, and counts them in their list page. Returns
/// `None` for pages that have no row pointers.
///
/// Entries never move, so no scan misses an entry or sees one twice; one that comes
/// back for a row whose slot was freed, and filled again, finds a row that its snapshot
/// does not see.
///
/// # Errors
/// [`StoreError`] if the page is damaged.
pub fn vacuum_page<S: PageStore>(
    store: &S,
    layout: ListLayout,
    block: Block,
    mut is_dead: impl FnMut(Tid) -> bool,
) -> Result<Option<Vacuumed>, StoreError> {
    let bytes = store.read(block)?;
    let Some(home) = home_of(&bytes, block, layout)? else {
        return Ok(None);
    };
    let tids: Vec<(usize, Tid)> = row_pointers(&bytes, layout).collect();
    drop(bytes);
    let found = Vacuumed {
        list: home.list,
        page: home.page,
        live: tids.len(),
        removed: 0,
    };
    if !tids.iter().any(|&(_, tid)| is_dead(tid)) {
        return Ok(Some(found));
    }
    let mut change = store.change();
    // In the order in which an insert locks them.
    let list_slot = change.lock(home.page)?;
    let rows_slot = if home.page == block {
        list_slot
    } else {
        change.lock(block)?
    };
    let info = home
        .list_page(change.page(list_slot), block, layout)?
        .info();
    if home_of(change.page(rows_slot), block, layout)? != Some(home) {
        return Err(StoreError::corrupted(block, "the rows are of another list"));
    }
    let tids: Vec<(usize, Tid)> = row_pointers(change.page(rows_slot), layout).collect();
    let mut removed = 0;
    for &(at, tid) in &tids {
        if is_dead(tid) {
            put_u64(change.page_mut(rows_slot), at, 0);
            removed += 1;
        }
    }
    let free = (info.free + removed).min(info.count);
    page::set_free(change.page_mut(list_slot), free);
    change.commit();
    Ok(Some(Vacuumed {
        live: tids.len() - removed,
        removed,
        ..found
    }))
}

/// Where the codes of a page's rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    list: u32,
    page: Block,
}

impl Home {
    /// The list page, which must know of the rows in `block`.
    fn list_page<'a>(
        &self,
        bytes: &'a PageBytes,
        block: Block,
        layout: ListLayout,
    ) -> Result<ListPage<'a>, StoreError> {
        let page = ListPage::parse_of(bytes, self.page, layout, self.list)?;
        if self.page == block || page.row_pages().any(|(rows, _)| rows == block) {
            return Ok(page);
        }
        let reason = format!("the page does not name block {block}, which has rows of it");
        Err(StoreError::corrupted(self.page, reason))
    }
}

/// Where the codes of the rows of a page lie, `None` if it has no row pointers.
fn home_of(
    bytes: &PageBytes,
    block: Block,
    layout: ListLayout,
) -> Result<Option<Home>, StoreError> {
    if page::is_new(bytes) {
        return Ok(None);
    }
    let (list, page) = match (page::kind_of(bytes, block)?, layout.row_capacity()) {
        (PageKind::List, 0) => (ListPage::parse(bytes, block, layout)?.info().owner, block),
        (PageKind::Rows, 1..) => {
            let info = page::check(bytes, block, PageKind::Rows)?;
            RowPage::parse(bytes, block, layout, info.owner)?;
            (info.owner, info.next)
        }
        _ => return Ok(None),
    };
    Ok(Some(Home { list, page }))
}

/// The row pointers of a page that has a home, and where they lie.
fn row_pointers(bytes: &PageBytes, layout: ListLayout) -> impl Iterator<Item = (usize, Tid)> {
    let (count, is_list) = match layout.row_capacity() {
        0 => (page::info(bytes).count, true),
        capacity => (capacity, false),
    };
    (0..count).filter_map(move |index| {
        let at = if is_list {
            layout.tid_at(index)
        } else {
            layout.row_tid_at(index)
        };
        Some((at, Tid::from_bits(get_u64(bytes, at))?))
    })
}
