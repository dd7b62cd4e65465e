//! The layout of packed codes: blocks of 32 codes of 4-bit sub-codes, as
//! `pq4_pack_codes` of FAISS writes them with `bbs` = 32.
//!
//! In row form, byte `i` of a code holds the sub-codes `2 i` (lower half) and
//! `2 i + 1`. A block has 32 bytes for each byte of a code: 16 for the even
//! sub-code of all 32 codes, then 16 for the odd one. Such a byte holds the
//! sub-codes of slot `s` (lower half) and of slot `s + 16`; slots 0 to 7 are at
//! the even bytes and slots 8 to 15 at the odd ones, so that the sums of bytes
//! that AVX2 makes fall apart into two runs of slots.

/// Codes in a block.
pub(crate) const SLOTS: usize = 32;

/// Bytes of a block for each byte of a code.
pub(crate) const LANE: usize = 32;

/// More sub-codes than this would not leave enough of a sum of 16 bits to each.
pub(crate) const MOST_SUB_CODES: usize = 1 << 15;

/// Bytes of a block of codes of `code_size` bytes.
pub(crate) const fn block_size(code_size: usize) -> usize {
    code_size * LANE
}

/// The number of sub-codes of a code, rounded up to an even number.
pub(crate) const fn sub_codes(code_size: usize) -> usize {
    code_size * 2
}
