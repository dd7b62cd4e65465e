const TID_BITS: u32 = 48;

/// Which row an entry belongs to: heap block and line pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(u64);

impl Tid {
    /// The row at line pointer `offset`, from 1, of heap block `block`.
    #[must_use]
    pub fn new(block: u32, offset: u16) -> Self {
        Self(u64::from(block) << 16 | u64::from(offset))
    }

    /// Heap block.
    #[must_use]
    pub fn block(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Line pointer within the heap block, from 1.
    #[must_use]
    pub fn offset(self) -> u16 {
        self.0 as u16
    }

    /// From what a page has; `None` for 0, which no row has.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let bits = bits & ((1 << TID_BITS) - 1);
        (bits != 0).then_some(Self(bits))
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }
}
