//! The pages and lists of a `faiss_ivf` index, over any page store.
//!
//! An index is a sequence of 8 kB pages: a meta page, runs of pages with the
//! centroids, with what transforms and codes have learned and with the list
//! directory, and one chain of list pages for each inverted list, to which row
//! pages may belong. `docs/disk-format.md` has every byte of it. This crate reads
//! and writes those pages through the [`PageStore`] trait; the extension
//! implements it over PostgreSQL's buffer manager and write-ahead log, and
//! [`MemoryStore`] keeps pages in memory.
//!
//! What is found in a page is checked before it is used: a damaged page is a
//! [`StoreError`] with its block number, never a panic or an endless loop.

#![forbid(unsafe_code)]

mod directory;
mod error;
mod extent;
mod insert;
mod layout;
mod list;
mod memory;
mod meta;
mod page;
mod recall;
mod rows;
mod store;
mod tid;
mod vacuum;
mod writer;

pub use directory::{ListEntry, list_entries, move_insert_block, write_directory};
pub use error::StoreError;
pub use extent::{Extent, read_extent, write_extent};
pub use insert::insert;
pub use layout::{BLOCK_CODES, Codes, FACTORS, ListLayout, RefineCodes, pack};
pub use list::{ListCursor, ListPage, Place};
pub use memory::MemoryStore;
pub use meta::{Distance, Element, MAX_FACTORY_LEN, META_BLOCK, Meta};
pub use page::{
    Block, DATA_START, MAGIC, NO_BLOCK, PAGE_SIZE, PageBytes, PageKind, SPECIAL_SIZE,
    SPECIAL_START, VERSION,
};
pub use recall::{Effort, QueryLists, RECALL_ROWS, Recall, RecallCurve, RecallPoint, spread};
pub use rows::RowPage;
pub use store::{MAX_CHANGED_PAGES, PageChange, PageStore, append_each};
pub use tid::Tid;
pub use vacuum::{Vacuumed, vacuum_page};
pub use writer::ListWriter;
