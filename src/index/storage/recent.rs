//! Where pages of an index were found in the buffers last: PostgreSQL checks whether they
//! are still there, which costs less than to look them up.

use std::cell::Cell;

use ivf_store::Block;
use pgrx::pg_sys;

/// An index with more pages remembers those that were read last.
const MOST_REMEMBERED: u32 = 1 << 18;

/// One time in so many a page is looked up all the same: only then does PostgreSQL count
/// that a shared buffer is used, and keep it rather than others. A prime number, so that
/// scans that read the same pages again and again come to look up each of them.
const LOOKED_UP: u32 = 61;

/// The same while pages are being replaced, where what is counted decides about which.
const LOOKED_UP_UNDER_PRESSURE: u32 = 7;

/// After a page that was no longer where it was found last, so many of those to be read soon
/// are looked up before: others have probably been replaced too.
const DOUBTED: u32 = 1 << 10;

/// After such a page, pages are taken to be replaced while so many are wanted.
const PRESSURE: u32 = 1 << 16;

/// A block and the buffer that it was in.
type Place = (Block, pg_sys::Buffer);

/// Buffers of one index, in which some backend has read it.
pub(in crate::index) struct RecentBuffers {
    /// By the last bits of the block's number.
    places: Vec<Cell<Place>>,
    /// Pages that were wanted.
    wanted: Cell<u32>,
    /// How many times more what is known is not to be relied on.
    doubts: Cell<u32>,
    /// How many times more pages are taken to be replaced.
    pressure: Cell<u32>,
}

impl RecentBuffers {
    /// For an index of so many blocks.
    pub fn new(blocks: Block) -> Self {
        let count = blocks.clamp(1, MOST_REMEMBERED).next_power_of_two();
        let none = (0, pg_sys::InvalidBuffer as pg_sys::Buffer);
        Self {
            places: vec![Cell::new(none); count as usize],
            wanted: Cell::new(0),
            doubts: Cell::new(0),
            pressure: Cell::new(0),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.places.len() * size_of::<Place>()
    }

    fn place(&self, block: Block) -> &Cell<Place> {
        &self.places[block as usize & (self.places.len() - 1)]
    }

    /// The buffer that `block` was in, unless the page is to be looked up.
    pub(super) fn find(&self, block: Block) -> Option<pg_sys::Buffer> {
        let wanted = self.wanted.get().wrapping_add(1);
        self.wanted.set(wanted);
        let pressure = self.pressure.get();
        self.pressure.set(pressure.saturating_sub(1));
        let looked_up = match pressure {
            0 => LOOKED_UP,
            _ => LOOKED_UP_UNDER_PRESSURE,
        };
        self.known(block)
            .filter(|_| !wanted.is_multiple_of(looked_up))
    }

    /// Whether `block` is in a buffer in all probability.
    pub(super) fn is_at_hand(&self, block: Block) -> bool {
        if self.known(block).is_none() {
            return false;
        }
        let doubts = self.doubts.get();
        self.doubts.set(doubts.saturating_sub(1));
        doubts == 0
    }

    /// `block` is no longer in the buffer that it was in.
    pub(super) fn forget(&self, block: Block) {
        self.place(block)
            .set((block, pg_sys::InvalidBuffer as pg_sys::Buffer));
        self.doubts.set(DOUBTED);
        self.pressure.set(PRESSURE);
    }

    /// The buffer that `block` was in.
    pub(super) fn known(&self, block: Block) -> Option<pg_sys::Buffer> {
        let (found, buffer) = self.place(block).get();
        let is_known = found == block && buffer != pg_sys::InvalidBuffer as pg_sys::Buffer;
        is_known.then_some(buffer)
    }

    /// Remembers the buffer that `block` is in.
    pub(super) fn remember(&self, block: Block, buffer: pg_sys::Buffer) {
        self.place(block).set((block, buffer));
    }
}
