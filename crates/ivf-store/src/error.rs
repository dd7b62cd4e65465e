use crate::page::{Block, VERSION};

/// Why pages of an index could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A page does not hold what it must hold.
    #[error("block {block}: {reason}")]
    Corrupted {
        /// The block at which the damage was noticed.
        block: Block,
        /// What is wrong with it.
        reason: String,
    },
    /// The page was written by a version of the format that this one cannot read.
    #[error("block {block} has format version {found}, expected {VERSION}")]
    Version {
        /// The block that was read.
        block: Block,
        /// The version found in it.
        found: u16,
    },
}

impl StoreError {
    pub(crate) fn corrupted(block: Block, reason: impl Into<String>) -> Self {
        Self::Corrupted {
            block,
            reason: reason.into(),
        }
    }
}
